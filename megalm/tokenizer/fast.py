"""The fast way to encode: gigatoken, for the tokenizers and the texts where it gives the ids of `tokenizers`."""

import json
import logging
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from megalm.tokenizer.formats import GPT2_PATTERN, GPT4_PATTERN, GPT4O_PATTERN
from megalm.tokenizer.json_pieces import BYTE_CHARACTERS
from megalm.tokenizer.unicode13 import is_stable

logger = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2_KNOWN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4_KNOWN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
_CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
PATTERNS = {
    GPT2_PATTERN: _GPT2_KNOWN,
    _GPT2_KNOWN: _GPT2_KNOWN,
    GPT4_PATTERN: _GPT4_KNOWN,
    GPT4O_PATTERN: GPT4O_PATTERN,
    **{
        pattern: pattern
        for pattern in (
            _CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _REST,  # GPT-4, Llama 3
            _CONTRACTIONS + _WORD + r"|\p{N}" + _REST,  # Qwen 2, 2.5, 3
            _CONTRACTIONS
            + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # Qwen 3.5
            _CASED_WORDS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # Nemotron, Mistral
        )
    },
}
"""Patterns that cut texts as gigatoken does, and how gigatoken spells each."""

PROBES = [
    "",
    " ",
    "Hello world, it's IT'S they'LL 'tis 'S ''re don’t 'ſ 'K 12345 1234567 3.14 ½Ⅷ٣𝟘",
    "  two   spaces\tand\t\ttabs \n\n\n lines\r\n\r\n \r end  \n\n  ",
    " \n ",
    "\n \t",
    "é e\u0301 Å ﬁ ß ẞ İ ı ǅ ʰ ª ᾳ x\u0301\u0323\u0345 \u0301",
    "日本語のテキスト、한국어 텍스트. ภาษาไทย हिन्दी العربية עברית ѣ Ω𐐀",
    "😀👩‍👩‍👧🇩🇪\ufe0f\u200d\u200b\ufeff\u2060\xad",
    "\x00\x01\x0b\x0c\x1c\x1f\x7f\x85\xa0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000",
    'x = {\'a\': [1, 2], "b": "c\\n"};  // __init__(self)\n\t\treturn a->b!=c && d||!e;...---===\n',
    "https://example.org/a_b?c=%20&d=1#e user@example.org CamelCaseXMLHttp snake_case",
    "▁ ▁▁a <0x41> <s> </s> <unk> <|endoftext|> [CLS] \ue000\U000f0000\U0010fffd\ufffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 3,
    " " * 67 + "1" * 67 + "!" * 67 + "\n" * 67 + "東" * 67,
]
"""Texts on which engines differ if they differ at all; encoded both ways before the fast one is trusted."""


LARGEST_CACHE = 512 << 20
"""Bytes by which the memory of this process may grow before gigatoken's cache of words, which has no bound, is dropped."""
CHECK_EVERY = 4_000_000
"""Ids from one look at the memory to the next."""


class FastEncoder:
    """Encodes texts by gigatoken, all but those on which it could differ."""

    def __init__(self, content: str, by_character: bool, composes: bool, apart: tuple[str, ...]) -> None:
        """content: a `tokenizer.json` as gigatoken is to read it.

        by_character: whether texts are cut by classes of characters. composes: whether they are put in the normal
        form NFC first. apart: tokens that the reference looks for before all else.
        """
        self._content = content
        self._by_character = by_character
        self._composes = composes
        self._apart = apart
        self._backend: Any = None
        self._memory_at_load = self._until_check = 0
        self._load()

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of a text that `takes` is true for."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all `texts`, for each of which `takes` is true, joined [T], and how many each has."""
        # on this thread alone: a worker is one core
        layout = self._backend.encode_batch(texts, parallel=False).layout
        borders = np.asarray(layout.offsets.data)
        ids_T = np.asarray(layout.content.data)[borders[0] : borders[-1]]
        self._until_check -= len(ids_T)
        if self._until_check < 0:
            self._until_check = CHECK_EVERY
            if _memory() > self._memory_at_load + LARGEST_CACHE:
                self._load()
        return ids_T, np.diff(borders)

    def takes(self, text: str) -> bool:
        """Whether `text` is sure to get the ids that the reference gives."""
        if self._apart and any(token in text for token in self._apart):
            return False
        if text.isascii():
            return True
        if self._by_character and not is_stable(text):
            return False
        return not self._composes or unicodedata.is_normalized("NFC", text)

    def _load(self) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._backend = None  # the old cache goes before the new one comes
        self._backend = load_hf_json(self._content)
        self._memory_at_load = _memory()
        self._until_check = CHECK_EVERY


