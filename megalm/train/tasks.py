"""What can be learned: for each name of `task` in the configuration its samples and its loss, a file a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megalm.config.rlhf import RL_TASKS
from megalm.config.schema import Config, DataSource
from megalm.engine.base import Engine, Loss, MicroBatch
from megalm.errors import UserError
from megalm.parallel.layout import Layout
from megalm.tokenizer.base import Tokenizer
from megalm.train.classify import classification_loss, complete, confusion_tally, open_every, open_labelled
from megalm.train.distill import DistillationLoss, open_samples, prepare
from megalm.train.dpo import PreferenceLoss, open_all_preferences, open_preferences, prepare_reference
from megalm.train.mlm import mlm_loss, open_pairs
from megalm.train.pretrain import NextTokenLoss, open_windows
from megalm.train.reward import (
    complete_reward,
    open_all_judged,
    open_judged,
    reward_loss,
    reward_tally,
)
from megalm.train.sft import open_conversations
from megalm.train.tally import Tally


class SampleStream(Protocol):
    """Samples by number, the same on every process."""

    samples_in_budget: int | None
    """How many samples use the sources' budgets up; None where they have weights."""
    in_full: bool
    """Whether a validation takes all samples, and then some without label, instead of train.eval_batches."""

    def batch(self, positions: NDArray[np.int64]) -> Any:
        """The samples of these numbers as numpy arrays under the names of MicroBatch's fields."""

    def samples_before_repeats(self) -> int:
        """How many samples, from number 0 on, come before one is given again."""


class Preparation(Protocol):
    """What is found out about microbatches before the engine has them, e.g. by a frozen model: left in their `scores`."""

    def __call__(self, microbatches: Sequence[MicroBatch], training: bool) -> None:
        """`microbatches` are this rank's of a step (`training`) or of a validation's global batch. Collective."""


def no_preparation(
    config: Config, layout: Layout, stream: SampleStream, engine: Engine
) -> Preparation | None:
    """For tasks whose microbatches need none."""
    return None


@dataclass(frozen=True)
class Task:
    """What the loop, which knows no task, is given.

    architectures: of the models that it trains. open_stream: from the data sources to samples. make_loss: what is
    minimised. open_validation: the same for data.valid, where it differs. complete: takes from the data what the
    configuration leaves open. tally: what a validation counts besides the loss (see `Validation.tally`). prepare: what the
    loop calls with each batch before the engine; given the training samples and the engine with its first weights,
    collective.
    """

    architectures: tuple[str, ...]
    open_stream: Callable[[Config, list[DataSource], Tokenizer | None], SampleStream]
    make_loss: Callable[[Config], Loss]
    open_validation: Callable[[Config, list[DataSource], Tokenizer | None], SampleStream] | None = None
    complete: Callable[[Config], Config] | None = None
    tally: Callable[[Config], Tally] | None = None
    prepare: Callable[[Config, Layout, Any, Engine], Preparation | None] = no_preparation


TASKS = {
    "pretrain": Task(("gpt",), open_windows, lambda config: NextTokenLoss()),
    "sft": Task(("gpt",), open_conversations, lambda config: NextTokenLoss()),
    "mlm": Task(("bert",), open_pairs, mlm_loss),
    "classify": Task(
        ("gpt", "bert"),
        open_labelled,
        classification_loss,
        open_validation=open_every,
        complete=complete,
        tally=confusion_tally,
    ),
    # what the answers of these are worth, and what is learned of it, `megalm.rlhf` knows; this is the text beside them
    **dict.fromkeys(RL_TASKS, Task(("gpt",), open_windows, lambda config: NextTokenLoss())),
    "distill": Task(("gpt",), open_samples, DistillationLoss, open_validation=open_windows, prepare=prepare),
    "reward": Task(
        ("gpt",),
        open_judged,
        reward_loss,
        open_validation=open_all_judged,
        complete=complete_reward,
        tally=reward_tally,
    ),
    "dpo": Task(
        ("gpt",),
        open_preferences,
        lambda config: PreferenceLoss(config.dpo),
        open_validation=open_all_preferences,
        prepare=prepare_reference,
    ),
}


def task_of(config: Config) -> Task:
    """The task that the configuration names; UserError if it does not train such a model."""
    task, found = TASKS[config.task], config.model.architecture
    if found not in task.architectures:
        trained = " or ".join(f"`{name}`" for name in task.architectures)
        raise UserError(
            f"task `{config.task}` trains model.architecture {trained}, this one is `{found}`: change one of them"
        )
    return task
