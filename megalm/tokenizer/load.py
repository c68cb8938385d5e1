"""Opens a tokenizer that megalm or Hugging Face saved."""

import json
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
VOCABULARY_NAME = "vocab.txt"
METADATA_NAME = "megalm.json"
CONFIG_NAME = "tokenizer_config.json"
COMMON_EOD_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


def load_tokenizer(path: str | Path, eod_token: str | None = None) -> Tokenizer:
    """Open the tokenizer in the directory `path`, or the `tokenizer.json` or BERT's `vocab.txt` that it names.

    The token that ends documents is `eod_token`, or what the `megalm.json` or Hugging Face's
    `tokenizer_config.json` beside it says, or the first common name that the vocabulary has. Raises UserError
    where the files are missing, damaged, not the ones that were saved, or no such token is found.
    """
    from megalm.tokenizer.huggingface import HuggingFaceTokenizer, backend_from_json
    from megalm.tokenizer.wordpiece import vocabulary_to_json

    file = _file_of(Path(path))
    if not file.is_file():
        raise UserError(f"no tokenizer at {file}; train one with `megalm tokenizer train` or check the path")
    config = _read_json(file.parent / CONFIG_NAME)
    try:
        if file.suffix == ".txt":
            content = vocabulary_to_json(file, config.get("do_lower_case"))
        else:
            content = file.read_text(encoding="utf-8")
        backend = backend_from_json(content)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{file} is not a readable tokenizer.json ({error}); train or copy it again"
        ) from error

    metadata = _read_json(file.parent / METADATA_NAME)
    if eod_token is None:
        eod_token = metadata.get("eod_token") or _token_text(config.get("eos_token"))
    if eod_token is None:
        eod_token = next((t for t in COMMON_EOD_TOKENS if backend.token_to_id(t) is not None), None)
    if eod_token is None:
        raise UserError(
            f'{file} names no token to end documents; write {{"eod_token": "..."}} into {METADATA_NAME}'
        )
    tokenizer = HuggingFaceTokenizer(content, eod_token)
    if metadata.get("hash", tokenizer.hash) != tokenizer.hash:
        raise UserError(
            f"{file} was changed after {METADATA_NAME} was written; train or copy the tokenizer again"
        )
    return tokenizer


def tokenizer_files(path: Path) -> list[Path]:
    """The files that opening `path` reads or may read: what a copy of the tokenizer consists of."""
    if path.is_dir():
        return sorted([*path.glob("*.json"), *path.glob(VOCABULARY_NAME)])
    beside = path.parent / CONFIG_NAME
    return [path, beside] if path.suffix == ".txt" and beside.is_file() else [path]


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    names = (TOKENIZER_NAME, VOCABULARY_NAME)
    return next((path / name for name in names if (path / name).is_file()), path / TOKENIZER_NAME)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); copy it again") from error


def _token_text(token: Any) -> str | None:
    """Hugging Face writes a token as its text or as an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
