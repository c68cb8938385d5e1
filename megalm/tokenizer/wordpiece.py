"""WordPiece vocabularies: BERT's `vocab.txt`, and which ids masked language modelling needs of a tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers

from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer

CONTINUATION = "##"
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "[PAD]")
UNKNOWN = "[UNK]"


@dataclass(frozen=True)
class MaskingVocabulary:
    """Ids that frame, hide and pad a text, and which ids go on with the word before them (None: not known)."""

    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    continues_V: NDArray[np.bool_] | None


def masking_vocabulary(tokenizer: Tokenizer) -> MaskingVocabulary:
    """What masked language modelling needs of `tokenizer`; raises UserError if it lacks one of BERT's special tokens."""
    ids = {token: tokenizer.token_id(token) for token in SPECIAL_TOKENS}
    missing = [token for token, number in ids.items() if number is None]
    if missing:
        raise UserError(
            f"the tokenizer has no token {' '.join(missing)}, which task `mlm` needs: use a WordPiece tokenizer with "
            f"{' '.join(SPECIAL_TOKENS)}"
        )
    cls_id, sep_id, mask_id, pad_id = (int(number or 0) for number in ids.values())
    pieces = tokenizer.ids_that_start_with(CONTINUATION)
    continues_V = np.zeros(tokenizer.vocab_size, bool)
    continues_V[pieces] = True
    return MaskingVocabulary(
        tokenizer.vocab_size, cls_id, sep_id, mask_id, pad_id, continues_V if pieces else None
    )


def vocabulary_to_json(file: Path, lowercase: bool | None) -> str:
    """The `tokenizer.json` of BERT's tokenizer with the `vocab.txt` `file`, a token a line, its id the line's number.

    lowercase: fold case and strip accents before splitting; None: unless the vocabulary has capital letters. Raises
    UserError where [UNK] is missing or a token stands there twice.
    """
    # not splitlines: a vocabulary may hold other separators as tokens
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(lines)}
    if len(vocabulary) < len(lines) or UNKNOWN not in vocabulary:
        raise UserError(f"{file} is no WordPiece vocabulary: a token stands twice or {UNKNOWN} is missing")
    if lowercase is None:
        lowercase = not any(token != token.lower() for token in vocabulary if not token.startswith("["))
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))  # type: ignore[call-arg]
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    backend.decoder = decoders.WordPiece()  # type: ignore[assignment]
    return backend.to_str()
