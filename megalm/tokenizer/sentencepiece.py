"""SentencePiece models (Kudo and Richardson 2018), by the `sentencepiece` library itself."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError
from megalm.tokenizer.formats import bpe_to_json
from megalm.tokenizer.pieces import Pieces, PieceTokenizer, check_text

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""
BPE = 2


class SentencePieceTokenizer(PieceTokenizer):
    """A SentencePiece model behind the interface of `megalm.tokenizer.Tokenizer`."""

    def __init__(self, model: Any, eod_token: str, added: list[dict[str, Any]]) -> None:
        """Take a model as `read_model` gives it and the special tokens that Hugging Face added above its pieces.

        Raises UserError without `eod_token`, and for added tokens that a text could hold.
        """
        self._model = model
        self._processor = _library().SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model.SerializeToString())
        self._ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
        for token in added:
            if token["content"] not in self._ids and not token["special"]:
                raise UserError(
                    f"token '{token['content']}' is added to a SentencePiece model and not special; save the tokenizer "
                    "with its tokenizer.json"
                )
        self.added = {token["content"]: token["id"] for token in added if token["content"] not in self._ids}
        self._vocab_size = max([len(self._ids), *(i + 1 for i in self.added.values())])
        self._end_documents_with(eod_token)

    @property
    def model(self) -> bytes:
        """The model as its file holds it."""
        return self._model.SerializeToString()

    @cached_property
    def hash(self) -> str:
        normalizer = self._model.normalizer_spec.SerializeToString(deterministic=True)
        trainer = self._model.trainer_spec
        parts = {
            "pieces": [[piece.piece, piece.score, piece.type] for piece in self._model.pieces],
            "kind": [trainer.model_type, trainer.byte_fallback, trainer.treat_whitespace_as_suffix],
            "normalizer": hashlib.sha256(normalizer).hexdigest(),
            "added": self.added,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        own = {p.piece: i for i, p in enumerate(self._model.pieces) if p.type in (CONTROL, UNKNOWN)}
        specials = own | self.added | {self.eod_token: self._eod_id}
        return dict(sorted(specials.items(), key=lambda entry: entry[1]))

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token, self.added.get(token))

    def ids_that_start_with(self, prefix: str) -> list[int]:
        ids = self._ids | self.added
        return sorted(i for token, i in ids.items() if token.startswith(prefix) and token != prefix)

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self._processor.Encode(text, return_type=int)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            check_text(text)
        return self._processor.Encode(texts, return_type=int, num_threads=1)

    def encode_ragged(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        for text in texts:
            check_text(text)
        rows = self._processor.Encode(texts, return_type="numpy", num_threads=1)
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.uint32), counts

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        check_text(text)
        pieces = self._processor.Encode(text, return_type="proto").pieces
        begins, ends = [piece.begin for piece in pieces], [piece.end for piece in pieces]
        for i in range(len(pieces) - 2, -1, -1):
            # the library gives a character's place to the last of its pieces
            if ends[i] == begins[i] == begins[i + 1] and self._model.pieces[pieces[i].id].type == BYTE:
                ends[i] = ends[i + 1]
        # it counts bytes of UTF-8
        starts = np.cumsum([0, *(len(character.encode()) for character in text)])
        spans = zip(
            np.searchsorted(starts, begins).tolist(), np.searchsorted(starts, ends).tolist(), strict=True
        )
        return [piece.id for piece in pieces], list(spans)

    def _decode_words(self, ids: list[int]) -> str:
        raise AssertionError("the tokens of SentencePiece are bytes in a row")

    @cached_property
    def _pieces(self) -> Pieces:
        table = [b""] * self._vocab_size
        byte_ids: dict[int, int] = {}
        for i, piece in enumerate(self._model.pieces):
            table[i] = piece.piece.replace(SPACE, " ").encode()
            if piece.type == BYTE:
                byte_ids[int(piece.piece[3:5], 16)] = i
                table[i] = bytes([int(piece.piece[3:5], 16)])
            elif piece.type in (CONTROL, UNKNOWN):
                table[i] = piece.piece.encode()
        for token, i in self.added.items():
            table[i] = token.encode()
        normalizer = self._model.normalizer_spec
        strips = normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
        complete = [byte_ids[byte] for byte in range(256)] if len(byte_ids) == 256 else None
        return Pieces(table, True, strips, complete)


def read_model(file: Path) -> Any:
    """Parse the SentencePiece model `file`; UserError where it is damaged or of a kind that is not read here."""
    library = _library()
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(file.read_bytes())
        library.SentencePieceProcessor().LoadFromSerializedProto(model.SerializeToString())
    except (DecodeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{file} is not a readable SentencePiece model ({reason}); copy it again") from error
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(
            f"{file} puts the marks of spaces behind words (treat_whitespace_as_suffix), which is not read here"
        )
    return model


def model_to_json(model: Any) -> str | None:
    """The `tokenizer.json` with the same ids as `model`, None where only the library itself gives them.

    That is BPE which takes texts as they are: no normalization beyond the mark in front, no pieces that are looked
    for before all others, and no two pieces of one score, whose order of merging would be open (but for runs of
    spaces, of which Llama 2 has some: these are compared).
    """
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    scores = {p.piece: p.score for p in model.pieces if p.type == NORMAL}
    merged = [score for piece, score in scores.items() if piece.strip(SPACE)]
    if (
        trainer.model_type != BPE
        or normalizer.precompiled_charsmap
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or any(piece.type in (USER_DEFINED, UNUSED) for piece in model.pieces)
        or len(set(merged)) < len(merged)
    ):
        return None
    prefix = normalizer.add_dummy_prefix
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    back += [
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    text = bpe_to_json(
        vocabulary,
        _merges(scores, vocabulary),
        {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type in (CONTROL, UNKNOWN)},
        {"type": "Sequence", "normalizers": steps},
        None,
        {"type": "Sequence", "decoders": back},
        unk_token=next(piece.piece for piece in model.pieces if piece.type == UNKNOWN),
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )
    return text if _merges_spaces_alike(model, text) else None


def _merges_spaces_alike(model: Any, content: str) -> bool:
    from megalm.tokenizer.huggingface import backend_from_json

    processor, backend = _library().SentencePieceProcessor(), backend_from_json(content)
    processor.LoadFromSerializedProto(model.SerializeToString())
    longest = max((len(piece.piece) for piece in model.pieces if not piece.piece.strip(SPACE)), default=0)
    runs = [" " * length for length in range(4 * longest + 1)]
    texts = [
        before + run + after for run in runs for before, after in (("", ""), ("", "a"), ("a", ""), ("a", "a"))
    ]
    ids = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return ids == processor.Encode(texts, return_type=int, num_threads=1)


def _merges(scores: dict[str, float], ids: dict[str, int]) -> list[list[str]]:
    """Every way to put two pieces together into a third, best score of that third first."""
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        ways = [[piece[:cut], piece[cut:]] for cut in range(1, len(piece))]
        ways = [way for way in ways if way[0] in scores and way[1] in scores]
        merges += sorted(ways, key=lambda way: (ids[way[0]], ids[way[1]]))
    return merges


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError("a SentencePiece model needs its library: pip install sentencepiece") from error
    return sentencepiece
