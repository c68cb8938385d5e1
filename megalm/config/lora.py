"""The section `lora`: low-rank adapters on the linear layers of a frozen model."""

import math
from typing import Literal

from pydantic import Field

from megalm.config.section import Section

Target = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
ALL_TARGETS: list[Target] = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


class LoraConfig(Section):
    """Low-rank adaptation (arXiv:2106.09685): W x + alpha / rank B A x, with W frozen."""

    rank: int = Field(0, ge=0, description="Rows of A; 0: no adapters, all weights are trained.")
    alpha: float = Field(16.0, gt=0, description="The adapters' output is multiplied by alpha / rank.")
    scaling: Literal["standard", "rslora"] = Field(
        "standard",
        description="`rslora`: alpha / sqrt(rank) instead, which keeps high ranks learning (arXiv:2312.03732).",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: list[Target] = Field(
        min_length=1,
        default_factory=lambda: list(ALL_TARGETS),
        description="Linear layers with adapters: queries, keys and values together, attention's output, both of the MLP.",
    )
    experts: bool = Field(
        False,
        description="Each expert of a mixture has adapters of its own on both layers of its MLP, as far as `targets` names them.",
    )
    quantize_base: Literal["none", "int8", "int4", "nf4"] = Field(
        "none",
        description="QLoRA: all linear layers of the frozen model, experts too, lie in memory in this form (8.5, 4.6 and 4.5 bits a "
        "weight with groups of 64). int8 and int4 need torchao.",
    )
    quantize_group_size: int = Field(
        64,
        ge=2,
        multiple_of=2,
        description="So many weights in a row along a layer's inputs share a scale; each rank's part must be a multiple.",
    )

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)
