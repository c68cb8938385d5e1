"""The options of the step `mix`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from megalm.config.section import Section
from megalm.errors import UserError
from megalm.splits import split_limits


class Share(Section):
    """How much of a source is taken: by weight, or a budget of its own."""

    weight: float | None = Field(None, gt=0, description="Share of `total` beside the other weights.")
    budget: int | None = Field(None, ge=0, description="So many units of this source; not beside `weight`.")
    max_repeats: float = Field(
        1,
        gt=0,
        description="How often a document may be repeated on average; more than about 4 teaches little "
        "(Muennighoff et al. 2023).",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("weight") is None) == (values.get("budget") is None):
            raise ValueError("give either `weight` or `budget`")
        return values


class Settings(Section):
    """Options of the step `mix`."""

    sources: dict[str, Share] = Field(
        {},
        description="What is taken of each source, by the `source` in documents' metadata; if empty, every document once.",
    )
    source_key: str = Field("source", description="The metadata key that names a document's source.")
    unit: Literal["documents", "characters", "tokens"] = Field(
        "characters", description="What budgets and totals count; tokens need `tokenizer`."
    )
    tokenizer: Path | None = Field(None, description="The tokenizer that counts tokens.")
    total: int | None = Field(
        None,
        ge=1,
        description="Units of all sources with weights together; by default as many as `max_repeats` lets the scarcest give.",
    )
    seed: int = Field(0, ge=0, description="Seed of the choice and of the order.")
    splits: str = Field(
        "1",
        description="Shares of train, valid and test, such as 98,1,1. Where a document goes depends on its text alone, "
        "as in `megalm dataset build`.",
    )
    shard_bytes: int = Field(
        128 << 20, ge=1 << 10, description="Text of a shard; two or three times as much memory is used."
    )

    @field_validator("splits")
    @classmethod
    def _known_splits(cls, splits: str) -> str:
        try:
            split_limits(splits)
        except UserError as error:
            raise ValueError(str(error)) from None
        return splits

    @model_validator(mode="after")
    def _tokens_need_a_tokenizer(self) -> "Settings":
        if self.unit == "tokens" and self.tokenizer is None:
            raise ValueError("unit is tokens; give the `tokenizer` that counts them")
        return self
