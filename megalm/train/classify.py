"""Task `classify`: predict labels of texts from the model's sequence head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megalm.config.schema import Config, DataSource
from megalm.config.suggest import nearest
from megalm.dataset.framing import Framing
from megalm.dataset.label_stream import EveryDocument, LabelStream
from megalm.dataset.labels import label_counts
from megalm.dataset.opening import blend_of
from megalm.engine.base import MicroBatch
from megalm.errors import UserError
from megalm.generate.classify import run_sequence_head
from megalm.tokenizer.base import Tokenizer
from megalm.train.tally import Tally


def complete(config: Config) -> Config:
    """A copy with the classes, the head's outputs and the classes' weights taken from the training data where they are open.

    UserError where they do not fit each other.
    """
    config = config.model_copy(deep=True)
    settings, head = config.classify, config.model.sequence_head
    if not config.data.train and head.outputs:
        return config  # to be planned, not run
    counts: dict[str, int] = {}
    for source in config.data.train:
        names, found = label_counts(source.path)
        for name in names:
            counts[name] = counts.get(name, 0) + found[name]
    settings.labels = settings.labels or list(counts)
    if len(settings.labels) < 2:
        raise UserError(
            f"task `classify` has the classes {settings.labels}: at least two are needed (classify.labels, data.train)"
        )
    head.outputs = head.outputs or len(settings.labels)
    if head.outputs != len(settings.labels):
        raise UserError(
            f"model.sequence_head.outputs is {head.outputs}, and there are {len(settings.labels)} classes "
            f"({', '.join(settings.labels)}): leave it out"
        )
    settings.class_weights = _weights(config, counts)
    return config


def _weights(config: Config, counts: dict[str, int]) -> dict[str, float]:
    """Each class's weight in the loss."""
    labels, given = config.classify.labels, config.classify.class_weights
    if given == "balanced":
        if missing := [label for label in labels if not counts.get(label)]:
            raise UserError(
                f"classify.class_weights `balanced`: data.train has no sample of {', '.join(missing)}: give weights"
            )
        total = sum(counts[label] for label in labels)
        return {label: total / (len(labels) * counts[label]) for label in labels}
    assert isinstance(given, dict)
    for label, weight in given.items():
        if label not in labels:
            raise UserError(
                f"classify.class_weights names {label!r}{nearest(label, labels)} (classes: {', '.join(labels)})"
            )
        if not 0 < weight < float("inf"):
            raise UserError(f"classify.class_weights.{label} is {weight}: it must be above 0 and finite")
    return {label: given.get(label, 1.0) for label in labels}


def open_labelled(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> LabelStream:
    """Open a blend as documents with labels, in random order."""
    return _open(LabelStream, config, sources, tokenizer)


def open_every(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> LabelStream:
    """Open sources as documents with labels, each once."""
    return _open(EveryDocument, config, sources, tokenizer)


def _open(
    kind: type[LabelStream], config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> LabelStream:
    framing = Framing.of(config, tokenizer)
    assert tokenizer is not None
    return kind(
        blend_of(sources),
        config.run.seed,
        framing,
        config.classify.labels,
        tokenizer.hash,
        config.model.vocab_size,
    )


def classification_loss(config: Config) -> "ClassificationLoss":
    """The loss of a completed configuration; one that is only planned has weights of 1."""
    weights = config.classify.class_weights
    labels = config.classify.labels
    given = isinstance(weights, dict) and weights.keys() >= set(labels) and bool(labels)
    return ClassificationLoss([weights[label] for label in labels] if given else None)  # type: ignore[index, misc]


class ClassificationLoss:
    """Mean cross entropy of the samples' classes, each weighted by its class (see `engine.base.Loss`)."""

    parts: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

    def __init__(self, class_weights: list[float] | None = None) -> None:
        """class_weights: by the number of the class, None for 1."""
        self.class_weights = class_weights

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Sum of the weights of the samples that have a class."""
        return self._weights_B(microbatch).sum()

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is the logits (B, classes)."""
        return run_sequence_head(model, microbatch)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Sum of weight x cross entropy."""
        assert microbatch.classes_B is not None
        loss_B = F.cross_entropy(output, microbatch.classes_B.clamp(min=0), reduction="none")
        return (loss_B * self._weights_B(microbatch).to(loss_B.dtype)).sum()

    def _weights_B(self, microbatch: MicroBatch) -> Tensor:
        counted_B = has_class(microbatch)
        if self.class_weights is None:
            return counted_B.double()
        assert microbatch.classes_B is not None
        weights_C = torch.tensor(self.class_weights, dtype=torch.float64, device=counted_B.device)
        return weights_C[microbatch.classes_B.clamp(min=0)] * counted_B


def has_class(microbatch: MicroBatch) -> Tensor:
    """Which samples count on this rank, boolean (B): of ranks that share sequences the first one's alone."""
    assert microbatch.classes_B is not None
    counted_B = microbatch.classes_B >= 0
    shared = microbatch.context is not None and microbatch.context.group.rank() > 0
    return counted_B & (not shared)


def confusion_tally(config: Config) -> Tally:
    """Counts `confusion` in a validation."""
    return Tally(config.model.sequence_head.outputs**2, confusion)


def confusion(output: Tensor, microbatch: MicroBatch) -> Tensor:
    """How often each class (row) was taken for each (column) in a microbatch, float64 (classes x classes)."""
    counted_B, classes = has_class(microbatch), output.shape[-1]
    assert microbatch.classes_B is not None
    cell_B = microbatch.classes_B[counted_B] * classes + output.argmax(-1)[counted_B]
    return torch.bincount(cell_B, minlength=classes * classes).double()
