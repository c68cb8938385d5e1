"""Opens a tokenizer that megalm, Hugging Face, SentencePiece, tiktoken or BERT saved."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.tokenizer.added import added_tokens, token_text, with_added_tokens
from megalm.tokenizer.base import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
SENTENCEPIECE_NAME = "tokenizer.model"
VOCABULARY_NAME = "vocab.txt"
METADATA_NAME = "megalm.json"
CONFIG_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"
TEMPLATE_NAME = "chat_template.jinja"
GPT2_NAMES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
"""Names of a GPT-2 vocabulary and of the merges that belong to it."""
SPECIALS_NAME = "special_tokens_map.json"
EXPORTED_MODEL_NAME = "spiece.model"
"""Where transformers looks for a SentencePiece model."""
FILE_NAMES = (
    TOKENIZER_NAME,
    SENTENCEPIECE_NAME,
    EXPORTED_MODEL_NAME,
    VOCABULARY_NAME,
    *GPT2_NAMES,
    *GPT2_NAMES.values(),
    CONFIG_NAME,
    ADDED_NAME,
    SPECIALS_NAME,
)
"""What a tokenizer may consist of, beside METADATA_NAME and a chat template."""
PATTERNS = (TOKENIZER_NAME, *GPT2_NAMES, SENTENCEPIECE_NAME, "*.model", "*.tiktoken", VOCABULARY_NAME)
"""What a directory is searched for, in this order."""
COMMON_EOD_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
LARGEST_FILE = 1 << 28
"""Bytes; ten times what the largest known tokenizers take."""


def load_tokenizer(path: str | Path, eod_token: str | None = None) -> Tokenizer:
    """Open the tokenizer in the directory `path`, or the file of one that it names.

    These are a `tokenizer.json`, GPT-2's `vocab.json` or `encoder.json` with their merges beside, a SentencePiece
    `.model`, a rank file of tiktoken, or BERT's `vocab.txt`. The token that ends documents is `eod_token`, or what
    the `megalm.json` or Hugging Face's `tokenizer_config.json` beside it says, or the first common name that the
    vocabulary has. Raises UserError where the files are missing, damaged, not the ones that were saved, or no such
    token is found.
    """
    file = _file_of(Path(path))
    if not file.is_file():
        raise UserError(f"no tokenizer at {file}; train one with `megalm tokenizer train` or check the path")
    if file.stat().st_size > LARGEST_FILE:
        raise UserError(f"{file} has {file.stat().st_size} bytes, more than any tokenizer; check the path")
    config, metadata = read_json(file.parent / CONFIG_NAME), read_json(file.parent / METADATA_NAME)
    wanted = eod_token or metadata.get("eod_token") or token_text(config.get("eos_token"))
    try:
        tokenizer = _open(file, config, metadata, wanted)
        found = tokenizer.hash
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries raise bare Exception, and panic, which is none
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is not a readable tokenizer ({reason}); train or copy it again") from error
    if metadata.get("hash", found) != found:
        raise UserError(
            f"{file} was changed after {METADATA_NAME} was written; train or copy the tokenizer again"
        )
    return tokenizer


def holds_tokenizer(directory: Path) -> bool:
    """Whether `directory` is one in which megalm or Hugging Face's libraries saved a tokenizer."""
    return any((directory / name).is_file() for name in (TOKENIZER_NAME, CONFIG_NAME, METADATA_NAME))


def tokenizer_files(path: Path) -> list[Path]:
    """The files that opening `path` reads or may read: what a copy of the tokenizer consists of."""
    file = _file_of(path)
    beside = [_merges_of(file)] if file.name in GPT2_NAMES else []
    if path.is_dir():
        return sorted({*path.glob("*.json"), *path.glob(TEMPLATE_NAME), file, *beside})
    if file.name != TOKENIZER_NAME:
        beside += [file.with_name(name) for name in (CONFIG_NAME, METADATA_NAME, ADDED_NAME)]
    return [file, *(other for other in beside if other.is_file())]


def _open(file: Path, config: dict[str, Any], metadata: dict[str, Any], eod_token: str | None) -> Tokenizer:
    from megalm.tokenizer.huggingface import HuggingFaceTokenizer, backend_from_json
    from megalm.tokenizer.sentencepiece import SentencePieceTokenizer, model_to_json, read_model

    added = added_tokens(config, read_json(file.parent / ADDED_NAME))
    if file.suffix == ".model" and not _is_ranks(file):
        model = read_model(file)
        content = model_to_json(model)
        if content is None:
            tokens = {piece.piece for piece in model.pieces} | {token["content"] for token in added}
            return SentencePieceTokenizer(model, eod_token or _common_eod(file, tokens), added)
    else:
        content = _content(file, config, metadata)
    content = with_added_tokens(content, added)
    if eod_token is None:
        eod_token = _common_eod(file, backend_from_json(content).get_vocab(with_added_tokens=True))
    return HuggingFaceTokenizer(content, eod_token)


def _content(file: Path, config: dict[str, Any], metadata: dict[str, Any]) -> str:
    """The text of the `tokenizer.json` that is `file` or stands for it."""
    from megalm.tokenizer.formats import gpt2_to_json, ranks_to_json
    from megalm.tokenizer.wordpiece import vocabulary_to_json

    if file.name in GPT2_NAMES:
        if not _merges_of(file).is_file():
            raise UserError(f"{_merges_of(file)} is missing: the vocabulary beside it is half of a tokenizer")
        return gpt2_to_json(file, _merges_of(file), config)
    if file.suffix in (".tiktoken", ".model"):
        return ranks_to_json(file, metadata)
    if file.suffix == ".txt":
        return vocabulary_to_json(file, config.get("do_lower_case"))
    return file.read_text(encoding="utf-8")


def _file_of(path: Path) -> Path:
    if path.name in GPT2_NAMES.values():  # the vocabulary comes first
        names = {merges: vocabulary for vocabulary, merges in GPT2_NAMES.items()}
        return path.with_name(names[path.name])
    if not path.is_dir():
        return path
    for pattern in PATTERNS:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{path} holds several tokenizers ({found[0].name}, {found[1].name}); name one of them"
            )
        if found and (found[0].name not in GPT2_NAMES or _merges_of(found[0]).is_file()):
            return found[0]
    return path / TOKENIZER_NAME


def _merges_of(file: Path) -> Path:
    return file.with_name(GPT2_NAMES[file.name])


def _is_ranks(file: Path) -> bool:
    """Whether a `.model` is tiktoken's list of ranks, as of Llama 3, and no SentencePiece model."""
    with open(file, "rb") as lines:
        first = lines.readline(1024).split()
    return len(first) == 2 and first[1].isdigit()


def _common_eod(file: Path, tokens: Container[str]) -> str:
    found = next((token for token in COMMON_EOD_TOKENS if token in tokens), None)
    if found is None:
        raise UserError(
            f'{file} names no token to end documents; write {{"eod_token": "..."}} into {METADATA_NAME}'
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in the file `path`, an empty one where there is no file; UserError where it is damaged."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return content
