"""Where no answers can be generated in training, told before a run begins."""

from typing import get_args

from megalm.config.samples import Metric
from megalm.config.schema import Config
from megalm.errors import UserError

TASKS_WITHOUT_TEXT = ("mlm", "classify", "reward")
"""What a model learns in these tasks is no text."""


def check_samples(config: Config) -> None:
    """Raise UserError for `samples` that the task, the layout or the precision do not allow."""
    samples = config.samples
    for name, metric in _chosen(config).items():
        if metric in get_args(Metric) and metric not in samples.metrics:
            raise UserError(
                f"{name}.metric {metric} is measured on answers: add it to samples.metrics, and prompts with references to "
                "samples.prompts"
            )
    if samples.prompts is None:
        if samples.metrics:
            raise UserError(
                f"samples.metrics {', '.join(samples.metrics)}: there are no answers to measure; name samples.prompts"
            )
        return
    if config.model.architecture != "gpt" or config.task in TASKS_WITHOUT_TEXT:
        raise UserError(
            f"samples.prompts: task `{config.task}` of architecture `{config.model.architecture}` writes no text; leave it out"
        )
    if not config.train.eval_interval:
        raise UserError(
            "samples.prompts are answered at validations: set train.eval_interval and data.valid, or leave them out"
        )
    if not config.tokenizer.path:
        raise UserError("samples.prompts are texts: name the tokenizer in tokenizer.path, or leave them out")
    for name, metric in _chosen(config).items():
        if samples.every > 1 and metric in samples.metrics:
            raise UserError(
                f"{name}.metric {metric} is measured at every validation number {samples.every} alone (samples.every): set "
                "that to 1"
            )
    check_decoding_layout(config, "samples.prompts")


def _chosen(config: Config) -> dict[str, str]:
    """The figures that something goes by, by its field."""
    stopping = config.train.early_stopping
    chosen = {"checkpoint.keep_best": config.checkpoint.keep_best.metric or ""}
    return chosen | ({"train.early_stopping": stopping.metric} if stopping.patience else {})


def check_decoding_layout(config: Config, field: str) -> None:
    """Raise UserError, naming `field`, for a layout under which a model in training can answer nothing."""
    parallel = config.parallel
    if parallel.expert_model_parallel_size > 1:
        raise UserError(
            f"{field} with parallel.expert_model_parallel_size {parallel.expert_model_parallel_size}: the ranks would "
            "wait for each other's experts at answers of different lengths; set it to 1 or leave them out"
        )
    if config.model.moe.num_experts and parallel.sequence_parallel:
        raise UserError(
            f"{field} with parallel.sequence_parallel and model.moe.num_experts {config.model.moe.num_experts}: experts "
            "that get parts of sequences cannot decode; turn one of them off"
        )
    if parallel.zero_stage == 3:
        raise UserError(
            f"{field} with parallel.zero_stage 3: the ranks would wait for each other's weights at answers of different "
            "lengths; use zero_stage 2 or leave them out"
        )
    if config.precision.fp8 != "none":
        raise UserError(
            f"{field} with precision.fp8 `{config.precision.fp8}`: single tokens are no multiple of its tiles; set it "
            "to none or leave them out"
        )
