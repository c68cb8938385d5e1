"""Tokenizers of Hugging Face's `tokenizers` library, read from a `tokenizer.json`."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models

from megalm.errors import UserError
from megalm.tokenizer.fast import FastEncoder, fast_encoder
from megalm.tokenizer.json_pieces import pieces_of_json
from megalm.tokenizer.pieces import Pieces, PieceTokenizer, check_text
from megalm.tokenizer.spelling import hide_spelled
from megalm.tokenizer.wordpiece import SPECIAL_TOKENS, UNKNOWN

LONG_TEXT = 100_000
"""Characters from which on one text alone is worth the fast encoder."""
LARGEST_ID = 1 << 24


class HuggingFaceTokenizer(PieceTokenizer):
    """A `tokenizer.json` behind the interface of `megalm.tokenizer.Tokenizer`."""

    def __init__(self, content: str, eod_token: str) -> None:
        """Take the text of a `tokenizer.json` and its token that ends a document; UserError without one."""
        self.content = content
        self._backend = backend_from_json(content)
        self._end_documents_with(eod_token)
        # Ids may have holes, so the count of tokens is not enough.
        self._vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        if self._vocab_size > LARGEST_ID:
            raise UserError(
                f"the tokenizer has an id of {self._vocab_size - 1}, above the {LARGEST_ID} that are sensible; copy it again"
            )

    @cached_property
    def hash(self) -> str:
        return content_hash(self.content)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def ids_that_start_with(self, prefix: str) -> list[int]:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return sorted(i for token, i in vocabulary.items() if token.startswith(prefix) and token != prefix)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        added = self._backend.get_added_tokens_decoder()
        specials = {token.content: i for i, token in added.items() if token.special}
        if isinstance(self._backend.model, models.WordPiece):
            ids = {token: self._backend.token_to_id(token) for token in (UNKNOWN, *SPECIAL_TOKENS)}
            specials |= {token: i for token, i in ids.items() if i is not None}
        specials |= {self.eod_token: self._eod_id}
        return dict(sorted(specials.items(), key=lambda entry: entry[1]))

    def encode(self, text: str) -> list[int]:
        check_text(text)
        # of a long text, the library's own result takes a hundred bytes a token
        if len(text) >= LONG_TEXT and self._fast and self._fast.takes(text):
            return self._fast.encode(text).tolist()
        return self._encode_all([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        ids_T, counts = self.encode_ragged(texts)
        return [row.tolist() for row in np.split(ids_T, np.cumsum(counts)[:-1])] if texts else []

    def encode_ragged(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        for text in texts:
            check_text(text)
        fast = self._fast
        if fast is None:
            return _ragged(self._encode_all(texts))
        taken = [fast.takes(text) for text in texts]
        if all(taken):
            return fast.encode_all(texts)
        others = iter(
            self._encode_all([text for text, by_fast in zip(texts, taken, strict=True) if not by_fast])
        )
        ids_T, counts = fast.encode_all([text for text, by_fast in zip(texts, taken, strict=True) if by_fast])
        rows = iter(np.split(ids_T, np.cumsum(counts)[:-1]))
        return _ragged([next(rows) if by_fast else next(others) for by_fast in taken])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        check_text(text)
        encoding = self._encoder.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        """The ids of each of `texts` by the library itself."""
        if sum(map(len, texts)) < LONG_TEXT and len(texts) < 2:
            # no threads for little: the library warns of each fork after it has had some
            return [self._encoder.encode(text, add_special_tokens=False).ids for text in texts]
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def content_for_encoding(self) -> str:
        """The text of a `tokenizer.json` with which no text spells a special token."""
        return hide_spelled(self.content, self._backend, self.special_tokens)

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        same = self.content_for_encoding is self.content
        return self._backend if same else backend_from_json(self.content_for_encoding)

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return fast_encoder(json.loads(self.content_for_encoding), lambda text: self._encode_all([text])[0])

    def _decode_words(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    @cached_property
    def _pieces(self) -> Pieces:
        added = {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        return pieces_of_json(json.loads(self.content), vocabulary, added)


def _ragged(
    rows: Sequence[Sequence[int] | NDArray[np.uint32]],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Ids of several texts, joined, and how many each has."""
    ids_T = np.concatenate([np.zeros(0, np.uint32), *(np.asarray(row, np.uint32) for row in rows)])
    return ids_T, np.fromiter(map(len, rows), np.int64, len(rows))


def backend_from_json(content: str) -> tokenizers.Tokenizer:
    """Return the library's tokenizer with everything off that would cut, pad or interpret a text."""
    backend = tokenizers.Tokenizer.from_str(content)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    backend.post_processor = None  # type: ignore[assignment]  # would add tokens, and cut spaces off the offsets
    return backend


def content_hash(content: str) -> str:
    """Return the sha256 over what determines ids in a `tokenizer.json`, whichever version wrote it."""
    parsed = json.loads(content)
    model: dict[str, Any] = dict(parsed["model"])
    if "merges" in model:
        # Written as "a b" before tokenizers 0.20 and as ["a", "b"] since.
        model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    parts = {key: parsed.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}
    canonical = json.dumps(
        {**parts, "model": model}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
