"""Takes a model's tokenizer and chat template along."""

import shutil
from pathlib import Path

from megalm.errors import UserError
from megalm.tokenizer.chat import load_chat_template, stored_template
from megalm.tokenizer.export import convert_tokenizer, named_tokens
from megalm.tokenizer.load import CONFIG_NAME, PATTERNS, load_tokenizer, tokenizer_files

_OF_MODELS = ("config.json", "generation_config.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer, chat template included; nothing where there is none."""
    if source.is_dir() and not any(file for pattern in PATTERNS for file in source.glob(pattern)):
        return
    if not source.exists():
        raise UserError(f"{source}: no such tokenizer; name a directory with one, or its file")
    target.mkdir(exist_ok=True)
    for file in tokenizer_files(source):
        if file.name not in _OF_MODELS and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    load_tokenizer(target)


def export_tokenizer(source: Path, target: Path) -> dict[str, int]:
    """As `copy_tokenizer`, for transformers: with a tokenizer_config.json where none said so far which tokens are special.

    Returns the ids that a config.json names, as far as the tokenizer has such tokens.
    """
    directory = source if source.is_dir() else source.parent
    try:
        if (directory / CONFIG_NAME).is_file():
            copy_tokenizer(source, target)
        else:
            convert_tokenizer(source, target)
    except UserError:  # it has no form that transformers reads; ours opens it all the same
        copy_tokenizer(source, target)
    tokenizer = load_tokenizer(target)
    names = named_tokens(tokenizer)
    roles = [role for role in ("bos_token", "eos_token", "pad_token") if role in names]
    return {f"{role}_id": tokenizer.special_tokens[names[role]] for role in roles}


def turn_ends(source: Path) -> list[int]:
    """Ids of the tokens with which the chat template beside a tokenizer ends an answer; none without a template that works."""
    try:
        if stored_template(source) is None:
            return []
        tokenizer = load_tokenizer(source)
        ends = load_chat_template(source, tokenizer).end_of_turn()
    except UserError:
        return []
    return [tokenizer.special_tokens[text] for text in ends]
