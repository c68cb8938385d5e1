"""What a family of models is: its config.json, and the names and forms of its tensors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from megalm.config.model import ModelConfig
from megalm.convert.rules import Rule
from megalm.errors import UserError

Fixed: TypeAlias = Mapping[str, Any]


class Family(ABC):
    """A `model_type` of Hugging Face's transformers.

    ours: fields of the section `model` that every model of the family has. theirs: entries of its config.json that our
    model computes for one value only; another value, where the entry is there, is refused. defaults: what transformers takes
    for entries that are not there, where families differ in it.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    """The class that transformers loads."""
    prefix: ClassVar[str]
    """What the names of the body's tensors begin with; directories saved from the bare body lack it."""
    ours: ClassVar[Fixed]
    theirs: ClassVar[Fixed]
    defaults: ClassVar[Fixed] = {}
    has_experts: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = ()
    """Endings of names of tensors that hold no weights: masks, positions."""

    @abstractmethod
    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the section `model` that differ from model to model; UserError for what we do not compute."""

    @abstractmethod
    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Entries of config.json for a model of this family."""

    @abstractmethod
    def rules(self, model: ModelConfig) -> list[Rule]:
        """A rule for every parameter of ours, in the order of the layers."""

    def read(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The whole section `model` of a config.json."""
        for name, value in self.theirs.items():
            found = config.get(name, value)
            if found != value:
                raise UserError(f"{where}: {name} is {found!r}, and only {value!r} has a counterpart here")
        try:
            return {**self.ours, **self.fields({**self.defaults, **config})}
        except KeyError as error:
            raise UserError(f"{where}: {error.args[0]} is missing; is it a config.json of a model?") from None

    def write(self, model: ModelConfig, dtype: str) -> dict[str, Any]:
        """The whole config.json. dtype: as torch calls it, e.g. `bfloat16`."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": model.vocab_size,
            **self.config(model),
            "tie_word_embeddings": model.tie_embeddings,
            "dtype": dtype,
        }

    def difference(self, model: ModelConfig) -> str | None:
        """What every model of this family has and this one has not; None if it can be one."""
        defaults = ModelConfig()
        for name in _ARCHITECTURE:
            value, found = self.ours.get(name, getattr(defaults, name)), getattr(model, name)
            if found != value:
                return f"{name} {value}, this one {found}"
        if bool(model.moe.num_experts) != self.has_experts:
            return "experts" if self.has_experts else "no experts"
        return None


_ARCHITECTURE = (
    "architecture",
    "position_embedding",
    "normalization",
    "norm_position",
    "activation",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
)
"""Fields that tell families apart; each has the default of the section `model` unless a family says otherwise."""
