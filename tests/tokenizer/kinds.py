"""Small tokenizers of every kind that is read, trained on a text of many scripts."""

import base64
import io
import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from megalm.tokenizer.fast import PATTERNS
from megalm.tokenizer.huggingface import HuggingFaceTokenizer
from megalm.tokenizer.pieces import PieceTokenizer
from megalm.tokenizer.sentencepiece import SentencePieceTokenizer, model_to_json, read_model

EOD = "<|endoftext|>"
LINES = (
    "The quick brown fox isn't jumping over 12 or 123456 lazy dogs; they'll HE'LL don't IT'S over   there.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ça va? Größe: 3,14 €",
    "東京タワーは日本の東京都港区芝公園にある総合電波塔です。吾輩は猫である。名前はまだ無い。",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. مرحبا بالعالم नमस्ते दुनिया",
    "def f(x):\n\treturn {'a': x[0]}  # https://example.org/?q=1&r=2\r\n\r\n\r\n    if a != b and c->d:\n        pass",
    "😀 👩‍👩‍👧 🇩🇪 e\u0301a\u0308 \u00a0nbsp\u3000wide \u200bzero\ufeff ½Ⅷ٣ ſK ﬁ ①",
)
TEXT = "\n".join(LINES)
NASTY = (
    *("a", "b", "the", "Word", "IT", "s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "ſ", "K", "'", "’"),
    *(
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        " \n",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x1f",
        "\x85",
        "\xa0",
    ),
    *("\u1680", "\u2003", "\u2028", "\u202f", "\u3000", "\u200b", "\u180e", "\ufeff", "\xad", "\x00", "\x7f"),
    *(
        "1",
        "12",
        "1234",
        "½",
        "Ⅷ",
        "٣",
        "𝟘",
        "é",
        "e\u0301",
        "\u0301",
        "\u0345",
        "\u0301" * 5,
        "e\u0301\u0323",
    ),
    *("東", "京都", "한국", "각", "ไทย", "हिन्दी", "İ", "ı", "ǅ", "ʰ", "ª", "ﬁ", "ᾳ", "𐐀", "Å", "Ω"),
    *("😀", "👩‍👩‍👧", "🇩🇪", "\u200d", "\ufe0f", "\ue000", "\U000f0000", "\U0010ffff", "\ufffd", "\ufffe"),
    *("!", "!!!", "...", "/", "//", "_", "-", "$", "^", "'S", "'ſ", "'K", "'Ll", "''s", "a'b", "</s>", EOD),
    *("▁", "▁▁", " ▁", "<0x41>", "<unk>", "\u088f", "\U000323b0", "\U00011db0", "\U0001fae9"),
)
"""Strings on which engines have been seen to differ, or might."""


def texts(max_size: int = 30) -> st.SearchStrategy[str]:
    """Texts of nasty strings and of any characters, some of them said many times over."""
    one = st.one_of(st.sampled_from(NASTY), st.characters(exclude_categories=["Cs"]))
    plain = st.lists(one, max_size=max_size).map("".join)
    return st.one_of(
        plain, st.builds(lambda text, count: text * count, st.sampled_from(NASTY), st.integers(1, 300))
    )


def byte_level(
    pattern: str | None = None, normalizer: Any = None, vocab_size: int = 700
) -> tokenizers.Tokenizer:
    """Byte-level BPE that cuts texts by `pattern` (None: as GPT-2)."""
    backend = tokenizers.Tokenizer(models.BPE())
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, last])
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOD], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*LINES, TEXT], trainer)
    return backend


def train_sentencepiece(**options: Any) -> bytes:
    """The bytes of a SentencePiece model."""
    out = io.BytesIO()
    defaults = {"vocab_size": 560 if options.get("byte_fallback") else 300, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in LINES for _ in range(3)]),
        model_writer=out,
        minloglevel=2,
        num_threads=1,
        **{**defaults, **options},
    )
    return out.getvalue()


PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "byte_fallback": True, **PLAIN},
    "bpe plain": {"model_type": "bpe", **PLAIN},
    "bpe without prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **PLAIN},
    "bpe nfkc": {"model_type": "bpe", "byte_fallback": True},
    "bpe user defined": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": ["fox"],
        **PLAIN,
    },
    "unigram nfkc": {"model_type": "unigram"},
    "unigram plain": {"model_type": "unigram", "byte_fallback": True, **PLAIN},
    "unigram control": {"model_type": "unigram", "byte_fallback": True, "control_symbols": [EOD, "<|user|>"]},
}
"""Options of training by the kind of model."""
CONVERTED = ("llama", "bpe plain", "bpe without prefix")
"""Kinds whose ids a tokenizer.json gives as well."""


