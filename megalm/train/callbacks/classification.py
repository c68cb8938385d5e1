"""Accuracy and F1 of each validation of task `classify`, and at the end the confusion matrix as JSON and as a picture."""

import io
import json
import logging

import numpy as np
from numpy.typing import NDArray

from megalm.atomic import write_bytes, write_text
from megalm.evaluate.metrics import classification_metrics
from megalm.run_files import CLASSIFICATION as REPORT
from megalm.train.callbacks.base import Callback, Run, Validation

logger = logging.getLogger(__name__)

PICTURE = "confusion_matrix.png"
_MOST_CLASSES = 100
"""Of which a picture still shows something."""


class ClassificationReport(Callback):
    """Adds figures to each validation; rank 0 writes those of the last one to the run directory when the run ends."""

    def __init__(self) -> None:
        self.confusion_CC: NDArray[np.int64] | None = None
        self.step = 0

    def on_validation(self, run: Run, validation: Validation) -> None:
        assert validation.tally is not None
        labels = run.config.classify.labels
        self.confusion_CC = validation.tally.round().astype(np.int64).reshape(len(labels), len(labels))
        self.step = run.step
        figures = classification_metrics(self.confusion_CC, labels)
        validation.values |= {name: figures[name] for name in ("accuracy", "macro_f1")}
        for label, found in figures["classes"].items():
            validation.values |= {f"{name}_{label}": found[name] for name in ("precision", "recall", "f1")}

    def on_end(self, run: Run) -> None:
        if run.layout.rank or self.confusion_CC is None:
            return
        labels = run.config.classify.labels
        report = {
            "step": self.step,
            **classification_metrics(self.confusion_CC, labels),
            "labels": labels,
            "confusion": self.confusion_CC.tolist(),
        }
        write_text(run.directory / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        if not run.config.logging.plot or len(labels) > _MOST_CLASSES:
            return
        try:
            write_bytes(run.directory / PICTURE, draw(self.confusion_CC, labels))
        except Exception as error:
            logger.warning("the confusion matrix could not be drawn: %r", error)


def draw(confusion_CC: NDArray[np.int64], labels: list[str]) -> bytes:
    """A PNG: rows are true classes, columns predicted ones, coloured by the share of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(size + 1, size), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    share_CC = confusion_CC / np.maximum(confusion_CC.sum(1, keepdims=True), 1)
    axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), count in np.ndenumerate(confusion_CC):
        colour = "white" if share_CC[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
