"""The model families of Hugging Face that have a counterpart here, by the `model_type` in their config.json."""

from typing import Any

from megalm.config.model import ModelConfig
from megalm.config.suggest import nearest
from megalm.convert.families.base import Family
from megalm.convert.families.bert import Bert, MegatronBert
from megalm.convert.families.gpt2 import Gpt2
from megalm.convert.families.llama import Llama, Mistral, Qwen2, Qwen3
from megalm.convert.families.mixtral import Mixtral
from megalm.errors import UserError

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (Gpt2(), Llama(), Mistral(), Qwen2(), Qwen3(), Mixtral(), Bert(), MegatronBert())
}


def family_named(model_type: Any, where: str) -> Family:
    """The family that a config.json names; UserError if there is none here."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{where}: model_type {model_type!r} has no counterpart here"
            f"{nearest(str(model_type), FAMILIES)} (known: {', '.join(FAMILIES)})"
        )
    return FAMILIES[model_type]


def family_of(model: ModelConfig, wanted: str | None = None) -> Family:
    """The family that can hold `model`: `wanted` if it is named, else the first that fits; UserError if none does."""
    if wanted is not None:
        family = family_named(wanted, "--family")
        if wrong := family.difference(model):
            raise UserError(f"a model of {family.model_type} has {wrong}; choose another --family")
        return family
    reasons = {}
    for name, family in FAMILIES.items():
        wrong = family.difference(model)
        if wrong is None:
            return family
        reasons[name] = wrong
    near = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise UserError(f"no model family of Hugging Face holds this model ({near})")
