"""Task `reward`: a number for each answer, from pairs of answers or from ratings, by the model's sequence head."""

from pathlib import Path

import torch
from torch import Tensor, nn

from megalm.checkpoint.directory import read_state
from megalm.config.schema import Config, DataSource
from megalm.dataset.preference_records import Kind
from megalm.dataset.preference_stream import EveryPreference, PreferenceStream
from megalm.dataset.values import kind_of_preferences
from megalm.engine.base import MicroBatch
from megalm.generate.classify import run_sequence_head
from megalm.tokenizer.base import Tokenizer
from megalm.train.classify import has_class
from megalm.train.preference_data import open_answers
from megalm.train.preference_losses import bradley_terry, squared_error
from megalm.train.reward_figures import PAIR_SIZE, RATING_SIZE, pair_sums, rating_sums
from megalm.train.tally import Tally


def complete_reward(config: Config) -> Config:
    """A copy whose model has a head with one output."""
    config = config.model_copy(deep=True)
    config.model.sequence_head.outputs = 1
    return config


def open_judged(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> PreferenceStream:
    """Open a blend of preferences in random order."""
    return open_answers(PreferenceStream, config, sources, tokenizer)


def open_all_judged(
    config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> PreferenceStream:
    """Open sources of preferences, each once."""
    return open_answers(EveryPreference, config, sources, tokenizer)


def reward_loss(config: Config) -> "PairLoss | RatingLoss":
    """The loss for the kind of the training data."""
    return PairLoss(config.reward.center_weight) if kind_of_data(config) == "pairs" else RatingLoss()


def reward_tally(config: Config) -> Tally:
    """What a validation counts, for `reward_figures`."""
    return Tally(PAIR_SIZE, _of_pairs) if kind_of_data(config) == "pairs" else Tally(RATING_SIZE, _of_ratings)


def kind_of_data(config: Config) -> Kind:
    """Of the training data; pairs where there are none, in a run that is only planned."""
    return kind_of_preferences(config.data.train[0].path) if config.data.train else "pairs"


def reward_moments(checkpoint: Path) -> tuple[float, float] | None:
    """Mean and standard deviation of the rewards at the last validation before `checkpoint`, None where there was none."""
    values = (read_state(checkpoint).get("validation") or {}).get("values", {})
    if "reward_mean" not in values:
        return None
    return values["reward_mean"], values["reward_std"]


class PairLoss:
    """Mean of the Bradley-Terry loss over the pairs of the global batch (see `engine.base.Loss`)."""

    parts: tuple[str, ...] = ()
    figures: tuple[str, ...] = ("accuracy", "margin")

    def __init__(self, center_weight: float = 0.0) -> None:
        self.center_weight = center_weight

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of pairs."""
        return counted_pairs(microbatch).sum().double().repeat(1 + len(self.figures))

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is the rewards (B, 1)."""
        return run_sequence_head(model, microbatch)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Sums of losses, of pairs with the larger reward for the chosen answer, and of the rewards' differences."""
        chosen_P, rejected_P = output.view(-1, 2).unbind(1)
        assert microbatch.values_B is not None
        margin_P = microbatch.values_B[::2].to(output.dtype)
        loss_P = bradley_terry(chosen_P, rejected_P, margin_P, self.center_weight)
        ahead_P = (chosen_P - rejected_P).detach()
        right_P = (ahead_P > 0).to(output.dtype) + 0.5 * (ahead_P == 0)
        counted_P = counted_pairs(microbatch).to(output.dtype)
        return torch.stack([(each_P * counted_P).sum() for each_P in (loss_P, right_P, ahead_P)])


class RatingLoss:
    """Mean squared error of rewards beside ratings, over the answers of the global batch (see `engine.base.Loss`)."""

    parts: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of answers."""
        return has_class(microbatch).sum().double()

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is the rewards (B, 1)."""
        return run_sequence_head(model, microbatch)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Sum of the squared errors."""
        assert microbatch.values_B is not None
        error_B = squared_error(output[:, 0], microbatch.values_B.to(output.dtype))
        return (error_B * has_class(microbatch)).sum()


def counted_pairs(microbatch: MicroBatch) -> Tensor:
    """Which pairs count on this rank, boolean (P): see `has_class`."""
    return has_class(microbatch)[::2]


def _of_pairs(output: Tensor, microbatch: MicroBatch) -> Tensor:
    counted_P = counted_pairs(microbatch)
    assert microbatch.lengths_B is not None
    return pair_sums(output.view(-1, 2)[counted_P], microbatch.lengths_B.view(-1, 2)[counted_P])


def _of_ratings(output: Tensor, microbatch: MicroBatch) -> Tensor:
    counted_B = has_class(microbatch)
    assert microbatch.values_B is not None
    return rating_sums(output[counted_B, 0], microbatch.values_B[counted_B])
