"""From a configuration of task `ppo`, `grpo` or `rloo` to a finished run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megalm.checkpoint import newest_intact, read_config, tokenizer_of
from megalm.config import Config
from megalm.config.rewards import RewardConfig
from megalm.config.rlhf_ranks import ROLLOUT
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.generate.decode import context_length
from megalm.generate.tokenizing import trained_template
from megalm.model.kernel_choice import check_kernels
from megalm.model.names import check_names
from megalm.parallel.layout import create_layout
from megalm.rlhf.answers import Answers, answers_of
from megalm.rlhf.frozen import ModelReward
from megalm.rlhf.prompts import Prompt, PromptSet, PromptStream, PromptWriter
from megalm.rlhf.rewards import Sample, TotalReward
from megalm.rlhf.roles import Roles, load_roles
from megalm.rlhf.rollout import Rollout, copies_of
from megalm.rlhf.scale import scaled
from megalm.rlhf.steps import Dealt, RlSteps
from megalm.rlhf.table import RolloutTable
from megalm.rlhf.worlds import channels, describe, join_world, serve
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.chat import ChatTemplate
from megalm.train.base_model import check_base_tokenizer
from megalm.train.callbacks import standard_callbacks
from megalm.train.callbacks.base import Run
from megalm.train.callbacks.task_scores import open_tasks, task_scores
from megalm.train.data import TrainingData, open_stream
from megalm.train.directory import check_directory, first_weights, prepare_directory, resumed, settle_base
from megalm.train.frozen import find_frozen
from megalm.train.lineage import compare_lineage, lineage_of, recorded_lineage
from megalm.train.lock import run_lock
from megalm.train.loop import Loop
from megalm.train.run import resolve_vocabulary
from megalm.watch.hang import watching


def main(config: Config) -> dict[str, Any]:
    """Learn as `config` says in the world of processes that the environment describes; return the last figures.

    Collective: every process of the world calls it. UserError for what the user can mend.
    """
    check_names(config.model)
    check_kernels(config)
    config, tokenizer = _resolve(config)
    world = join_world(config)
    if world and not world.leads:
        serve(config, tokenizer, world)
        return {}
    learned, held_out, stop = _open_prompts(config, tokenizer)
    tasks = open_tasks(config) if config.evaluate.tasks else None
    text = open_stream(config, config.data.train, tokenizer) if config.rlhf.policy.ptx_coefficient else None
    directory = Path(config.run.dir)
    check_directory(config, directory)
    settle_base(config, directory)
    before = recorded_lineage(directory)
    lineage = lineage_of(config, tokenizer)
    notices = [*describe(world), *learned.prompts.notices(), *compare_lineage(directory, before, lineage)]
    check_base_tokenizer(config, tokenizer)

    layout = create_layout(config.parallel, config.run.seed)
    with run_lock(directory), watching(config.watch, directory, layout):
        engine = build_engine(config, layout)
        run = Run(config=config, layout=layout, directory=directory)
        checkpoint = newest_intact(directory, layout, tell=notices.append)
        if checkpoint is None or config.lora.rank:
            notices += first_weights(run, engine, has_checkpoint=checkpoint is not None)
        apart = channels(world)
        roles, told = load_roles(config, layout, tokenizer, engine, checkpoint is None, apart)
        notices += told
        if checkpoint is None:
            roles.begin_average()
        rewards, told = scaled(config.rlhf.rewards)
        notices += told
        steps = RlSteps(
            config,
            roles,
            Rollout(copies_of(engine, config, tokenizer, apart.get(ROLLOUT)), config, stop),
            learned,
            _reward(config, rewards, roles, learned.prompts, held_out),
            TrainingData(config, layout, text) if text else None,
        )
        callbacks = [
            RolloutTable(steps),
            *task_scores(engine, config, tokenizer, tasks),
            *standard_callbacks(config),
        ]
        validate = partial(steps.measure, held_out) if held_out else None
        loop = Loop(run, engine, steps, validate, callbacks, roles.companions)
        if checkpoint is not None:
            loop.resume(checkpoint)
            notices += resumed(run)
        if checkpoint is None or run.step < config.train.steps:
            prepare_directory(run, lineage)
        loop.notices = notices
        result = loop.train()
        for channel in apart.values():
            channel.close()
        return result | {"run_dir": str(directory), "layout": layout.describe()}


def _resolve(config: Config) -> tuple[Config, Tokenizer]:
    """With the tokenizer of the model that the run begins with, unless another is named."""
    config = config.model_copy(deep=True)
    if config.quantization.method != "none":
        raise UserError(
            f"quantization.method {config.quantization.method}: weights that are trained are not quantised; leave the section out"
        )
    assert config.run.load is not None
    if config.tokenizer.path is None:
        base = find_frozen(config.run.load, "model of run.load")
        found = tokenizer_of(base, read_config(base))
        if found is None:
            raise UserError(
                f"run.load {config.run.load} has no tokenizer beside it: name one in tokenizer.path"
            )
        config.tokenizer.path = str(found)
    config, tokenizer = resolve_vocabulary(config)
    assert tokenizer is not None
    return config, tokenizer


def _open_prompts(
    config: Config, tokenizer: Tokenizer
) -> tuple[PromptStream, Sequence[Prompt] | None, list[str]]:
    """Prompts to learn from, held-out ones, and the strings that end an answer."""
    settings = config.rlhf
    template: ChatTemplate | None = None
    stop = list(settings.rollout.stop)
    if settings.prompt_form == "chat":
        template = trained_template(config, tokenizer, settings.chat_template)
        stop += template.end_of_turn()
    room = min(context_length(config), config.batch.seq_length) - settings.rollout.max_new_tokens
    writer = PromptWriter(
        tokenizer, template, settings.prompt_form == "text", settings.max_prompt_tokens or room
    )
    learned = PromptSet(settings.prompts, "rlhf.prompts", writer)
    held_out = None
    if config.train.eval_interval:
        held_out = PromptSet(settings.eval_prompts, "rlhf.eval_prompts", writer)
        if shared := held_out.shared_with(learned):
            raise UserError(
                f"{shared[0].where} and {len(shared) - 1} more prompts of rlhf.eval_prompts are in rlhf.prompts as well: what was "
                "learned from says little as held out; take them out of one"
            )
    weights = [source.weight for source in settings.prompts]
    return PromptStream(learned, weights, config.run.seed), held_out, stop


def _reward(
    config: Config,
    rewards: Sequence[RewardConfig],
    roles: Roles,
    prompts: PromptSet,
    held_out: Sequence[Prompt] | None,
) -> TotalReward:
    def rows(samples: Sequence[Sample]) -> Answers:
        prompts = [sample.prompt_tokens for sample in samples]
        return answers_of(prompts, [sample.response_tokens for sample in samples], config)

    models = {title: ModelReward(score, rows) for title, score in roles.rewards.items()}
    reward = TotalReward(rewards, models)
    reward.check([(prompt.record, prompt.where) for prompt in [*prompts, *(held_out or [])]])
    reward.rewards |= {title: Dealt(rule) for title, rule in reward.rewards.items() if title not in models}
    return reward