def fast_encoder(content: dict[str, Any], encode: Callable[[str], list[int]]) -> FastEncoder | None:
    """The fast encoder of the `tokenizer.json` `content` (parsed), whose ids `encode` gives; None where there is none.

    Special tokens are left out of it: what spells one in a text is text.
    """
    adapted = _adapt(content)
    if adapted is None:
        return None
    apart = tuple(token["content"] for token in content.get("added_tokens") or () if not token["special"])
    byte_level = _is_byte_level(content)
    composes = byte_level and content.get("normalizer") is not None
    try:
        fast = FastEncoder(json.dumps(adapted, ensure_ascii=False), byte_level, composes, apart)
        same = all(fast.encode(text).tolist() == encode(text) for text in PROBES if fast.takes(text))
    except ImportError:
        logger.warning("gigatoken is not installed, so encoding is many times slower: pip install gigatoken")
        return None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        logger.warning("gigatoken does not take this tokenizer (%s): encoding goes the slow way", error)
        return None
    if not same:
        logger.warning("gigatoken gives other ids for this tokenizer: encoding goes the slow way")
        return None
    return fast


def _memory() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def _adapt(content: dict[str, Any]) -> dict[str, Any] | None:
    """`content` as gigatoken is to read it, None for all kinds of tokenizers but those that are proven equal."""
    model = content["model"]
    if model.get("type") != "BPE" or any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    added = [token for token in content.get("added_tokens") or () if not token["special"]]
    adapted = {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    if _is_byte_level(content):
        if any(character not in model["vocab"] for character in BYTE_CHARACTERS):
            return None
        cut = _byte_level_cut(content["pre_tokenizer"])
        if cut is None or content.get("normalizer") not in (None, {"type": "NFC"}):
            return None
        if any(token.get("normalized", True) for token in added) and content.get("normalizer"):
            return None
        # texts that NFC would change are left to the reference
        return {**adapted, "pre_tokenizer": cut, "normalizer": None}
    return adapted if _is_spaced(content) and not added else None


def _is_byte_level(content: dict[str, Any]) -> bool:
    cut = content.get("pre_tokenizer") or {}
    return "ByteLevel" in (cut.get("type"), *(step["type"] for step in cut.get("pretokenizers", ())))


def _byte_level_cut(cut: dict[str, Any]) -> dict[str, Any] | None:
    """How gigatoken spells the way in which a byte-level tokenizer cuts texts, None if it has no such way."""
    steps = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    if steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    uses_pattern = steps[-1].get("use_regex", True)
    if len(steps) == 1 and uses_pattern:
        return steps[-1]
    if len(steps) != 2 or uses_pattern or steps[0]["type"] != "Split":
        return None
    split = steps[0]
    known = PATTERNS.get(split["pattern"].get("Regex", ""))
    # what no match covers, which these patterns never leave, is all that `Removed` and `invert` would drop
    way = (split["behavior"], bool(split.get("invert")))
    if known is None or way not in (("Isolated", False), ("Removed", True)):
        return None
    split = {"type": "Split", "pattern": {"Regex": known}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, steps[-1]]}


def _is_spaced(content: dict[str, Any]) -> bool:
    """Whether this is BPE with byte fallback over texts whose spaces are marks, as in Llama 2, Mistral and Gemma."""
    model = content["model"]
    if not (model.get("byte_fallback") and model.get("fuse_unk") and model.get("unk_token")):
        return False
    if any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256)):
        return False
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer, cut = content.get("normalizer"), content.get("pre_tokenizer")
    if normalizer is None:
        return cut is not None and cut["type"] == "Metaspace" and cut["replacement"] == "▁"
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if steps == [prepend, replace]:
        return cut is None
    at_spaces = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return steps == [replace] and cut in (None, at_spaces)
