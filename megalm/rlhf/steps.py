"""A step of reinforcement learning: answer prompts, judge the answers, learn from them."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megalm import progress
from megalm.config import Config
from megalm.dataset.cursor import Cursor
from megalm.engine.base import Engine, Metrics, MicroBatch
from megalm.engine.parameter_groups import rates_by_name
from megalm.errors import UserError
from megalm.generate.rows import Completion
from megalm.rlhf.actor_loss import PolicyLoss, is_only_update
from megalm.rlhf.advantages import RunningMoments, explained_variance, masked_sums
from megalm.rlhf.alarms import Alarms
from megalm.rlhf.answers import Answers, answers_of
from megalm.rlhf.credit import Credit, credit_of, penalty_is_in_loss, token_shares
from megalm.rlhf.kl import KLController, kl_per_token
from megalm.rlhf.prompts import Prompt, PromptStream
from megalm.rlhf.rewards import Sample, TotalReward
from megalm.rlhf.roles import Roles
from megalm.rlhf.rollout import Rollout
from megalm.rlhf.scoring import logprobs
from megalm.train.data import TrainingData

Judged = tuple[Prompt, Completion, float, dict[str, float]]
"""A prompt, an answer to it, what that is worth, and each reward by its title."""


class RlSteps:
    """Makes steps of task `ppo`, `grpo` or `rloo` (see `train.steps.Steps`). All methods are collective.

    All numbers of a step's answers are on every rank, each computed on one of them, so that a role's layout plays no part in what
    the others see, and every rank draws the same conclusions.
    """

    def __init__(
        self,
        config: Config,
        roles: Roles,
        rollout: Rollout,
        prompts: PromptStream,
        reward: TotalReward,
        text: TrainingData | None,
    ) -> None:
        """text: of what the actor goes on learning beside the answers (PPO-ptx)."""
        self.config, self.settings, self.roles = config, config.rlhf, roles
        self.rollout, self.prompts, self.reward, self.text = rollout, prompts, reward, text
        self.cursor = Cursor()
        self.tokens = 0
        self.told: list[str] = []
        self.stop_reason: str | None = None
        self.judged: list[Judged] = []
        """Of the step made last."""
        kl = self.settings.kl
        self.kl = KLController(kl.coefficient, kl.target, kl.horizon)
        self.rewards_so_far = RunningMoments()
        self.alarms = Alarms(self.settings.alarms)
        self.is_first = True
        # without it the loss itself compares rollout with training
        self.needs_old = bool(roles.reference or roles.critic) or not is_only_update(config)

    @property
    def next_sample(self) -> int:
        """Number of the next step's first prompt."""
        return int(Cursor(self.cursor.next_sample, list(self.cursor.skipped)).take(1)[0])

    def move_to(self, cursor: Cursor) -> None:
        """Go on with other prompts."""
        self.cursor = Cursor(cursor.next_sample, list(cursor.skipped))

    def state(self) -> dict[str, Any]:
        """The coefficient of the KL, what the rewards were like, and where the text stands."""
        return {
            "rlhf": {
                "kl": self.kl.state(),
                "rewards": self.rewards_so_far.state(),
                "alarms": self.alarms.state(),
                "text": self.text.cursor.to_json() if self.text else None,
            }
        }

    def load(self, state: dict[str, Any]) -> None:
        """See Steps."""
        own = state["rlhf"]
        self.kl.load(own["kl"])
        self.rewards_so_far.load(own["rewards"])
        self.alarms.load(own["alarms"])
        if self.text and own["text"]:
            self.text.move_to(Cursor.from_json(own["text"]))

    def step(self, number: int, lr: float) -> Metrics:
        """See Steps. UserError where rollout and training do not agree on the first answers."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "generate"):
            prompts = self.prompts.batch(self.cursor.take(self.settings.rollout.prompts_per_step))
            completions = self.rollout.answer(prompts, number)
        with _timed(seconds, "score"):
            self.judged, figures = self._judge(prompts, completions)
            tokens = [(prompt.tokens, one.tokens) for prompt, one, _, _ in self.judged]
            answers = answers_of([prompt for prompt, _ in tokens], [one for _, one in tokens], self.config)
            figures |= self._score(answers, completions)
            figures |= self._credit(answers)
        with _timed(seconds, "train"):
            metrics = self._learn(answers, number, lr)
        count = len(answers)
        metrics.more |= figures | {f"{name}_seconds": value for name, value in seconds.items()}
        metrics.more["samples_per_second"] = count / sum(seconds.values())
        metrics.more |= rates_by_name(self.config, lr)
        self.tokens = int(sum(len(prompt.tokens) + len(one.tokens) for prompt, one, _, _ in self.judged))
        self._watch(metrics.more, count)
        return metrics

    def measure(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], None]:
        """What the likeliest answers to held-out prompts are worth; `loss` is the negative reward."""
        completions = self.rollout.best(prompts)
        samples = [_sample(prompt, one) for prompt, one in zip(prompts, completions, strict=True)]
        scores = self.reward(samples)
        length = sum(len(one.tokens) for one in completions) / len(completions)
        means = scores.means()
        return {"loss": -means["reward"]} | means | {"response_length": length}, None

    def _judge(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[list[Judged], dict[str, float]]:
        """Each answer with its rewards, and their means."""
        each = self.settings.rollout.responses_per_prompt
        repeated = [prompt for prompt in prompts for _ in range(each)]
        scores = self.reward([_sample(*pair) for pair in zip(repeated, completions, strict=True)])
        judged = [
            (prompt, one, total, {title: part[row] for title, part in scores.parts.items()})
            for row, (prompt, one, total) in enumerate(zip(repeated, completions, scores.total, strict=True))
        ]
        lengths = [len(one.tokens) for one in completions]
        return judged, scores.means() | {
            "reward_std": float(np.std(scores.total)),
            "response_length": sum(lengths) / len(lengths),
            "response_length_max": float(max(lengths)),
            "finished": sum(one.finish_reason == "stop" for one in completions) / len(completions),
        }

    def _score(self, answers: Answers, completions: Sequence[Completion]) -> dict[str, float]:
        """Put what the models say of each token into the answers' scores."""
        rows, temperature = self.config.batch.micro_batch_size, self.settings.rollout.temperature
        mask = answers.mask.numpy()
        drawn = np.zeros(mask.shape)
        drawn[mask] = [value for one in completions for value in one.logprobs or []]
        figures: dict[str, float] = {}
        found = {"drawn": drawn}
        if self.is_first or self.needs_old:
            old, entropy = logprobs(self.roles.actor, answers, rows, temperature)
            gaps = np.abs(old - drawn)[mask]
            if self.is_first:
                self._check_gap(float(gaps.mean()))
        if self.needs_old:
            found["old"] = old
            figures = {"logprob_gap": float(gaps.mean()), "logprob_gap_max": float(gaps.max())}
            figures["sampled_entropy"] = float(entropy[mask].mean())
        if self.roles.reference:
            found["reference"] = self.roles.reference(answers, rows, temperature)
            policy_BS, reference_BS = torch.from_numpy(old), torch.from_numpy(found["reference"])
            kl_BS = kl_per_token(policy_BS, reference_BS, answers.mask, "k1")
            figures["kl"] = float(kl_BS.sum(1).mean())
            k3_BS = kl_per_token(policy_BS, reference_BS, answers.mask, "k3")
            figures["kl_per_token"] = float(k3_BS.sum() / answers.mask.sum())
        if self.roles.critic:
            found["values"] = self.roles.critic.values(answers)
        answers.scores |= {name: score.astype(np.float32) for name, score in found.items()}
        return figures

    def _check_gap(self, gap: float) -> None:
        self.is_first = False
        limit = self.settings.rollout.max_logprob_gap
        if not gap <= limit:
            raise UserError(
                f"rollout and training differ by {gap:.3g} in the log-probabilities of the same tokens, more than "
                f"rlhf.rollout.max_logprob_gap {limit:g}: what is learned would be of another model's answers; use "
                "precision.dtype=fp32, or another layout, or raise the bound"
            )

    def _credit(self, answers: Answers) -> dict[str, float]:
        """From rewards to advantages."""
        scores_B = torch.tensor([total for _, _, total, _ in self.judged], dtype=torch.float64)
        if self.settings.normalize_rewards:
            self.rewards_so_far.update(scores_B)
            scores_B = self.rewards_so_far.normalise(scores_B)
        if self.settings.reward_clip:
            scores_B = scores_B.clamp(-self.settings.reward_clip, self.settings.reward_clip)
        credit: Credit = credit_of(self.config, scores_B, answers, self.kl.coefficient)
        answers.scores["advantages"] = credit.advantages_BS.numpy().astype(np.float32)
        figures = {"kl_coefficient": self.kl.coefficient} if self.roles.reference else {}
        if credit.level_groups is not None:
            figures["level_groups"] = credit.level_groups
        if credit.returns_BS is not None:
            returns_BS, values_BS = credit.returns_BS, torch.from_numpy(answers.scores["values"])
            answers.scores["returns"] = returns_BS.numpy().astype(np.float32)
            figures["explained_variance"] = explained_variance(
                masked_sums(returns_BS - values_BS, answers.mask), masked_sums(returns_BS, answers.mask)
            )
            figures["value_mean"] = float(values_BS[answers.mask].mean())
        return figures

    def _learn(self, answers: Answers, number: int, lr: float) -> Metrics:
        """All updates of the step; figures are means over them."""
        policy, size = self.settings.policy, self.config.batch.global_batch_size
        actor_loss = PolicyLoss(self.config, self.kl.coefficient if penalty_is_in_loss(self.config) else 0.0)
        critic = self.roles.critic
        actors: list[Metrics] = []
        critics: list[Metrics] = []
        for epoch in range(policy.epochs):
            digest = hashlib.blake2b(f"order {self.config.run.seed} {number} {epoch}".encode(), digest_size=8)
            order = np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest(), "little")))
            for rows in order.permutation(len(answers)).reshape(-1, size):
                batch = answers.rows(rows)
                batch.scores |= token_shares(self.config, batch)
                if critic:
                    critics.append(critic.learn(batch, lr))
                if number > self.settings.critic.warmup_steps or not critic:
                    microbatches = _microbatches(batch, self.config, self.roles.actor)
                    text = self.text.next() if self.text else []
                    actors.append(self.roles.actor.step([*microbatches, *text], actor_loss, lr))
                    if policy.ema_decay:
                        self.roles.average(policy.ema_decay)
        return _joined(actors, critics)

    def _watch(self, figures: dict[str, float], count: int) -> None:
        """Steer the coefficient of the KL, and see whether something rings."""
        if "kl" in figures:
            self.kl.update(figures["kl"], count)
        self.told = []
        if message := self.alarms.see(figures.get("kl"), figures["response_length"]):
            self.told.append(message)
            if self.settings.alarms.action == "stop":
                self.stop_reason = message
            if self.settings.alarms.action == "adapt":
                self.kl.coefficient *= 2
                self.told.append(f"rlhf.kl.coefficient raised to {self.kl.coefficient:g}")


