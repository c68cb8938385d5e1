"""What task `distill` needs, and what it does not go with."""

from megalm.config.schema import Config
from megalm.errors import UserError


def check_distill(config: Config) -> None:
    """Raise UserError where the section `distill` and the rest of a run of that task contradict each other."""
    if config.task != "distill":
        return
    settings = config.distill
    if settings.teacher is None and settings.cache is None:
        raise UserError("task `distill` learns from a trained model: name its checkpoint in distill.teacher")
    if config.train.compile == "model":
        raise UserError(
            "train.compile `model` takes the output layer over, which task `distill` needs for itself: use `blocks`"
        )
    if settings.cache is not None and settings.divergence == "reverse_kl":
        raise UserError(
            f"distill.divergence `reverse_kl` asks for all logits of the teacher, distill.cache {settings.cache} has the "
            "largest ones: use `forward_kl` or `jsd`, or no cache"
        )
    if settings.hidden_loss_weight:
        _check_hidden(config)
    if settings.init_from_teacher_layers is not None:
        _check_first_weights(config, settings.init_from_teacher_layers)


def _check_hidden(config: Config) -> None:
    settings, weight = config.distill, config.distill.hidden_loss_weight
    if not settings.hidden_layers:
        raise UserError(
            f"distill.hidden_loss_weight {weight} compares layers: name pairs of them in distill.hidden_layers"
        )
    for pair in settings.hidden_layers:
        if len(pair) != 2 or min(pair) < 0:
            raise UserError(
                f"distill.hidden_layers {settings.hidden_layers}: {pair} is no pair of a student's and a teacher's layer, "
                "numbered from 0"
            )
    if settings.cache is not None:
        raise UserError(
            f"distill.hidden_loss_weight {weight} needs the teacher at each step, distill.cache {settings.cache} has only "
            "its logits: leave one of them out"
        )
    if config.train.recompute.granularity == "full":
        raise UserError(
            f"distill.hidden_loss_weight {weight} keeps what train.recompute.granularity `full` throws away: use `selective`"
        )
    if config.train.compile != "none":
        raise UserError(
            f"distill.hidden_loss_weight {weight} looks into the layers that train.compile `{config.train.compile}` takes "
            "over: set it to none"
        )


def _check_first_weights(config: Config, layers: list[int]) -> None:
    settings = config.distill
    if settings.teacher is None:
        raise UserError(
            f"distill.init_from_teacher_layers {layers} are taken from a teacher: name it in distill.teacher"
        )
    if config.run.load or config.lora.rank:
        raise UserError(
            f"distill.init_from_teacher_layers {layers} and run.load {config.run.load} both give the first weights: leave "
            "one out (adapters take run.load)"
        )
    if len(layers) != config.model.num_layers or min(layers) < 0:
        raise UserError(
            f"distill.init_from_teacher_layers {layers}: give one number from 0 on for each of model.num_layers "
            f"{config.model.num_layers}"
        )
