"""Ids of a chat's text: special tokens where the template wrote them, plain text where a message spells one."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.huggingface import HuggingFaceTokenizer, backend_from_json, check_text
from megalm.tokenizer.vocabulary import unknown_id

Offsets = list[tuple[int, int]]
Match = tuple[int, int]

# Code points that no text may hold (Unicode 23.7): one that a chat does not hold marks the template's tokens.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class SpecialEncoder:
    """Encodes texts in which some spellings of special tokens are meant and others are text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._aliased: dict[str, tuple[Backend, dict[int, int]]] = {}
        spellings = sorted(filter(None, tokenizer.special_tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, spellings)) or "(?!)")

    def find(self, text: str) -> list[Match]:
        """Characters [start, stop) of the special tokens that `text` spells, from left to right, the longest first."""
        return [match.span() for match in self._pattern.finditer(text)]

    def encode(self, text: str, meant: Sequence[Match]) -> tuple[list[int], Offsets]:
        """Ids of `text` and their characters [start, stop), with special ids for those of `find(text)` in `meant`.

        Where all are meant, the ids are those of Hugging Face's tokenizer for the whole text; otherwise they
        are what it would give if it could not read the others as special.
        """
        check_text(text)
        if not isinstance(self._tokenizer, HuggingFaceTokenizer):
            return self._encode_parts(self._tokenizer, text, meant)
        if list(meant) == self.find(text):
            encoding = self._interpreting.encode(text, add_special_tokens=False)
            if self._are_meant(encoding.ids, encoding.offsets, meant):
                return encoding.ids, encoding.offsets
        return self._encode_aliased(text, meant)

    def _are_meant(self, ids: list[int], offsets: Offsets, meant: Sequence[Match]) -> bool:
        """Whether all special `ids` stand where one is meant, and none is what a normalizer made of a text."""
        starts = [start for start, _ in meant]
        found = [offset for i, offset in zip(ids, offsets, strict=True) if i in self._special_ids]
        return all(bisect_left(starts, start) < bisect_left(starts, stop) for start, stop in found)

    @cached_property
    def _special_ids(self) -> set[int]:
        """Ids that no text gives: not that of unknown text."""
        return set(self._tokenizer.special_tokens.values()) - {unknown_id(self._tokenizer)}

    @cached_property
    def _interpreting(self) -> Backend:
        """The library's tokenizer as Hugging Face uses it: what spells a special token is one."""
        backend = self._backend()
        backend.encode_special_tokens = False
        return backend

    def _backend(self) -> Backend:
        assert isinstance(self._tokenizer, HuggingFaceTokenizer)
        backend = backend_from_json(self._tokenizer.content)
        marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        # A plain vocabulary does not say which of its tokens are special.
        backend.add_special_tokens([token for token in self._tokenizer.special_tokens if token not in marked])
        return backend

    def _encode_aliased(self, text: str, meant: Sequence[Match]) -> tuple[list[int], Offsets]:
        mark = next((mark for mark in NONCHARACTERS if mark not in text), None)
        if mark is None:
            raise UserError(
                "the chat holds all of U+FDD0 to U+FDEF, which are no characters; take them out of its texts"
            )
        if mark not in self._aliased:
            self._aliased[mark] = self._with_aliases(mark)
        backend, special_ids = self._aliased[mark]
        marked = list(text)
        for start, _ in meant:
            marked[start] = mark
        encoding = backend.encode("".join(marked), add_special_tokens=False)
        found = [offset for i, offset in zip(encoding.ids, encoding.offsets, strict=True) if i in special_ids]
        read = [match for match in meant if any(a <= match[0] and match[1] <= b for a, b in found)]
        if len(read) < len(meant):  # the tokenizer takes some for text even here, within a word for example
            return self._encode_aliased(text, read)
        return [special_ids.get(i, i) for i in encoding.ids], encoding.offsets

    def _with_aliases(self, mark: str) -> tuple[Backend, dict[int, int]]:
        """A tokenizer that knows each special token by a second name, which no text can spell, and their ids."""
        assert isinstance(self._tokenizer, HuggingFaceTokenizer)
        special = {
            i: token
            for i, token in self._backend().get_added_tokens_decoder().items()
            if token.special and token.content
        }
        aliases = {mark + token.content[1:]: (i, token) for i, token in special.items()}
        backend = backend_from_json(self._tokenizer.content_for_encoding)
        backend.add_tokens(
            [
                AddedToken(
                    alias,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                )
                for alias, (_, token) in aliases.items()
            ]
        )
        numbers = backend.get_vocab(with_added_tokens=True)
        return backend, {numbers[alias]: i for alias, (i, _) in aliases.items()}

    @staticmethod
    def _encode_parts(tokenizer: Tokenizer, text: str, meant: Sequence[Match]) -> tuple[list[int], Offsets]:
        """Each stretch of text between special tokens by itself."""
        special, ids, offsets, position = tokenizer.special_tokens, [], [], 0
        for start, stop in [*meant, (len(text), len(text))]:
            part_ids, part_offsets = tokenizer.encode_with_offsets(text[position:start])
            ids += part_ids
            offsets += [(a + position, b + position) for a, b in part_offsets]
            if start < stop:
                ids.append(special[text[start:stop]])
                offsets.append((start, stop))
            position = stop
        return ids, offsets
