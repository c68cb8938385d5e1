"""Fill-in-the-middle: documents rearranged so that a model learns to write what stands between two parts.

Bavarian et al. 2022, "Efficient training of language models to fill in the middle" (arXiv:2207.14255): a document is cut at
two of its characters, drawn evenly, into prefix, middle and suffix, each of which is tokenized by itself. PSM is
`<PRE> prefix <SUF> suffix <MID> middle`, SPM `<PRE> <SUF> suffix <MID> prefix middle`. Both are done when the dataset is
built, so that batches stay a pure function of the files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError
from megalm.tokenizer import Tokenizer

SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),  # GPT-4, Qwen
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),  # StarCoder
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),  # SantaCoder
    ("▁<PRE>", "▁<MID>", "▁<SUF>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜fim▁hole｜>"),  # DeepSeek Coder: the suffix follows the hole
)


@dataclass(frozen=True)
class FimTokens:
    """Ids of the tokens before the parts."""

    prefix: int
    middle: int
    suffix: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "FimTokens":
        """Return those of a tokenizer; UserError where it has none of a known spelling."""
        for spelling in SPELLINGS:
            ids = [tokenizer.special_tokens.get(token) for token in spelling]
            if None not in ids:
                return cls(*ids)  # type: ignore[arg-type]  # none is None
        raise UserError(
            "the tokenizer has no special tokens <|fim_prefix|>, <|fim_middle|> and <|fim_suffix|>, which fim_rate needs: "
            "train it with --special-token for each"
        )


def draws(seed: int, file_number: int, offsets: Sequence[int]) -> NDArray[np.float64]:
    """Return four numbers in [0, 1) for each document, by its place in the inputs."""
    digests = [
        hashlib.blake2b(repr(("fim", seed, file_number, offset)).encode(), digest_size=32).digest()
        for offset in offsets
    ]
    bits = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 4) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def rearrange(
    text: str, draw: Sequence[float], rate: float, spm_rate: float, tokens: FimTokens
) -> list[str | int]:
    """Return what the document is made of, texts and ids in their order: PSM, SPM or `text` alone; see `draws`."""
    if draw[0] >= rate:
        return [text]
    first, second = sorted(int(place * (len(text) + 1)) for place in draw[2:4])
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if draw[1] < spm_rate:
        return [tokens.prefix, tokens.suffix, suffix, tokens.middle, prefix, middle]
    return [tokens.prefix, prefix, tokens.suffix, suffix, tokens.middle, middle]


def undo(ids: list[int], tokens: FimTokens) -> list[int]:
    """Return the ids of a document in the order of its text, without the tokens before the parts."""
    if ids[:1] != [tokens.prefix] or tokens.suffix not in ids or tokens.middle not in ids:
        return ids
    suffix, middle = ids.index(tokens.suffix), ids.index(tokens.middle)
    return ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle]