@cache
def sentencepiece_model(kind: str) -> bytes:
    return train_sentencepiece(**SENTENCEPIECE[kind])


def write_model(kind: str, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    return directory / "tokenizer.model"


def word_piece() -> tokenizers.Tokenizer:
    backend = tokenizers.BertWordPieceTokenizer(lowercase=True)
    backend.train_from_iterator(LINES, vocab_size=300, min_frequency=1, show_progress=False)
    return tokenizers.Tokenizer.from_str(backend.to_str())


def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([*LINES, TEXT], trainer)
    return backend


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_METASPACE = {"type": "Metaspace", "replacement": "▁"}
SPACED: dict[str, tuple[Any, Any]] = {
    "metaspace first": (None, {**_METASPACE, "prepend_scheme": "first", "split": False}),
    "metaspace always": (None, {**_METASPACE, "prepend_scheme": "always", "split": True}),
    "metaspace never": (None, {**_METASPACE, "prepend_scheme": "never", "split": False}),
    "gemma": (
        _REPLACE,
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    ),
    "no prefix": ({"type": "Sequence", "normalizers": [_REPLACE]}, None),
}
"""Normalizer and cut of BPE with byte fallback over marked spaces, as newer models write them."""


def spaced(kind: str) -> str:
    """Llama's vocabulary under another normalizer and cut."""
    content = json.loads(model_to_json(parsed_model("llama")) or "")
    normalizer, cut = SPACED[kind]
    steps = content["decoder"]["decoders"]
    has_prefix = kind in ("metaspace first", "metaspace always")
    decoder = {"type": "Sequence", "decoders": steps if has_prefix else steps[:-1]}
    return json.dumps({**content, "normalizer": normalizer, "pre_tokenizer": cut, "decoder": decoder})


@cache
def document(kind: str) -> str:
    """The text of a tokenizer.json."""
    if kind.startswith("pattern "):
        return byte_level(list(PATTERNS)[int(kind.split()[1])]).to_str()
    makers = {
        "gpt2": byte_level,
        "nfc": lambda: byte_level(next(iter(PATTERNS)), normalizers.NFC()),
        "nfkc lowercase": lambda: byte_level(
            None, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        ),
        "word piece": word_piece,
        "unigram": unigram,
    }
    return spaced(kind) if kind in SPACED else makers[kind]().to_str()


PATTERN_KINDS = tuple(f"pattern {number}" for number in range(len(PATTERNS)))
DOCUMENTS = ("gpt2", *PATTERN_KINDS, "nfc", "nfkc lowercase", "word piece", "unigram", *SPACED)
KINDS = (*DOCUMENTS, *SENTENCEPIECE)


@cache
def tokenizer_of(kind: str) -> PieceTokenizer:
    """The tokenizer of a kind."""
    if kind in SENTENCEPIECE:
        model = parsed_model(kind)
        content = model_to_json(model)
        return (
            SentencePieceTokenizer(model, "</s>", [])
            if content is None
            else HuggingFaceTokenizer(content, "</s>")
        )
    ends = {"word piece": "[SEP]", **dict.fromkeys((*SPACED, "unigram"), "</s>")}
    return HuggingFaceTokenizer(document(kind), ends.get(kind, EOD))


def parsed_model(kind: str) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return read_model(write_model(kind, Path(directory)))


def write_gpt2(
    directory: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")
) -> tokenizers.Tokenizer:
    """Write a vocabulary and merges as GPT-2 does; the library's tokenizer of them."""
    directory.mkdir(exist_ok=True)
    backend = byte_level()
    model = json.loads(backend.to_str())["model"]
    (directory / names[0]).write_text(json.dumps(model["vocab"]), "utf-8")
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (directory / names[1]).write_text("\n".join(merges) + "\n", "utf-8")
    return backend


def ranks() -> dict[bytes, int]:
    """Ranks as of tiktoken, from byte-level BPE."""
    tokenizer = tokenizer_of("pattern 2")
    tokens = [tokenizer.token_bytes(i) for i in range(1, tokenizer.vocab_size)]
    return {token: rank for rank, token in enumerate(tokens)}


def write_ranks(file: Path) -> Path:
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items()]
    file.write_bytes(b"".join(lines))
    return file


def assigned(version_of_python: str = unicodedata.unidata_version) -> list[int]:
    """Code points that this Python's Unicode has, surrogates apart."""
    return [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
