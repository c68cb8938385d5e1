"""Draws RUN_DIR/learning_curve.png from the metrics file when a run ends."""

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megalm.atomic import write_bytes
from megalm.smoothing import smooth
from megalm.train.callbacks.base import Callback, Run
from megalm.train.callbacks.metrics import FILE_NAME, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

BLUE, ORANGE, GREY, RED = "#2563eb", "#ea580c", "#94a3b8", "#dc2626"


class LearningCurve(Callback):
    """On rank 0, at the end: loss of each step, smoothed, on validation data, and the learning rate. No steps, no picture.

    A picture that cannot be drawn is a warning: the run is none the worse for it.
    """

    def on_end(self, run: Run) -> None:
        if run.layout.rank != 0:
            return
        try:
            curve = read_curve(run.directory / FILE_NAME)
            if len(curve.steps):
                write_bytes(run.directory / "learning_curve.png", draw(curve, _title(run)))
        except Exception as error:
            logger.warning("the learning curve could not be drawn: %r", error)


@dataclass
class Curve:
    """What a metrics file says about learning; a loss that was not finite is NaN. restarts: steps that were resumed from."""

    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    skipped: np.ndarray
    validation: dict[int, float]
    restarts: list[int]


def read_curve(path: Path) -> Curve:
    """The curve in the metrics file at `path`."""
    rows, validation, restarts = [], {}, []
    for line in read_metrics(path):
        if "loss" in line:
            rows.append((line["step"], line["loss"], line["lr"], line["skipped"]))
        elif "valid_loss" in line:
            validation[line["step"]] = np.nan if line["valid_loss"] is None else line["valid_loss"]
        elif line["event"] == "start" and line["step"] > 0:
            restarts.append(line["step"])
    steps, losses, rates, skipped = np.array(rows, dtype=float).reshape(-1, 4).T  # None becomes NaN
    return Curve(steps, losses, rates, skipped.astype(bool), validation, restarts)


def draw(curve: Curve, title: str) -> bytes:
    """The picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rate_axes = axes.twinx()
    axes.set_zorder(rate_axes.get_zorder() + 1)  # the losses above the learning rate
    axes.patch.set_visible(False)
    handles = [*_draw_losses(axes, curve), *_draw_marks(axes, curve), *_draw_rate(rate_axes, curve)]
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(handles=handles, frameon=False, fontsize=9, loc="upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_losses(axes: "Axes", curve: Curve) -> list[Any]:
    marker = "o" if len(curve.steps) == 1 else ""  # a line needs two points
    handles = axes.plot(curve.steps, curve.losses, color=BLUE, alpha=0.3, linewidth=0.8, label="loss")
    handles += axes.plot(
        curve.steps, smooth(curve.losses), color=BLUE, linewidth=1.8, marker=marker, label="loss, smoothed"
    )
    if curve.validation:
        steps, losses = zip(*sorted(curve.validation.items()), strict=True)
        handles += axes.plot(
            steps, losses, color=ORANGE, linewidth=1.4, marker="o", markersize=4, label="validation loss"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(color="#e2e8f0", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _draw_marks(axes: "Axes", curve: Curve) -> list[Any]:
    handles: list[Any] = []
    for restart in curve.restarts:
        line = axes.axvline(restart, color=GREY, linewidth=1, linestyle="--", label="resumed")
        handles = [line]
    if curve.skipped.any():
        steps = curve.steps[curve.skipped]
        floor = axes.get_xaxis_transform()  # x in steps, y in parts of the axes
        handles += axes.plot(
            steps,
            np.full(len(steps), 0.015),
            "x",
            color=RED,
            markersize=5,
            transform=floor,
            label="skipped step",
        )
    return handles


def _draw_rate(axes: "Axes", curve: Curve) -> list[Any]:
    handles = axes.plot(
        curve.steps, curve.rates, color=GREY, linewidth=1.2, linestyle=":", label="learning rate"
    )
    axes.set_ylabel("learning rate", color="#64748b")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.tick_params(axis="y", colors="#64748b")
    axes.spines[["top"]].set_visible(False)
    return handles


def _title(run: Run) -> str:
    config = run.config
    size = config.model.num_parameters()
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if size >= s)
    batch = f"{config.batch.global_batch_size} x {config.batch.seq_length} tokens a step"
    return f"{size / scale:.3g}{unit} parameters, {run.layout.describe()}, {batch}, {config.precision.dtype}"
