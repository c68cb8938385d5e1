"""The section `offload`: where the engine `deepspeed` keeps what the device does not hold."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class OffloadConfig(Section):
    """What the engine `deepspeed` moves out of the device's memory while it is not in use."""

    optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none",
        description="Where masters and moments rest: `cpu` from zero_stage 1 on (the update runs there), `nvme` with 3.",
    )
    parameters: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where each rank's share of the weights rests; needs zero_stage 3."
    )
    nvme_path: str | None = Field(None, description="Directory on a fast disk, of this node alone.")
