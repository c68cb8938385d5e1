"""The tokenizer and the chat template that belong to a checkpoint; imports no torch."""

from pathlib import Path

from megalm.checkpoint.directory import tokenizer_of, tokenizer_places
from megalm.config.schema import Config
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.tokenizer import Tokenizer, load_tokenizer
from megalm.tokenizer.chat import ChatTemplate, load_chat_template


def open_tokenizer(checkpoint: Path, config: Config) -> Tokenizer:
    """The checkpoint's tokenizer, whose place is put into `config`; UserError where it has none."""
    found = tokenizer_of(checkpoint, config)
    if found is None:
        raise UserError(
            f"{checkpoint}: no tokenizer in it or in its run and none in its config.yaml; copy the model's to "
            f"{tokenizer_places(checkpoint)[-1]}"
        )
    config.tokenizer.path = str(found)  # where the copy lies that goes with the checkpoint
    return load_tokenizer(found)


def trained_template(config: Config, tokenizer: Tokenizer, given: str | None) -> ChatTemplate:
    """The template that is `given` by name or file, else that of the training data, else the tokenizer's own."""
    path = config.tokenizer.path
    assert path is not None
    for source in config.data.train:
        chat = (read_sidecar(source.path) or {}).get("chat")
        if chat and not given:
            return ChatTemplate(chat["template"], tokenizer, chat["variables"], chat["template_name"])
    return load_chat_template(given or path, tokenizer, config=path)
