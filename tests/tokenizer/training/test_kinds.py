"""Each kind of tokenizer, held to the library that invented it or to a definition spelled out here."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, trainers

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_tokenizer
from megalm.tokenizer.json_pieces import BYTE_CHARACTERS
from megalm.tokenizer.training.cutting import PRETOKENIZERS, normalizer_of
from tests.tokenizer.training import naive_bpe

LOSSLESS = ["bpe", "unigram", "sentencepiece-bpe", "character", "byte"]
PROBE = "The new words 1234 it's  naïve 東京 😀\n\tfoo(bar)\r\n<|endoftext|> <unk> [SEP] \u2581x \x00é"


def make_lines(count: int, seed: int = 0) -> list[str]:
    """Lines of made-up words, numbers and signs; each word stands at line ends too."""
    rng = random.Random(seed)
    syllables = ["".join(rng.choice(part) for part in ("bdfgklmnprstvz", "aeiouäé")) for _ in range(40)]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(120)]
    words += [word.capitalize() for word in words[:30]] + [
        "it's",
        "1234",
        "20",
        "東京",
        "(x)",
        "a,b.",
        "\tx",
        "a\t\tb",
    ]
    lines = [
        " ".join(rng.choices(words, weights=range(1, len(words) + 1), k=rng.randint(1, 9)))
        for _ in range(count)
    ]
    return lines + words + [f"{word} x" for word in words]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "a.txt"
    path.write_text("\n".join(make_lines(300)) + "\n")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def vocabulary_of(folder: Path) -> dict[str, int]:
    return json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_text_round_trips(source, tmp_path, kind):
    size = None if kind in ("character", "byte") else 500
    tokenizer = train_tokenizer([source], tmp_path / "t", kind, size)
    # to SentencePiece this character is a space
    probe = PROBE if tokenizer.token_id("\u2581x") is None else PROBE.replace("\u2581", "")
    assert tokenizer.decode(tokenizer.encode(probe)) == probe
    assert tokenizer.eod_id == 0 and tokenizer.eod_id not in tokenizer.encode(probe)
    if (tmp_path / "t" / "tokenizer.json").exists():
        backend = tokenizers.Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
        assert backend.decode(tokenizer.encode(probe), skip_special_tokens=False) == probe
    data = bytes(range(256)) * 2
    assert tokenizer.lossless and tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "gpt2-digits", "gpt4-digits"])
@pytest.mark.parametrize("normalizers", [(), ("nfd", "lowercase")])
def test_byte_level_bpe_is_what_hugging_faces_trainer_makes(source, tmp_path, name, normalizers):
    train_tokenizer([source], tmp_path / "t", "bpe", 600, pretokenizer=name, normalizers=normalizers)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = PRETOKENIZERS[name].backend()
    backend.normalizer = normalizer_of(normalizers)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(BYTE_CHARACTERS),
        show_progress=False,
    )
    backend.train_from_iterator([source.read_text()], trainer)
    assert json.loads((tmp_path / "t" / "tokenizer.json").read_text()) == json.loads(backend.to_str())


def test_ties_by_bytes_take_the_greater_pair(source, tmp_path):
    train_tokenizer([source], tmp_path / "t", "bpe", 400, ties="bytes")
    words: Counter[tuple[str, ...]] = Counter()
    for piece, _ in PRETOKENIZERS["gpt2"].backend().pre_tokenize_str(source.read_text()):
        words[tuple(chr(BYTE_CHARACTERS.index(character)) for character in piece)] += 1
    latin = {tuple(bytes(map(ord, word)).decode("latin-1")): count for word, count in words.items()}
    expected = naive_bpe.learn(latin, [chr(byte) for byte in range(256)], 400 - 257, ties="latin-1")
    merges = json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["merges"]
    spell = {character: chr(byte) for byte, character in enumerate(BYTE_CHARACTERS)}
    assert [tuple("".join(map(spell.get, token)) for token in pair) for pair in merges] == expected


def train_sentencepiece(path: Path, **options) -> sentencepiece_model_pb2.ModelProto:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=str(path),
        model_writer=model,
        hard_vocab_limit=False,
        byte_fallback=True,
        eos_id=0,
        eos_piece="<|endoftext|>",
        unk_id=1,
        bos_id=-1,
        pad_id=-1,
        control_symbols=["<a>"],
        minloglevel=2,
        **options,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


@pytest.mark.parametrize("kind", ["unigram", "sentencepiece-bpe"])
@pytest.mark.parametrize(
    ("normalizers", "rule", "digits"), [((), "identity", False), (("nfkc", "lowercase"), "nfkc_cf", True)]
)
def test_sentencepiece_models_are_those_trained_on_the_text_itself(
    source, tmp_path, kind, normalizers, rule, digits
):
    train_tokenizer(
        [source],
        tmp_path / "t",
        kind,
        400,
        normalizers=normalizers,
        pretokenizer="digits" if digits else None,
        special_tokens=["<a>"],
    )
    direct = train_sentencepiece(
        source,
        model_type="unigram" if kind == "unigram" else "bpe",
        vocab_size=400,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        allow_whitespace_only_pieces=rule == "identity",
        split_digits=digits,
    )
    ours = sentencepiece_model_pb2.ModelProto()
    ours.ParseFromString((tmp_path / "t" / "tokenizer.model").read_bytes())
    assert len(ours.pieces) == 400
    if (
        kind == "unigram"
    ):  # the last bits of a score depend on the order of sums, and the order of pieces on them
        scores = {piece.piece: piece.score for piece in direct.pieces}
        assert {piece.piece for piece in ours.pieces} == set(scores)
        assert max(abs(piece.score - scores[piece.piece]) for piece in ours.pieces) < 1e-4
    else:
        assert list(ours.pieces) == list(direct.pieces)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=direct.SerializeToString())
    mine = sentencepiece.SentencePieceProcessor(model_proto=ours.SerializeToString())
    probes = [*make_lines(50, seed=9), "Ａﬁ  two   spaces ", " Ünbekannt 99"]
    if rule == "identity":
        assert mine.piece_to_id("\t") != mine.unk_id() and probes.append("a\t\tb\t") is None
    for probe in probes:
        assert mine.encode(probe, out_type=str) == theirs.encode(probe, out_type=str)
        assert load_tokenizer(tmp_path / "t").encode(probe) == mine.encode(probe)


def test_words_longer_than_the_library_takes_are_left_out_of_sentencepiece(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(make_lines(50)) + "\n" + "zq" * 3000)
    tokenizer = train_tokenizer([path], tmp_path / "t", "sentencepiece-bpe", 400)
    assert tokenizer.token_id("zq") is None and tokenizer.token_id("▁x") is not None
    path.write_text("zq" * 3000)
    with pytest.raises(UserError, match="no word of 4192 bytes or less"):
        train_tokenizer([path], tmp_path / "u", "unigram", 400)


def test_wordpiece_is_byte_pair_encoding_with_marked_pieces(source, tmp_path):
    train_tokenizer([source], tmp_path / "t", "wordpiece", 300, character_coverage=1.0)
    text = tokenizers.normalizers.BertNormalizer().normalize_str(source.read_text())
    words: Counter[tuple[str, ...]] = Counter()
    for word, _ in tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
        words[(word[0], *(f"##{character}" for character in word[1:]))] += 1
    inside = {token for word in words for token in word[1:]}
    alphabet = [*sorted({token.removeprefix("##") for word in words for token in word}), *sorted(inside)]

    def join(left: str, right: str) -> str:
        return left + right.removeprefix("##")

    pairs = naive_bpe.learn(words, alphabet, 300 - 5 - len(alphabet), join=join)
    expected = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *alphabet, *(join(*pair) for pair in pairs)]
    assert (tmp_path / "t" / "vocab.txt").read_text() == "".join(f"{token}\n" for token in expected)
    assert vocabulary_of(tmp_path / "t") == {token: number for number, token in enumerate(expected)}


@pytest.mark.parametrize("normalizer", ["bert", "bert-cased"])
def test_wordpieces_vocabulary_file_alone_is_the_same_tokenizer(source, tmp_path, normalizer):
    tokenizer = train_tokenizer([source], tmp_path / "t", "wordpiece", 300, normalizers=[normalizer])
    assert tokenizer.token_id("[SEP]") == tokenizer.eod_id == 3
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tmp_path / "t" / name).read_bytes())
    alone = load_tokenizer(tmp_path / "vocab.txt")
    for line in [*make_lines(30, seed=3), "Élan UNBEKANNT 東京"]:
        assert alone.encode(line) == tokenizer.encode(line)
    capitals = [t for t in vocabulary_of(tmp_path / "t") if t != t.lower() and not t.startswith("[")]
    assert bool(capitals) == (normalizer == "bert-cased")


def test_characters_beyond_the_coverage_have_no_wordpiece(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc abd\n" * 300 + "q\n")
    assert train_tokenizer([path], tmp_path / "all", "wordpiece", 40, character_coverage=1).token_id("q")
    covered = train_tokenizer([path], tmp_path / "most", "wordpiece", 40, character_coverage=0.99)
    assert covered.token_id("q") is None and covered.encode("q") == [covered.token_id("[UNK]")]


def test_words_are_the_most_frequent_ones(source, tmp_path):
    tokenizer = train_tokenizer([source], tmp_path / "t", "word", 60)
    cuts = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(source.read_text())
    counts = Counter(word for word, _ in cuts)
    frequent = sorted(counts, key=lambda word: (-counts[word], word.encode()))[:58]
    expected = ["<|endoftext|>", "<unk>", *frequent]
    assert vocabulary_of(tmp_path / "t") == {token: number for number, token in enumerate(expected)}
    assert tokenizer.encode(f"{frequent[3]} nowhere {frequent[0]}") == [5, 1, 2]
    assert train_tokenizer([source], tmp_path / "all", "word").vocab_size == 2 + len(counts)


def test_characters_are_the_most_frequent_ones_and_the_others_bytes(source, tmp_path):
    tokenizer = train_tokenizer([source], tmp_path / "t", "character", 1 + 256 + 10)
    counts = Counter(source.read_text())
    frequent = sorted(counts, key=lambda character: (-counts[character], character.encode()))[:10]
    assert tokenizer.encode("".join(frequent)) == [*range(257, 267)]
    assert tokenizer.encode("京") == [1 + byte for byte in "京".encode()]


def test_bytes_need_no_text(tmp_path):
    tokenizer = train_tokenizer([], tmp_path / "t", "byte", special_tokens=["<a>"])
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("aß") == [2 + byte for byte in "aß".encode()]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "word", "character", "unigram"])
def test_a_special_token_is_never_what_a_text_gives(tmp_path, kind):
    path = tmp_path / "a.txt"
    path.write_text("<|im_end|> us er <unk> [SEP] " * 50)
    size = {"bpe": 300, "wordpiece": 60, "unigram": 280}.get(kind)
    # merging could make the last one
    others = ["us er"] if kind in ("wordpiece", "word") else ["user", "im"]
    tokenizer = train_tokenizer(
        [path], tmp_path / "t", kind, size, chat_tokens="chatml", special_tokens=others
    )
    special = tokenizer.special_tokens
    first = 5 if kind == "wordpiece" else 2 if kind in ("word", "unigram") else 1
    chosen = ["<|im_start|>", "<|im_end|>", *others]
    assert [special[token] for token in chosen] == [*range(first, first + len(chosen))]
    ids = tokenizer.encode("user us er <|im_end|> <|endoftext|> [SEP] im")
    assert not {
        special[token] for token in (*chosen, "[SEP]" if kind == "wordpiece" else "<|endoftext|>")
    } & set(ids)
    for token in chosen:
        assert tokenizer.decode([special[token]]) == token


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("bpe", "é"),
        ("byte", "a"),
        ("character", "x"),
        ("character", "<0x0A>"),
        ("word", "user"),
        ("wordpiece", "user"),
        ("wordpiece", "##a b"),
    ],
)
def test_a_special_token_that_a_text_could_give_is_refused(source, tmp_path, kind, token):
    with pytest.raises(UserError, match=f"special token '{token}' is spelled as an ordinary"):
        train_tokenizer([source], tmp_path / "t", kind, 400, special_tokens=[token])


def test_rare_pieces_are_left_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(("often\n" * 10 + "netfo seldom\n" * 3) * 2)
    for kind, size, space in (
        ("bpe", 400, ""),
        ("wordpiece", 100, ""),
        ("unigram", 400, "▁"),
        ("word", None, ""),
    ):
        both = train_tokenizer([path], tmp_path / f"{kind}-1", kind, size)
        frequent = train_tokenizer([path], tmp_path / f"{kind}-7", kind, size, min_count=7)
        for tokenizer, token, there in (
            (both, "netfo", True),
            (both, "often", True),
            (frequent, "netfo", False),
            (frequent, "often", True),
        ):
            assert (tokenizer.token_id(space + token) is not None) == there
    assert train_tokenizer([path], tmp_path / "c", "character", min_count=7).token_id("m") is None


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_equal_inputs_give_equal_files_on_any_number_of_workers(tmp_path, monkeypatch, kind):
    from megalm.tokenizer.training import texts

    monkeypatch.setattr(texts, "SMALLEST_PIECE", 3000)
    path = tmp_path / "a.txt"
    path.write_text("\n".join(make_lines(400)))
    for workers in (1, 3):
        train_tokenizer([path], tmp_path / str(workers), kind, 500, workers=workers)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
