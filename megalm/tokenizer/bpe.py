"""Trains a byte-level BPE tokenizer (Sennrich et al. 2016, Radford et al. 2019) from documents."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from megalm import atomic
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.documents import SampleBy, check_sample_by, expand_inputs, read_documents
from megalm.tokenizer.load import METADATA_NAME, TOKENIZER_NAME, load_tokenizer

EOD_TOKEN = "<|endoftext|>"
BYTES = 256

logger = logging.getLogger(__name__)


def train_bpe(
    inputs: Sequence[str | Path],
    vocab_size: int,
    output: str | Path,
    special_tokens: Sequence[str] = (),
    text_key: str = "text",
    sample_by: SampleBy = "document",
    sample_bytes: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Tokenizer:
    """Train on the documents of `inputs` and write `output`/tokenizer.json and `output`/megalm.json.

    Text is cut as in GPT-2 before merging; all 256 bytes are tokens, so nothing is unknown. `<|endoftext|>`
    is id 0 and ends documents; `special_tokens` follow as ids 1, 2, ... `sample_bytes` limits the training
    text: each input gives its first documents up to its share, by file size. Equal inputs give equal files.
    Returns the tokenizer, whose vocabulary is smaller than `vocab_size` where the text has too few pairs to
    merge. Raises UserError for unreadable or empty inputs, a `vocab_size` below 256 + the special tokens, or a
    tokenizer that is there already (datasets may have been made with it) unless `overwrite`.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    specials = [EOD_TOKEN, *(token for token in special_tokens if token != EOD_TOKEN)]
    if vocab_size < BYTES + len(specials):
        raise UserError(
            f"vocab_size is {vocab_size}, but {BYTES} bytes and {len(specials)} special tokens need at least "
            f"{BYTES + len(specials)}; raise vocab_size"
        )
    check_sample_by(sample_by)
    if "" in specials:
        raise UserError("a special token is empty; give it a text")
    if sample_bytes is not None and sample_bytes < 1:
        raise UserError(f"sample_bytes is {sample_bytes}; it must be at least 1")
    output = Path(output)
    if (output / TOKENIZER_NAME).exists() and not overwrite:
        raise UserError(
            f"{output} holds a tokenizer, with which datasets may have been made; choose another directory or --overwrite"
        )
    files = expand_inputs(inputs)

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    backend.train_from_iterator(_training_texts(files, text_key, sample_by, sample_bytes), trainer)

    atomic.write_text(output / TOKENIZER_NAME, backend.to_str(pretty=True))
    (output / METADATA_NAME).unlink(missing_ok=True)
    tokenizer = load_tokenizer(output, eod_token=EOD_TOKEN)
    metadata = {"kind": "bpe", "eod_token": EOD_TOKEN, "hash": tokenizer.hash}
    atomic.write_text(output / METADATA_NAME, json.dumps(metadata, indent=2) + "\n")
    if tokenizer.vocab_size < vocab_size:
        logger.warning("the text gave %d tokens of the %d asked for", tokenizer.vocab_size, vocab_size)
    return tokenizer


def _training_texts(
    files: list[Path], text_key: str, sample_by: SampleBy, sample_bytes: int | None
) -> Iterator[str]:
    total = sum(path.stat().st_size for path in files)
    empty = True
    for path in files:
        budget = None if sample_bytes is None else sample_bytes * path.stat().st_size / max(total, 1)
        used = 0
        for document in read_documents(path, text_key, sample_by):
            yield document.text
            empty = empty and not document.text
            used += len(document.text.encode())
            if budget is not None and used >= budget:
                break
    if empty:
        raise UserError(f"no text in {', '.join(map(str, files))}; give files that hold some")
