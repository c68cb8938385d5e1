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
    layers = settings.init_from_teacher_layers
    if layers is None:
        return
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
