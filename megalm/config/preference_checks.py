"""What does not go with the tasks that learn from preferences."""

from megalm.config.schema import Config
from megalm.errors import UserError


def check_preferences(config: Config) -> None:
    """Raise UserError where the sections of tasks `reward` and `dpo` contradict the rest of such a run."""
    if config.task == "reward":
        _check_reward(config)
    if config.task == "dpo":
        _check_dpo(config)


def _check_reward(config: Config) -> None:
    if config.model.sequence_head.outputs > 1:
        raise UserError(
            f"model.sequence_head.outputs {config.model.sequence_head.outputs}: a reward is one number; leave it out"
        )


def _check_dpo(config: Config) -> None:
    settings, data = config.dpo, config.data
    if data.packing is not None or data.reset_at_document_end:
        name = "packing" if data.packing is not None else "reset_at_document_end"
        raise UserError(f"data.{name}: samples of task `dpo` are whole answers; leave it out")
    if settings.label_smoothing and settings.loss != "dpo":
        raise UserError(
            f"dpo.label_smoothing {settings.label_smoothing} is of dpo.loss `dpo`, this is `{settings.loss}`: set it to 0"
        )
    for name in ("desirable_weight", "undesirable_weight"):
        if settings.loss != "kto" and (weight := getattr(settings, name)) != 1:
            raise UserError(
                f"dpo.{name} {weight} is of dpo.loss `kto`, this is `{settings.loss}`: leave it out"
            )
    if settings.reference_free:
        _check_reference_free(config)
    elif settings.reference is None and not config.run.load:
        raise UserError(
            "task `dpo` compares with a reference: name the model to begin with in run.load, or dpo.reference, or set "
            "dpo.reference_free"
        )
    if settings.cache is not None and settings.loss == "kto":
        raise UserError(
            f"dpo.cache {settings.cache} with dpo.loss `kto`, whose baseline needs the reference at each step: leave it out"
        )


def _check_reference_free(config: Config) -> None:
    settings = config.dpo
    for name in ("reference", "cache"):
        if getattr(settings, name) is not None:
            raise UserError(f"dpo.reference_free has no use for dpo.{name}: leave one of them out")
    if settings.loss == "kto":
        raise UserError(
            "dpo.reference_free: dpo.loss `kto` has a reference in its baseline; use `dpo` or `ipo`"
        )
