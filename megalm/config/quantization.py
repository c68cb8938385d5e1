"""The section `quantization`: a checkpoint whose linear layers lie in few bits, as `megalm compress` writes it."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class QuantizationConfig(Section):
    """How the weights of linear layers are stored and computed with; `megalm compress quantize` sets it, training refuses it."""

    method: Literal["none", "int8", "int4", "fp8"] = Field(
        "none",
        description="What the weights of linear layers lie in; embeddings, norms, routers and output layers stay whole.",
    )
    group_size: int | None = Field(
        None,
        ge=2,
        multiple_of=2,
        description="`int8`, `int4`: so many weights in a row along a layer's inputs share a scale, default: whole rows; under "
        "tensor parallelism each rank's part must be a multiple.",
    )
    activations: bool = Field(
        False,
        description="`int8`, `fp8` with whole rows: what comes into a linear layer is quantised, too, each token by itself as it "
        "comes (`megalm compress` calls it int8_dynamic; fp8 needs a GPU that multiplies it).",
    )
