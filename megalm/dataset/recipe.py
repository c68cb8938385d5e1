"""What determines the result of a build, apart from its inputs."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from megalm.dataset.chat import ChatSettings
from megalm.dataset.fim import FimTokens
from megalm.errors import UserError
from megalm.tokenizer.documents import SampleBy


@dataclass(frozen=True)
class Extras:
    """What a build adds to the plain texts.

    origins: record where each document came from. id_key: and its name, which a JSON line has under this key. prompt_key:
    a text under this key goes before the document's own and does not count in the loss. fim_rate: share of the documents
    that are rearranged for filling in the middle; fim_spm_rate: of these, the share with the suffix first. chat: the inputs are
    conversations, written by a chat template, of which only what the assistant says counts.
    """

    origins: bool = False
    id_key: str | None = None
    prompt_key: str | None = None
    fim_rate: float = 0.0
    fim_spm_rate: float = 0.5
    chat: ChatSettings | None = None

    def __post_init__(self) -> None:
        for name in ("fim_rate", "fim_spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")
        if self.fim_spm_rate != 0.5 and not self.fim_rate:
            raise UserError(
                f"fim_spm_rate is {self.fim_spm_rate} without a fim_rate, of which it is a share; give one"
            )
        if self.fim_rate and self.prompt_key:
            raise UserError(
                f"fim_rate {self.fim_rate} and prompt_key '{self.prompt_key}' do not go together: texts that answer a prompt "
                "are not rearranged; leave one of them out"
            )
        if self.chat and (self.fim_rate or self.prompt_key):
            raise UserError(
                "conversations have prompts of their own and are not rearranged; leave prompt_key and fim_rate out"
            )

    @property
    def masked(self) -> bool:
        """Whether some tokens do not count in the loss."""
        return self.prompt_key is not None or self.chat is not None

    @property
    def traced(self) -> bool:
        """Whether origins are recorded."""
        return self.origins or self.id_key is not None

    def to_json(self) -> dict[str, Any]:
        """Return what differs from a plain build."""
        found = asdict(self)
        return {
            field.name: found[field.name]
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }


@dataclass(frozen=True)
class Recipe:
    """Everything but the inputs that determines the result."""

    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    eod_id: int
    append_eod: bool
    text_key: str
    sample_by: SampleBy
    splits: str
    seed: int
    extras: Extras = Extras()
    fim_tokens: FimTokens | None = None

    def settings(self) -> dict[str, Any]:
        """Return what a record must say of a dataset that this recipe made."""
        names = ("tokenizer_hash", "eod_id", "append_eod", "text_key", "sample_by", "splits", "seed")
        settings = {name: getattr(self, name) for name in names} | self.extras.to_json()
        return settings | ({"fim_tokens": asdict(self.fim_tokens)} if self.fim_tokens else {})
