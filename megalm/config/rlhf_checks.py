"""What reinforcement learning needs, and what it does not go with."""

from megalm.config.divides import divides
from megalm.config.rewards import ModelRewardConfig
from megalm.config.rlhf import RL_TASKS, OwnRanks
from megalm.config.schema import Config
from megalm.errors import UserError


def check_rlhf(config: Config) -> None:
    """Raise UserError where the section `rlhf` and the rest of a run of such a task contradict each other."""
    if config.task not in RL_TASKS:
        return
    settings, rollout = config.rlhf, config.rlhf.rollout
    if not settings.prompts:
        raise UserError(
            f"task `{config.task}` answers prompts: name JSONL files in rlhf.prompts, e.g. [{{path: prompts.jsonl}}]"
        )
    if not settings.rewards:
        raise UserError(
            f"task `{config.task}` learns from rewards: name some in rlhf.rewards, e.g. [{{name: exact_answer}}]"
        )
    if not config.run.load:
        raise UserError(f"task `{config.task}` goes on from a trained model: name its run in run.load")
    if config.task != "ppo" and rollout.responses_per_prompt < 2:
        raise UserError(
            f"task `{config.task}` compares the answers to one prompt: set rlhf.rollout.responses_per_prompt to 2 or more"
        )
    if config.train.eval_interval and not settings.eval_prompts:
        raise UserError(
            "train.eval_interval is set but rlhf.eval_prompts is empty: name files of held-out prompts or set it to 0"
        )
    if settings.policy.ema_decay and config.lora.rank:
        raise UserError(
            "rlhf.policy.ema_decay averages all weights, and lora.rank trains a few: leave one out"
        )
    if settings.policy.ratio == "sequence" and config.parallel.context_parallel_size > 1:
        raise UserError(
            "rlhf.policy.ratio `sequence` needs whole answers on a rank: set parallel.context_parallel_size to 1"
        )
    _check_batch(config)
    _check_lengths(config)
    _check_layout(config)
    _check_ranks(config)
    if config.rlhf.policy.ptx_coefficient and not config.data.train:
        raise UserError("rlhf.policy.ptx_coefficient learns from data.train, too: name token files there")
    if config.rlhf.policy.ratio == "sequence" and config.rlhf.policy.aggregation not in (
        "auto",
        "sequence_mean",
    ):
        raise UserError(
            "rlhf.policy.ratio `sequence` is of whole answers, which count alike: set aggregation to sequence_mean"
        )
    if config.rlhf.alarms.action == "adapt" and not config.rlhf.kl.coefficient:
        raise UserError("rlhf.alarms.action `adapt` raises rlhf.kl.coefficient, which is 0: set it above 0")


def _check_batch(config: Config) -> None:
    rollout, batch = config.rlhf.rollout, config.batch
    samples = rollout.prompts_per_step * rollout.responses_per_prompt
    if samples % batch.global_batch_size:
        raise UserError(
            f"a step's {rollout.prompts_per_step} prompts x {rollout.responses_per_prompt} answers = {samples} are no multiple "
            f"of batch.global_batch_size {batch.global_batch_size}, the answers of an update: change one of them"
        )


def _check_lengths(config: Config) -> None:
    room = config.batch.seq_length - config.rlhf.rollout.max_new_tokens
    if room < 1:
        raise UserError(
            f"rlhf.rollout.max_new_tokens {config.rlhf.rollout.max_new_tokens} leaves no room for a prompt in batch.seq_length "
            f"{config.batch.seq_length}, which holds both: lower it, or raise batch.seq_length"
        )
    wanted = config.rlhf.max_prompt_tokens
    if wanted is not None and wanted > room:
        raise UserError(
            f"rlhf.max_prompt_tokens {wanted} + rlhf.rollout.max_new_tokens {config.rlhf.rollout.max_new_tokens} exceed "
            f"batch.seq_length {config.batch.seq_length}, which holds both: raise that"
        )


def _check_layout(config: Config) -> None:
    task, parallel = config.task, config.parallel
    if parallel.expert_model_parallel_size > 1:
        raise UserError(
            f"task `{task}` with parallel.expert_model_parallel_size {parallel.expert_model_parallel_size}: copies of the model "
            "answer prompts apart, each needs all experts; set it to 1"
        )
    if parallel.zero_stage == 3:
        raise UserError(
            f"task `{task}` with parallel.zero_stage 3: ranks answer prompts apart, each needs all weights; use zero_stage 2"
        )
    if config.train.compile == "model":
        raise UserError(
            f"train.compile `model` takes the output layer over, which task `{task}` needs for itself: use `blocks`"
        )
    if config.data.documents_apart:
        raise UserError(
            f"data.packing and data.reset_at_document_end are of no use in task `{task}`: leave them out"
        )


def _check_ranks(config: Config) -> None:
    """Of roles that have ranks of their own."""
    settings = config.rlhf
    roles: dict[str, OwnRanks] = {
        "rollout": settings.rollout,
        "frozen": settings.frozen,
        "critic": settings.critic,
    }
    for name, role in roles.items():
        tensor, pipeline = role.sizes(config.parallel)
        if role.ranks:
            by = f"rlhf.{name}.tensor_model_parallel_size x pipeline_model_parallel_size"
            divides(f"rlhf.{name}.ranks", role.ranks, f"{by} (by default the training's)", tensor * pipeline)
    if settings.critic.ranks and config.task != "ppo":
        raise UserError(
            f"rlhf.critic.ranks {settings.critic.ranks}: task `{config.task}` has no critic: set it to 0"
        )
    frozen = settings.frozen
    if (frozen.tensor_model_parallel_size or frozen.pipeline_model_parallel_size) and not frozen.ranks:
        raise UserError(
            "rlhf.frozen has a layout but no ranks of its own, and on those that train it has theirs: set rlhf.frozen.ranks"
        )
    if frozen.ranks and not (has_reference(config) or _has_reward_model(config)):
        raise UserError(
            f"rlhf.frozen.ranks {frozen.ranks}: this run has no frozen model to put there, neither a reward model nor a reference "
            "apart from the actor: set it to 0"
        )


def has_reference(config: Config) -> bool:
    """Whether a reference of its own is loaded; that of adapters is the actor without them."""
    kl = config.rlhf.kl
    return bool(kl.coefficient) and not (config.lora.rank and kl.reference is None)


def _has_reward_model(config: Config) -> bool:
    return any(isinstance(reward, ModelRewardConfig) for reward in config.rlhf.rewards)
