"""Opens a tokenizer that megalm or Hugging Face saved."""

import json
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
METADATA_NAME = "megalm.json"
COMMON_EOD_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


def load_tokenizer(path: str | Path, eod_token: str | None = None) -> Tokenizer:
    """Open the tokenizer in the directory `path`, or the `tokenizer.json` that it names.

    The token that ends documents is `eod_token`, or what the `megalm.json` or Hugging Face's
    `tokenizer_config.json` beside it says, or the first common name that the vocabulary has. Raises UserError
    where the files are missing, damaged, not the ones that were saved, or no such token is found.
    """
    from megalm.tokenizer.huggingface import HuggingFaceTokenizer, backend_from_json

    path = Path(path)
    file = path / TOKENIZER_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no tokenizer at {file}; train one with `megalm tokenizer train` or check the path")
    try:
        content = file.read_text(encoding="utf-8")
        backend = backend_from_json(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{file} is not a readable tokenizer.json ({error}); train or copy it again"
        ) from error

    metadata = _read_json(file.parent / METADATA_NAME)
    config = _read_json(file.parent / "tokenizer_config.json")
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
