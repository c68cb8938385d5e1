"""A frozen decoder that teaches: what it makes of the microbatches of a step, before the step."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from megalm.config.schema import Config
from megalm.engine.base import MicroBatch
from megalm.engine.megatron import MegatronEngine
from megalm.model.distillation import HiddenTeacher
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout
from megalm.train.frozen import find_frozen, frozen_config, load_frozen

TEACHER = "teacher"
"""Name of its score on a microbatch."""


@dataclass(frozen=True)
class LastHidden:
    """A microbatch's last hidden states (S, B, H), under sequence parallelism this rank's part, and the model they are of.

    They are smaller than logits by H / V; `logits` makes these a part of the tokens at a time.
    """

    model: GPT
    hidden_states: Tensor

    def logits(self) -> HiddenTeacher:
        """Logits of the tokens in the order (S, B), on this rank's columns. Collective over the tensor-parallel ranks."""
        hidden_SBH = self.model.whole_hidden(self.hidden_states)
        return HiddenTeacher(hidden_SBH.flatten(0, 1), self.model.real_output_weight())


class Teacher:
    """Runs a frozen model over the microbatches of each step and leaves `LastHidden` with them on the last stage."""

    def __init__(self, engine: MegatronEngine) -> None:
        self.engine = engine

    def __call__(self, microbatches: Sequence[MicroBatch], training: bool) -> None:
        """See `train.tasks.Preparation`. A validation is of the student alone."""
        if not training:
            return
        found = self.engine.forward(microbatches, run_to_hidden, self.last_hidden)
        for microbatch, score in zip(microbatches, found, strict=False):  # none on the other stages
            microbatch.scores[TEACHER] = score

    def last_hidden(self, output: Tensor, microbatch: MicroBatch) -> LastHidden:
        """What `run_to_hidden` returned, with its model."""
        model = self.engine.chunks[-1]
        assert isinstance(model, GPT)
        return LastHidden(model, output)


def run_to_hidden(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    """Run a stage; the last one returns its hidden states instead of logits."""
    state = microbatch.forward_state()
    state.head = _hidden_itself
    return model(microbatch.tokens_BS, state)


def _hidden_itself(model: GPT, hidden_states: Tensor) -> Tensor:
    return hidden_states


def load_teacher(config: Config, layout: Layout) -> Teacher:
    """The teacher that `config` names on the run's ranks. Collective."""
    assert config.distill.teacher is not None
    checkpoint = find_frozen(config.distill.teacher, TEACHER)
    settings = frozen_config(config, TEACHER, checkpoint, config.distill.teacher_dtype)
    return Teacher(load_frozen(settings, layout, checkpoint))
