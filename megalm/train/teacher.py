"""A frozen decoder that teaches: what it makes of the microbatches of a step, before the step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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

    They are smaller than logits by H / V; `logits` makes these a part of the tokens at a time. layer_outputs: by number,
    those that were asked for.
    """

    model: GPT
    hidden_states: Tensor
    layer_outputs: dict[int, Tensor] = field(default_factory=dict)

    def logits(self) -> HiddenTeacher:
        """Logits of the tokens in the order (S, B), on this rank's columns. Collective over the tensor-parallel ranks."""
        hidden_SBH = self.model.whole_hidden(self.hidden_states)
        return HiddenTeacher(hidden_SBH.flatten(0, 1), self.model.real_output_weight())


class Teacher:
    """Runs a frozen model over the microbatches of each step and leaves `LastHidden` with them on the last stage."""

    def __init__(self, engine: MegatronEngine, layers: Sequence[int] = ()) -> None:
        """layers: whose outputs are wanted, too; they lie on the last part of the pipeline."""
        self.engine = engine
        self.layers = layers
        self._outputs: dict[int, Tensor] = {}

    def __call__(self, microbatches: Sequence[MicroBatch], training: bool) -> None:
        """See `train.tasks.Preparation`. A validation is of the student alone."""
        if not training:
            return
        found = self.engine.forward(microbatches, self.run, self.last_hidden)
        for microbatch, score in zip(microbatches, found, strict=False):  # none on the other stages
            microbatch.scores[TEACHER] = score

    def run(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """Run a stage; the last one returns its hidden states instead of logits."""
        state = microbatch.forward_state()
        state.head = _hidden_itself
        state.layer_outputs = dict.fromkeys(self.layers)
        output = model(microbatch.tokens_BS, state)
        self._outputs = {number: part for number, part in state.layer_outputs.items() if part is not None}
        return output

    def last_hidden(self, output: Tensor, microbatch: MicroBatch) -> LastHidden:
        """What the last stage's `run`, just before, returned and kept."""
        model = self.engine.chunks[-1]
        assert isinstance(model, GPT)
        return LastHidden(model, output, self._outputs)


def _hidden_itself(model: GPT, hidden_states: Tensor) -> Tensor:
    return hidden_states


def load_teacher(config: Config, layout: Layout) -> Teacher:
    """The teacher that `config` names on the run's ranks. Collective."""
    assert config.distill.teacher is not None
    checkpoint = find_frozen(config.distill.teacher, TEACHER)
    settings = frozen_config(config, TEACHER, checkpoint, config.distill.teacher_dtype)
    pairs = config.distill.hidden_layers if config.distill.hidden_loss_weight else []
    return Teacher(load_frozen(settings, layout, checkpoint), [teacher for _, teacher in pairs])
