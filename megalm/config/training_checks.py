"""Refuses what early stopping, best checkpoints and parameter groups ask for in vain."""

from collections import Counter

from megalm.config.schema import Config
from megalm.config.selection import mode_of
from megalm.errors import UserError


def check_training(config: Config) -> None:
    """Raise UserError for what the loop or the optimizer is asked for and cannot do."""
    _check_selection(config)
    _check_load(config)
    for name, count in Counter(group.name for group in config.optimizer.groups).items():
        if count > 1:
            raise UserError(f"optimizer.groups: the name {name} stands {count} times, give each its own")
    last, layers = config.train.train_last_layers, config.model.num_layers
    if last is not None and last > layers:
        raise UserError(f"train.train_last_layers {last} exceeds model.num_layers {layers}: lower it")


def _check_selection(config: Config) -> None:
    stopping, keeping = config.train.early_stopping, config.checkpoint.keep_best
    asked = {
        "train.early_stopping": (stopping.metric, stopping.mode) if stopping.patience else None,
        "checkpoint.keep_best": (keeping.metric, keeping.mode) if keeping.metric is not None else None,
    }
    for field, watched in asked.items():
        if watched is None:
            continue
        mode_of(field, *watched)
        if not config.train.eval_interval:
            raise UserError(
                f"{field} looks at validations, and train.eval_interval is 0: set it to the steps between them"
            )


def _check_load(config: Config) -> None:
    if not config.run.load_optimizer:
        return
    if not config.run.load:
        raise UserError("run.load_optimizer takes the optimizer of the checkpoint in run.load: name that one")
    if config.lora.rank:
        raise UserError(
            f"run.load_optimizer with lora.rank {config.lora.rank}: the loaded weights are not trained; leave it out"
        )
