"""What does not go with a sequence head, or with the tasks that train it."""

from megalm.config.schema import Config
from megalm.errors import UserError

TASKS_WITH_HEAD = ("classify", "reward")


def check_classify(config: Config) -> None:
    """Raise UserError for a sequence head without a task for it, and for what that task cannot use."""
    model, outputs = config.model, config.model.sequence_head.outputs
    if config.task not in TASKS_WITH_HEAD:
        if outputs:
            raise UserError(
                f"model.sequence_head.outputs {outputs} takes the place of the vocabulary's head, which task `{config.task}` "
                "trains: set it to 0, or task=classify"
            )
        return
    if model.architecture == "gpt" and model.pooling == "first":
        raise UserError(
            "model.sequence_head.pooling `first`: the first token of a `gpt` sees no other; use `last` or `mean`"
        )
    if config.data.packing is not None or config.data.reset_at_document_end:
        name = "packing" if config.data.packing is not None else "reset_at_document_end"
        raise UserError(f"data.{name}: samples of task `{config.task}` are whole documents; leave it out")
    if config.lora.rank:
        raise UserError(
            f"lora.rank {config.lora.rank}: adapters do not train the new head of task `{config.task}`; set it to 0"
        )
