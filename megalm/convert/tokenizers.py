"""Takes a model's tokenizer and chat template along."""

import shutil
from pathlib import Path

from megalm.tokenizer.load import PATTERNS, load_tokenizer, tokenizer_files

_OF_MODELS = ("config.json", "generation_config.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer, chat template included; nothing where there is none."""
    if source.is_dir() and not any(file for pattern in PATTERNS for file in source.glob(pattern)):
        return
    target.mkdir(exist_ok=True)
    for file in tokenizer_files(source):
        if file.name not in _OF_MODELS and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    load_tokenizer(target)
