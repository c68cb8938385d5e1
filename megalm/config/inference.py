"""What remains of a configuration once its model is trained: it answers, classifies, teaches or is compared."""

from typing import Literal

from megalm.config.schema import Config, ParallelConfig, PrecisionConfig

Dtype = Literal["fp32", "bf16", "fp16", "fp64"]

_OF_TRAINING = (
    "task",
    "mlm",
    "sft",
    "distill",
    "reward",
    "dpo",
    "engine",
    "offload",
    "optimizer",
    "train",
    "checkpoint",
    "samples",
    "evaluate",
    "logging",
)


def for_inference(config: Config, parallel: ParallelConfig, dtype: Dtype) -> Config:
    """A copy under another layout and format, in which what concerns training alone has its default.

    What was a sensible setting of the training need not go with the layout here: parts of a pipeline, recomputed layers, an
    engine that shares out the optimizer's state.
    """
    defaults = Config()
    changed = {name: getattr(defaults, name) for name in _OF_TRAINING}
    changed |= {"parallel": parallel, "precision": PrecisionConfig(dtype=dtype)}
    kept = config.model_copy(update=changed, deep=True)
    if config.model.sequence_head.outputs:
        kept.task = config.task
    elif config.model.architecture == "bert":
        kept.task = "mlm"
    return kept
