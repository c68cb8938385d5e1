"""The model that a run begins with: its tokenizer must mean the same by each id."""

from megalm.checkpoint import find_checkpoint, read_config, tokenizer_of
from megalm.config.schema import Config
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.load import load_tokenizer


def check_base_tokenizer(config: Config, tokenizer: Tokenizer | None) -> None:
    """Raise UserError if `run.load` was trained with a tokenizer in which some id stands for another text than in `tokenizer`.

    Tokens that come after the base's last one are new ones, and special tokens may have other names: a chat template often
    takes spare ones over. Nothing is compared where one of the tokenizers is not known.
    """
    if not config.run.load:
        return
    base = find_checkpoint(config.run.load)
    if tokenizer is None:
        return
    path = tokenizer_of(base, read_config(base))
    if path is None or not path.exists():
        return
    other = load_tokenizer(path)
    if other.hash == tokenizer.hash:
        return
    special = {*other.special_tokens.values(), *tokenizer.special_tokens.values()}
    for number in range(min(other.vocab_size, tokenizer.vocab_size)):
        if number not in special and other.token_bytes(number) != tokenizer.token_bytes(number):
            found, expected = (
                one.token_bytes(number).decode("utf-8", "replace") for one in (tokenizer, other)
            )
            raise UserError(
                f"run.load {config.run.load} was trained with another tokenizer: id {number} is {expected!r} there and "
                f"{found!r} in tokenizer.path; use {path}, and build the data with it"
            )
