"""The section `lora`: low-rank adapters on the linear layers of a frozen model."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section

Target = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
ALL_TARGETS: list[Target] = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


class LoraConfig(Section):
    """Low-rank adaptation (arXiv:2106.09685): W x + alpha / rank B A x, with W frozen."""

    rank: int = Field(0, ge=0, description="Rows of A; 0: no adapters, all weights are trained.")
    alpha: float = Field(16.0, gt=0, description="The adapters' output is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    targets: list[Target] = Field(
        min_length=1,
        default_factory=lambda: list(ALL_TARGETS),
        description="Linear layers with adapters: queries, keys and values together, attention's output, both of the MLP. "
        "Experts have none.",
    )

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by."""
        return self.alpha / self.rank
