"""Items of `optimizer.groups`: parameters that are trained with a learning rate or decay of their own."""

from pydantic import Field

from megalm.config.section import Section


class ParameterGroup(Section):
    """Parameters by name, and what is theirs; of several groups that match one, the first counts."""

    name: str = Field(
        min_length=1, pattern=r"^\w+$", description="In the log: the group's learning rate is `lr_NAME`."
    )
    match: list[str] = Field(
        min_length=1,
        description="Patterns of parameter names (`*`, `?`, `[0-9]`); layers are counted over the whole model: "
        "`decoder.layers.0.*`.",
    )
    lr_scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Its learning rate is the schedule's times this."
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Decoupled decay of all in it, norms and biases too; default: as of the others.",
    )
