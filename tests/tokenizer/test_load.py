"""Opening saved tokenizers: ours, Hugging Face's, and damaged ones."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.load import LARGEST_FILE, tokenizer_files
from tests.tokenizer.kinds import document, write_gpt2, write_model, write_ranks


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("some words to learn, and some more words to learn\n" * 20)
    train_bpe([tmp_path / "a.txt"], 280, tmp_path / "trained")
    return tmp_path / "trained"


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_directory_and_file_open_alike(trained):
    by_directory, by_file = load_tokenizer(trained), load_tokenizer(trained / "tokenizer.json")
    assert by_directory.hash == by_file.hash
    assert by_directory.encode("words to learn") == by_file.encode("words to learn")
    assert json.loads((trained / "megalm.json").read_text()) == {
        "kind": "bpe",
        "eod_token": "<|endoftext|>",
        "hash": by_file.hash,
        "inputs": [{"path": str(trained.parent / "a.txt"), "bytes": 1000}],
    }


def test_ids_equal_those_of_the_library(trained):
    text = "Some unknown words — to learn 😀\n\n  twice"
    backend = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert load_tokenizer(trained).encode(text) == backend.encode(text).ids


def test_plain_hugging_face_file_with_truncation_padding_and_bos(trained):
    (trained / "megalm.json").unlink()
    plain = load_tokenizer(trained)
    backend = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(trained / "tokenizer.json"))
    other = load_tokenizer(trained)
    text = "more words to learn, far beyond four"
    assert other.encode(text) == other.encode_batch([text, "x"])[0] == plain.encode(text)
    assert other.hash == plain.hash


def test_hash_tells_vocabularies_apart_and_not_ways_to_write_them(trained):
    (trained / "megalm.json").unlink()
    before = load_tokenizer(trained).hash
    rewrite(
        trained / "tokenizer.json",
        lambda c: c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]]),
    )
    assert load_tokenizer(trained).hash == before
    rewrite(trained / "tokenizer.json", lambda c: c["model"]["merges"].pop())
    assert load_tokenizer(trained).hash != before


def test_end_token_comes_from_argument_then_config_then_common_names(tmp_path):
    def save(*words: str) -> None:
        vocab = {word: number for number, word in enumerate(words)}
        tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=words[0])).save(
            str(tmp_path / "tokenizer.json")
        )

    save("a", "<end>", "</s>")
    assert load_tokenizer(tmp_path).eod_id == 2
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    assert load_tokenizer(tmp_path).eod_id == 1
    assert load_tokenizer(tmp_path, eod_token="a").eod_id == 0
    with pytest.raises(UserError, match="no token 'b'"):
        load_tokenizer(tmp_path, eod_token="b")
    (tmp_path / "tokenizer_config.json").unlink()
    save("a", "b")
    with pytest.raises(UserError, match="names no token to end documents"):
        load_tokenizer(tmp_path)


def test_vocab_size_is_above_every_id_even_with_holes(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 9}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == 10


def test_missing_damaged_and_changed_files_are_named(trained, tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing")
    rewrite(trained / "tokenizer.json", lambda c: c["model"]["merges"].pop())
    with pytest.raises(UserError, match="was changed after"):
        load_tokenizer(trained)
    (trained / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match="not a readable"):
        load_tokenizer(trained)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "megalm.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", b"\xff", '{"added_tokens_decoder": {"x": 1}}'])
def test_damaged_files_beside_are_named(trained, name, content):
    (trained / "megalm.json").unlink()
    (trained / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if content[2:7] == "added" and name == "megalm.json":
        return  # no key of this file
    with pytest.raises(
        UserError, match="added_tokens.json are damaged|is not JSON|holds no JSON object"
    ) as caught:
        load_tokenizer(trained)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_tokenizers_are_refused_in_one_line_or_work(trained, data):
    content = bytearray(document("gpt2").encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 1500))
        new = data.draw(
            st.sampled_from([b"", b"9", b"null", b'"', b"-1", b"[", b"{}", b"true", b"99999999999"])
        )
        content[at : at + data.draw(st.integers(0, 8))] = new
    file = trained / "damaged.json"
    file.write_bytes(content)
    try:
        tokenizer = load_tokenizer(file)
        ids = tokenizer.encode_batch(["some words <|endoftext|>"])[0]
        tokenizer.decode(ids)
    except UserError as error:
        assert "\n" not in str(error)


def test_what_is_far_too_large_for_a_tokenizer_is_not_read(trained):
    with open(trained / "tokenizer.json", "ab") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(UserError, match="more than any tokenizer"):
        load_tokenizer(trained)


def test_an_id_that_would_take_all_memory_is_refused(tmp_path):
    content = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 7}, unk_token="a")).to_str()
    (tmp_path / "tokenizer.json").write_text(content.replace(":7", f":{2**31}"), "utf-8")
    with pytest.raises(UserError, match="an id of 2147483648"):
        load_tokenizer(tmp_path)


def test_of_several_tokenizers_in_a_directory_the_first_kind_is_taken_and_one_has_to_be_named(tmp_path):
    write_model("unigram nfkc", tmp_path / "several")
    several = tmp_path / "several"
    (several / "tokenizer.model").rename(several / "a.model")
    assert load_tokenizer(several).hash == load_tokenizer(several / "a.model").hash
    write_model("llama", several).rename(several / "b.model")
    with pytest.raises(UserError, match=r"several tokenizers \(a.model, b.model\)"):
        load_tokenizer(several)
    write_gpt2(several)
    assert load_tokenizer(several).hash == load_tokenizer(several / "vocab.json").hash
    (several / "tokenizer.json").write_text(document("pattern 0"), "utf-8")
    assert load_tokenizer(several).hash == load_tokenizer(several / "tokenizer.json").hash


@pytest.mark.parametrize("by_file", [False, True])
def test_a_copy_of_its_files_is_the_same_tokenizer(tmp_path, by_file):
    write_gpt2(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "chat_template.jinja").write_text("{{ messages }}")
    write_model("unigram nfkc", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    write_ranks(tmp_path / "cl100k_base.tiktoken").rename(write_model("llama", tmp_path / "ranks"))
    (tmp_path / "ranks" / "megalm.json").write_text(
        '{"pattern": "o200k_base", "special_tokens": {"</s>": 900}}'
    )
    for directory, name in (
        ("gpt2", "vocab.json"),
        ("model", "tokenizer.model"),
        ("ranks", "tokenizer.model"),
    ):
        source = tmp_path / directory / name if by_file else tmp_path / directory
        copy = tmp_path / "copies" / directory
        copy.mkdir(parents=True)
        for file in tokenizer_files(source):
            shutil.copy(file, copy)
        found, expected = load_tokenizer(copy), load_tokenizer(source)
        assert (found.hash, found.eod_id) == (expected.hash, expected.eod_id)
    assert (tmp_path / "copies" / "gpt2" / "chat_template.jinja").is_file() == (not by_file)


TEXT = "Hé llo 😀👩‍👩‍👧 wörld 東京\u2028 x \ufffd y <|endoftext|>"


def test_stream_joins_to_the_decoded_text_and_splits_no_character(trained):
    tokenizer = load_tokenizer(trained)
    ids = [*tokenizer.encode(TEXT), tokenizer.eod_id, *tokenizer.encode("end")]
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    pieces = [piece.replace("\ufffd", "", TEXT.count("\ufffd")) for piece in pieces]
    assert "\ufffd" not in "".join(pieces)
    assert sum(bool(piece) for piece in pieces) > len(TEXT) // 2, "text is held back"


def test_stream_shows_broken_characters_as_decode_does(trained):
    tokenizer = load_tokenizer(trained)
    smile = tokenizer.encode("😀")
    for ids in (smile[:2], smile[:3] + tokenizer.encode("ab"), smile[1:] + smile[:1] + smile):
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_stream_keeps_the_spaces_of_tokenizers_that_mark_word_begins(tmp_path):
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {word: number for number, word in enumerate(["</s>", "▁", "▁a", "b", *bytes_])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = [2, 3, 2, *(4 + byte for byte in "é😀".encode()), 2, 3]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids) == "ab aé😀 ab"


def test_a_stream_holds_back_a_few_tokens_at_most_that_spell_the_replacement_character(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"\ufffd": 0, "</s>": 1, "a": 2}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    stream = load_tokenizer(tmp_path).stream()
    pieces = [stream.push(0) for _ in range(40)]
    assert "".join(pieces) == " ".join(["\ufffd"] * 40)
    assert stream.push(2) == " a"
