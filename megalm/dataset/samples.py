"""Shows training samples as text: what each is made of, document by document."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megalm.config.load import load_config, parse_config
from megalm.dataset.indexed import check_exists
from megalm.dataset.inspect import check_tokenizer
from megalm.dataset.opening import open_text
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.sidecar import read_sidecar
from megalm.dataset.stream import TokenStream
from megalm.errors import UserError
from megalm.tokenizer import Tokenizer, load_tokenizer


def show_samples(
    stream: TokenStream | PackStream, tokenizer: Tokenizer, first: int = 0, count: int = 1
) -> list[dict[str, Any]]:
    """Return `count` samples from number `first` on, as text with the borders of documents.

    Of each: its source, the tokens that are not padding, the labels that count, and its pieces, of which each is of one
    document: its number, the first of its tokens and how many, its text, and its origin where that is recorded. Raises
    UserError for another tokenizer than a source's.
    """
    samples = []
    for sample in range(first, first + count):
        pieces = stream.pieces(sample)
        dataset = pieces[0].dataset
        check_tokenizer(dataset, tokenizer)
        entries = []
        for piece in pieces:
            entry: dict[str, Any] = {
                "document": piece.document,
                "first": piece.first,
                "tokens": piece.tokens,
                "text": tokenizer.decode(piece.ids().tolist()),
            }
            if dataset.origins is not None:
                entry["origin"] = dataset.origins.origin(piece.document)._asdict()
            entries.append(entry)
        samples.append(
            {
                "sample": sample,
                "source": str(dataset.prefix),
                "tokens": sum(piece.tokens for piece in pieces),
                "counted": int(stream.batch(np.array([sample])).loss_mask_BS.sum()),
                "pieces": entries,
            }
        )
    return samples


def open_for_show(
    source: Path, overrides: Sequence[str], tokenizer_path: Path | None, valid: bool = False
) -> tuple[TokenStream | PackStream, Tokenizer]:
    """Open the blend of a run's configuration (.yaml), or of one dataset, and its tokenizer.

    overrides: settings as for training, such as batch.seq_length=2048. valid: the validation blend. Raises UserError where
    a source is missing or does not fit, and for an encoder's configuration.
    """
    if source.suffix in (".yaml", ".yml"):
        config = load_config(source, overrides)
    else:
        blend = [{"path": str(source)}]
        model = {"position_embedding": "rope"}  # sets no limit to seq_length
        config = parse_config({"data": {"train": blend, "valid": blend}, "model": model}, overrides)
    if config.model.architecture != "gpt":
        raise UserError(
            f"samples of model.architecture `{config.model.architecture}` are not shown: give a configuration of `gpt`"
        )
    if config.task in ("classify", "reward", "dpo"):
        raise UserError(
            f"samples of task `{config.task}` are documents: show those, with --document and the dataset's prefix"
        )
    sources = config.data.valid if valid else config.data.train
    if not sources:
        raise UserError(f"{source} names no data.{'valid' if valid else 'train'}: add token files")
    config.model.vocab_size = None  # text is shown by the tokenizer, whatever the model's vocabulary
    given = tokenizer_path or (Path(config.tokenizer.path) if config.tokenizer.path else None)
    return open_text(config, sources, None), tokenizer_of(sources[0].path, given)


def tokenizer_of(prefix: str | Path, given: Path | None) -> Tokenizer:
    """Open the tokenizer that is given, else the one that the dataset's sidecar names; UserError where there is neither."""
    if given is not None:
        return load_tokenizer(given)
    check_exists(prefix)
    recorded = (read_sidecar(prefix) or {}).get("tokenizer")
    if recorded is None:
        raise UserError(f"{prefix} does not record its tokenizer: name it with --tokenizer")
    try:
        return load_tokenizer(recorded)
    except UserError as error:
        raise UserError(
            f"the tokenizer that {prefix} records does not open ({error}); name it with --tokenizer"
        ) from None
