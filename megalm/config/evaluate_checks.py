"""Where no tasks can be asked in training, told before a run begins."""

from megalm.config.rlhf import RL_TASKS
from megalm.config.samples_checks import TASKS_WITHOUT_TEXT, check_decoding_layout
from megalm.config.schema import Config
from megalm.errors import UserError


def check_evaluate(config: Config) -> None:
    """Raise UserError for `evaluate` that the task, the layout or the precision do not allow."""
    asked = config.evaluate
    if asked.chat_template is not None and not asked.chat:
        raise UserError("evaluate.chat_template is of conversations: set evaluate.chat, or leave it out")
    if not asked.tasks:
        return
    if config.model.architecture != "gpt" or config.task in TASKS_WITHOUT_TEXT:
        raise UserError(
            f"evaluate.tasks: task `{config.task}` of architecture `{config.model.architecture}` predicts no text; leave them out"
        )
    if not config.train.eval_interval:
        raise UserError(
            "evaluate.tasks are asked at validations: set train.eval_interval and what it measures, or leave them out"
        )
    if not config.tokenizer.path and config.task not in RL_TASKS:  # these take that of run.load
        raise UserError("evaluate.tasks are texts: name the tokenizer in tokenizer.path, or leave them out")
    check_decoding_layout(config, "evaluate.tasks")
