"""Saves a tokenizer so that Hugging Face's transformers opens it with the same ids."""

import json
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.huggingface import HuggingFaceTokenizer
from megalm.tokenizer.load import (
    CONFIG_NAME,
    EXPORTED_MODEL_NAME,
    FILE_NAMES,
    METADATA_NAME,
    SPECIALS_NAME,
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    load_tokenizer,
    read_json,
)
from megalm.tokenizer.sentencepiece import SentencePieceTokenizer

ROLES = {
    "unk_token": ("<unk>", "[UNK]"),
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}
"""Special tokens by what transformers calls them, told by their usual spellings."""


def convert_tokenizer(source: str | Path, output: str | Path, overwrite: bool = False) -> Tokenizer:
    """Open the tokenizer at `source` and save it to the directory `output` with the chat template that it has.

    Returns the tokenizer. Raises UserError where `load_tokenizer` or `save_tokenizer` does.
    """
    tokenizer, path = load_tokenizer(source), Path(source)
    directory = path if path.is_dir() else path.parent
    if directory.resolve() == Path(output).resolve():
        raise UserError(f"{output} holds the tokenizer itself; choose another directory")
    save_tokenizer(tokenizer, output, _chat_template(directory), overwrite)
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer, output: str | Path, chat_template: str | None = None, overwrite: bool = False
) -> None:
    """Write `tokenizer` to the directory `output` in Hugging Face's format.

    That is a tokenizer.json, or the model itself for SentencePiece models whose ids only their own library gives, with
    tokenizer_config.json, special_tokens_map.json and, where there is one, the chat template. The same ids come from
    `AutoTokenizer.from_pretrained(output)` and `load_tokenizer(output)`. Raises UserError where `output` holds a
    tokenizer, unless `overwrite`.
    """
    output = Path(output)
    if not overwrite and any((output / name).exists() for name in FILE_NAMES):
        raise UserError(f"{output} holds a tokenizer; choose another directory or --overwrite")
    if not isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer):
        raise UserError(f"a {type(tokenizer).__name__} has no form that transformers reads")
    output.mkdir(parents=True, exist_ok=True)
    for name in (METADATA_NAME, *FILE_NAMES, TEMPLATE_NAME):
        (output / name).unlink(missing_ok=True)
    named = named_tokens(tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        atomic.write_text(output / TOKENIZER_NAME, tokenizer.content)
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    else:
        atomic.write_bytes(output / EXPORTED_MODEL_NAME, tokenizer.model)
        # the class of transformers that leaves all to the library; it adds these two unless they are named
        config = {"tokenizer_class": "BertGenerationTokenizer", "sep_token": named["eos_token"]}
        config["pad_token"] = named.get("pad_token", named["eos_token"])
        config["added_tokens_decoder"] = {
            str(i): {"content": token, "special": True, "normalized": False}
            for token, i in sorted(tokenizer.added.items(), key=lambda entry: entry[1])
        }
    others = [token for token in tokenizer.special_tokens if token not in named.values()]
    config = {**config, **named, "clean_up_tokenization_spaces": False}
    _write_json(output / CONFIG_NAME, {**config, "additional_special_tokens": others})
    _write_json(output / SPECIALS_NAME, named)
    _write_json(output / METADATA_NAME, {"eod_token": named["eos_token"], "hash": tokenizer.hash})
    if chat_template is not None:
        atomic.write_text(output / TEMPLATE_NAME, chat_template)


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that transformers has a name for; the end of a document is its `eos_token`."""
    specials = tokenizer.special_tokens
    found = {
        role: next((token for token in spellings if token in specials), None)
        for role, spellings in ROLES.items()
    }
    eod = next(token for token, i in specials.items() if i == tokenizer.eod_id)
    return {role: token for role, token in found.items() if token is not None} | {"eos_token": eod}


def _chat_template(directory: Path) -> str | None:
    file = directory / TEMPLATE_NAME
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(directory / CONFIG_NAME).get("chat_template")
    return template if isinstance(template, str) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
