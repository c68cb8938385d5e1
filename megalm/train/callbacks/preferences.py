"""How good the rewards of task `reward` are at each validation, and at the end all figures as JSON and as a picture."""

import io
import json
import logging
from typing import Any

from megalm.atomic import write_bytes, write_text
from megalm.run_files import REWARD as REPORT
from megalm.train.callbacks.base import Callback, Run, Validation
from megalm.train.reward import kind_of_data
from megalm.train.reward_figures import pair_figures, rating_figures

logger = logging.getLogger(__name__)

PICTURE = "reward_calibration.png"
_ONLY_REPORTED = ("pairs", "answers", "bins", "chosen_shorter", "accuracy_low", "accuracy_high")


class RewardReport(Callback):
    """Adds figures to each validation; rank 0 writes those of the last one to the run directory when the run ends."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.step = 0

    def on_validation(self, run: Run, validation: Validation) -> None:
        assert validation.tally is not None
        figures = pair_figures if kind_of_data(run.config) == "pairs" else rating_figures
        self.figures, self.step = figures(validation.tally), run.step
        validation.values |= {k: value for k, value in self.figures.items() if k not in _ONLY_REPORTED}

    def on_end(self, run: Run) -> None:
        if run.layout.rank or not self.figures:
            return
        write_text(run.directory / REPORT, json.dumps({"step": self.step, **self.figures}, indent=1) + "\n")
        if not run.config.logging.plot or "bins" not in self.figures:
            return
        try:
            write_bytes(run.directory / PICTURE, draw(self.figures))
        except Exception as error:
            logger.warning("the calibration could not be drawn: %r", error)


def draw(figures: dict[str, Any]) -> bytes:
    """A PNG: how often the answer with the larger reward was the chosen one, by how sure the model was, and how many pairs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [(sure, right, count) for count, sure, right in figures["bins"] if count]
    sure, right, count = zip(*filled, strict=True)
    above.plot([0.5, 1], [0.5, 1], linestyle="--", color="grey")
    above.plot(sure, right, marker="o")
    above.set_ylabel("chosen answer preferred")
    above.set_title(
        f"accuracy {figures['accuracy']:.3f}, calibration error {figures['calibration_error']:.3f}"
    )
    below.bar(sure, count, width=0.03)
    below.set_ylabel("pairs")
    below.set_xlabel("probability of the preferred answer")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
