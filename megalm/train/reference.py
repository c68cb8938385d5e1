"""The model that task `dpo` compares with: what it, and the one that is trained, say of the answers before each step."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.config.schema import Config
from megalm.engine.base import Engine, MicroBatch
from megalm.errors import UserError
from megalm.model.lora import without_adapters
from megalm.parallel.layout import Layout
from megalm.train.answer_logprobs import answer_logprobs, run_token_losses
from megalm.train.classify import has_class
from megalm.train.frozen import find_frozen, frozen_config, load_frozen
from megalm.train.preference_losses import kto_baseline

REFERENCE, BASELINE = "reference", "baseline"
"""Names of its scores on a microbatch: log-probabilities of the answers (B), and of task `kto` an estimate of the divergence."""


class Reference:
    """Leaves with the microbatches of each step, on the last stage, the reference's log-probabilities of their answers."""

    def __init__(self, engine: Engine, adapters_off: bool = False) -> None:
        """engine: of the reference; adapters_off: it is the one that is trained, less its adapters."""
        self.engine, self.adapters_off = engine, adapters_off

    def __call__(self, microbatches: Sequence[MicroBatch], training: bool) -> None:
        """See `train.tasks.Preparation`."""
        for microbatch, logprobs_B in zip(microbatches, self.logprobs(microbatches), strict=False):
            microbatch.scores[REFERENCE] = logprobs_B

    def logprobs(self, microbatches: Sequence[MicroBatch]) -> list[Tensor]:
        """Log-probabilities (B) of each microbatch's answers; none on other stages than the last."""
        with without_adapters(self.engine.chunks) if self.adapters_off else nullcontext():
            return self.engine.forward(microbatches, run_token_losses, answer_logprobs)


class ReferenceWithBaseline(Reference):
    """And the mean of log(model / reference) over the global batch's prompts with answers of others, for `kto`."""

    def __init__(self, engine: Engine, adapters_off: bool, trained: Engine) -> None:
        super().__init__(engine, adapters_off)
        self.trained = trained

    def __call__(self, microbatches: Sequence[MicroBatch], training: bool) -> None:
        super().__call__(microbatches, training)
        others = [microbatch.mismatched for microbatch in microbatches]
        theirs = self.logprobs(others)  # type: ignore[arg-type]
        mine = self.trained.forward(others, run_token_losses, answer_logprobs)  # type: ignore[arg-type]
        layout = self.trained.layout
        if not layout.is_last_stage:
            return
        sums = torch.zeros(2, dtype=torch.float64, device=layout.device)
        for microbatch, mine_B, theirs_B in zip(microbatches, mine, theirs, strict=True):
            counted_B = has_class(microbatch)
            sums += torch.stack([((mine_B - theirs_B).double() * counted_B).sum(), counted_B.sum().double()])
        dist.all_reduce(sums, group=layout.groups.dp_cp)
        for microbatch in microbatches:
            microbatch.scores[BASELINE] = kto_baseline(*sums)


def load_reference(config: Config, layout: Layout, trained: Engine) -> Reference:
    """The reference that `config` names on the run's ranks; the model that is trained less its adapters, if it names none and
    there are such. Collective.
    """
    adapters_off = bool(config.lora.rank) and config.dpo.reference is None
    engine: Engine = trained if adapters_off else _frozen(config, layout)
    if config.dpo.loss == "kto":
        return ReferenceWithBaseline(engine, adapters_off, trained)
    return Reference(engine, adapters_off)


def _frozen(config: Config, layout: Layout) -> Engine:
    path = config.dpo.reference or config.run.load
    assert path is not None
    checkpoint = find_frozen(path, REFERENCE)
    return load_frozen(frozen_config(config, REFERENCE, checkpoint, None), layout, checkpoint)


def reference_logprobs(microbatch: MicroBatch) -> Tensor:
    """The reference's log-probabilities (B) of a microbatch's answers, from the cache or its scores."""
    if microbatch.reference_B is not None:
        return microbatch.reference_B
    if REFERENCE not in microbatch.scores:
        raise UserError(
            "task `dpo` runs within `megalm train` alone; set task=reward or task=pretrain for the model by itself"
        )
    return microbatch.scores[REFERENCE]