def _sample(prompt: Prompt, one: Completion) -> Sample:
    return Sample(prompt.text, one.text, prompt.record, one.finish_reason, prompt.tokens, one.tokens)


def _microbatches(batch: Answers, config: Config, engine: Engine) -> list[MicroBatch]:
    return [one for _, one in batch.shared_out(engine.layout, config.batch.micro_batch_size)]


def _joined(actors: Sequence[Metrics], critics: Sequence[Metrics]) -> Metrics:
    """One step's metrics from those of its updates."""
    first = actors or critics
    more = _means(actors) | _means(critics)
    if critics:
        more["critic_grad_norm"] = float(np.mean([one.grad_norm for one in critics]))
    return Metrics(
        loss=float(np.mean([one.loss for one in first])),
        grad_norm=float(np.mean([one.grad_norm for one in first])),
        weight=float(np.sum([one.weight for one in first])),
        skipped=any(one.skipped for one in [*actors, *critics]),
        overflow=any(one.overflow for one in [*actors, *critics]),
        more=more,
    )


def _means(updates: Sequence[Metrics]) -> dict[str, float]:
    names = updates[0].more if updates else {}
    return {name: float(np.mean([one.more[name] for one in updates])) for name in names}


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Put the seconds of this phase under its name; on CUDA of what it set going, too."""
    begin = time.perf_counter()
    progress.beat(phase)
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[phase] = time.perf_counter() - begin


class Dealt:
    """A rule whose samples are dealt out to the ranks, so that all hear one verdict on each (see `rewards.base.Reward`)."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.check: Callable[..., None] = rule.check

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The rule's, the same on every rank. Collective."""
        size, rank = dist.get_world_size(), dist.get_rank()
        parts: list[list[float]] = [[]] * size
        dist.all_gather_object(parts, self.rule(samples[rank::size]))
        return [parts[number % size][number // size] for number in range(len(samples))]
