"""The recipe of an adaptation: how the domain's files become documents, how much general text is replayed, how to train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from megalm.config.load import explain, override, read_yaml
from megalm.config.schema import Config
from megalm.config.section import Section
from megalm.errors import UserError


class AdaptRecipe(Section):
    """What `megalm adapt` does; the model, its tokenizer and its context are the base's."""

    corpus: str = Field(
        description="Recipe of the corpus, a path from this file on; its sources are replaced by the files given, its first "
        "source says what kind they are where that is `code`."
    )
    splits: str = Field("96,4,0", description="Shares of the documents for training, validation and test.")
    fim_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the training documents rearranged for filling in the middle; needs a tokenizer with its tokens.",
    )
    replay: float = Field(
        ge=0, lt=1, description="Share of the training samples that are general text, against forgetting."
    )
    epochs: float = Field(
        gt=0,
        allow_inf_nan=False,
        description="Passes over the domain's text; train.steps follows unless it is given.",
    )
    warmup: float = Field(
        0.05, ge=0, le=1, description="Share of the steps in which the learning rate is warmed up again."
    )
    validations: int = Field(10, gt=0, description="How often the held-out text is looked at in training.")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Sections of a training configuration, laid over what follows from base and data.",
    )


def load_adapt_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[AdaptRecipe, Path]:
    """Read the YAML file `path`, apply `key=value`; the recipe and the path of its corpus recipe. UserError with one line.

    Unknown keys and wrong types of `config` are told here, long before there is something to train on.
    """
    path = Path(path)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys (corpus, replay, epochs, ...), found {type(data).__name__}")
    try:
        recipe = AdaptRecipe.model_validate(override(data, overrides))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, AdaptRecipe)}") from None
    try:
        Config.model_validate(recipe.config)
    except ValidationError as error:
        raise UserError(f"{path}: in `config`, {explain(error)}") from None
    return recipe, path.parent / recipe.corpus
