"""The section `evaluate`: tasks of `megalm eval` that the model is asked at validations of its training."""

from pydantic import Field

from megalm.config.section import Section


class EvaluateConfig(Section):
    """Tasks asked at validations; scores are figures of the validation, in full they go to RUN_DIR/tasks.jsonl."""

    tasks: list[str] = Field(
        default_factory=list,
        description="Names in `task_folder`, or files. The validation has each metric as `TASK_METRIC`, and an average under its "
        "own name: what `checkpoint.keep_best` and `train.early_stopping` may go by.",
    )
    task_folder: str | None = Field(
        None, description="Folder of tasks and their paths.yaml; default: those that come with megalm."
    )
    data: str | None = Field(None, description="Where the tasks' files lie.")
    every: int = Field(
        1, gt=0, description="Ask at every so-many-th validation, and at that of the last step."
    )
    limit: int | None = Field(None, gt=0, description="Questions of a task at most, drawn from `seed`.")
    few_shot: int | None = Field(
        None, ge=0, description="Solved questions before each; default: as the tasks have it."
    )
    chat: bool = Field(
        False,
        description="Put questions as turns of a conversation, in `chat_template` or that of the training data.",
    )
    chat_template: str | None = Field(
        None,
        description="With `chat`: a bundled template or a .jinja file; default: that of the training data.",
    )
    seed: int = Field(
        1234,
        ge=0,
        description="Of solved questions, `limit`, drawn answers and intervals; not that of the run.",
    )
    batch_size: int = Field(32, gt=0, description="Texts of one forward pass of a copy of the model.")
