"""Which of a run's processes train, and which ones other roles of reinforcement learning have for themselves."""

from megalm.config.checks import data_parallel_size
from megalm.config.rlhf import RL_TASKS, OwnRanks
from megalm.config.schema import Config, ParallelConfig
from megalm.errors import UserError

TRAINING, ROLLOUT, FROZEN, CRITIC = "training", "rollout", "frozen", "critic"


def ranks_by_world(config: Config, world_size: int) -> dict[str, int]:
    """How many of `world_size` processes each world has, in the order of their ranks: training first, then roles apart.

    UserError where the others leave training no process, or a number that its layout cannot use.
    """
    apart = {name: settings.ranks for name, settings in _roles(config).items() if settings.ranks}
    left = world_size - sum(apart.values())
    if not apart:
        data_parallel_size(config, left)
        return {TRAINING: left}
    taken = " + ".join(f"rlhf.{name}.ranks {ranks}" for name, ranks in apart.items())
    if left < 1:
        needed = sum(apart.values()) + config.parallel.model_parallel_size
        raise UserError(
            f"{taken} of {world_size} process(es) leave none to train on: start {needed} or more (--nproc), or lower them"
        )
    try:
        data_parallel_size(config, left)
    except UserError as error:
        raise UserError(f"{left} of {world_size} processes train ({taken} are apart): {error}") from None
    return {TRAINING: left, **apart}


def own_parallel(training: ParallelConfig, settings: OwnRanks) -> ParallelConfig:
    """The layout of a role that is not trained, where it has one of its own: whole copies, each on TP x PP ranks."""
    tensor, pipeline = settings.sizes(training)
    return ParallelConfig(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        backend=training.backend,
        timeout_minutes=training.timeout_minutes,
    )


def _roles(config: Config) -> dict[str, OwnRanks]:
    if config.task not in RL_TASKS:
        return {}
    return {ROLLOUT: config.rlhf.rollout, FROZEN: config.rlhf.frozen, CRITIC: config.rlhf.critic}
