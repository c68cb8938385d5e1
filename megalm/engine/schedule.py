"""Learning-rate schedules as pure functions of the step."""

import math

from megalm.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of the update that ends step `step` (the first is 1) of a run of `total_steps`.

    Linear warm-up from 0 to `lr` over `warmup_steps`, then the schedule's shape, down to `min_lr`:
    cosine (arXiv:1608.03983), linear, wsd (arXiv:2404.06395: the last `decay_steps`, default a tenth of the run, fall
    linearly), constant, inverse_sqrt (arXiv:1706.03762, eq. 3).
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * step / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        return max(config.min_lr, config.lr * math.sqrt(max(warmup, 1) / max(step, 1)))
    if config.schedule == "wsd":
        start = total_steps - (config.decay_steps or max(1, total_steps // 10))
        end = total_steps
    else:
        start, end = warmup, config.decay_steps or total_steps
    progress = min(max((step - start) / max(end - start, 1), 0.0), 1.0)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.min_lr + (config.lr - config.min_lr) * share
