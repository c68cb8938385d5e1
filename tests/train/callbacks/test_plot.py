"""The learning curve: what is read from the metrics file, and that it is drawn."""

import io
import sys

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from megalm.train.callbacks import plot
from megalm.train.callbacks.base import Validation
from megalm.train.callbacks.metrics import MetricsFile
from megalm.train.callbacks.plot import LearningCurve, draw, read_curve


def written(run, play, until):
    metrics = MetricsFile()
    metrics.on_start(run)
    play([metrics], run, until)
    return metrics


def has_colour(picture, colour):
    return bool((np.abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.02).any())


def test_picture_is_drawn_at_the_end(make_run, play):
    run = make_run()
    metrics = written(run, play, until=20)
    metrics.on_validation(run, Validation({"loss": 2.5, "perplexity": 12.0}))
    LearningCurve().on_end(run)
    picture = imread(run.directory / "learning_curve.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 900
    assert (
        has_colour(picture, plot.BLUE) and has_colour(picture, plot.ORANGE) and has_colour(picture, plot.GREY)
    )


def test_one_step_is_enough_for_a_picture(make_run, play):
    run = make_run()
    written(run, play, until=1)
    LearningCurve().on_end(run)
    picture = imread(run.directory / "learning_curve.png")
    below_legend = picture[picture.shape[0] // 2 - 50 :]
    assert has_colour(below_legend, plot.BLUE)


def test_no_steps_no_picture(make_run, play):
    run = make_run()
    LearningCurve().on_end(run)
    written(run, play, until=0)
    LearningCurve().on_end(run)
    assert not (run.directory / "learning_curve.png").exists()


def test_a_picture_that_cannot_be_drawn_is_a_warning(make_run, play, monkeypatch, caplog):
    run = make_run()
    written(run, play, until=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    LearningCurve().on_end(run)
    assert "the learning curve could not be drawn" in caplog.text
    assert not (run.directory / "learning_curve.png").exists()


def test_other_ranks_draw_nothing(make_run, play):
    written(make_run(), play, until=2)
    run = make_run(rank=1)
    LearningCurve().on_end(run)
    assert not (run.directory / "learning_curve.png").exists()


def test_curve_holds_steps_validations_skips_and_restarts(make_run, play, record):
    run = make_run()
    metrics = written(run, play, until=2)
    metrics.on_validation(run, Validation({"loss": 2.5, "perplexity": 12.0}))
    metrics.on_step(run, record(3, float("nan"), skipped=True))
    metrics.on_event(run, "step 3 skipped")
    written(make_run(step=3), play, until=4)
    curve = read_curve(run.directory / "metrics.jsonl")
    np.testing.assert_array_equal(curve.steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(curve.losses, [10, 5, np.nan, 2.5])
    np.testing.assert_allclose(curve.rates, [1e-3, 2e-3, 3e-3, 4e-3])
    np.testing.assert_array_equal(curve.skipped, [False, False, True, False])
    assert curve.validation == {2: 2.5}
    assert curve.restarts == [3]
    assert has_colour(imread(io.BytesIO(draw(curve, "title"))), plot.RED)
