"""What is read of metrics.jsonl, whatever its state: finished, being written, cut short, damaged."""

import math

import numpy as np
import pytest

from megalm.report.figures import read_figures
from megalm.report.panels import with_phases
from tests.report.runs import lines_of, start_line, step_line


def read(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_figures(path)


def test_series_hold_each_figure_of_steps_and_validations_apart(tmp_path):
    found = read(
        tmp_path,
        lines_of(start_line(), step_line(1, mfu=0.4), step_line(2), {"step": 2, "valid_loss": 3.5}),
    )
    assert found.training["loss"].values.tolist() == [10.0, 5.0]
    assert found.training["mfu"].steps.tolist() == [1]
    assert found.validation["loss"] == ([2], [3.5]) and "weight" not in found.training
    assert found.last_step == 2 and found.broken == 0
    assert [event.text for event in found.events] == ["started as megatron, TP1 x PP1 x DP1, 1 process"]


def test_a_torn_last_line_is_not_there_yet_and_nothing_is_damaged(tmp_path):
    whole = lines_of(step_line(1), step_line(2))
    for cut in range(1, len(lines_of(step_line(2)))):
        found = read(tmp_path, whole[:-cut])
        assert found.last_step == 1 and found.broken == 0


def test_broken_lines_are_counted_and_the_others_are_read(tmp_path):
    broken = [
        b"{",
        b"[1, 2]",
        b'"text"',
        b'{"loss": 1}',
        b'{"step": "1"}',
        b'{"step": -1}',
        b"\xff\x00",
        b"",
        b"[" * 5000,
    ]
    text = b"".join(line + b"\n" for line in broken) + lines_of(step_line(7)).encode()
    found = read(tmp_path, text)
    assert found.broken == len(broken) and found.training["loss"].steps.tolist() == [7]


def test_numbers_that_are_not_finite_or_no_numbers_make_no_point(tmp_path):
    odd = {"loss": None, "mfu": "fast", "lr": True, "grad_norm": 10**400}
    found = read(tmp_path, lines_of(step_line(1), step_line(2) | odd) + '{"step": 3, "loss": Infinity}\n')
    loss = found.training["loss"]
    assert loss.steps.tolist() == [1, 2, 3] and np.isnan(loss.values).tolist() == [False, True, True]
    assert loss.last() == (1, 10.0) and found.median("loss") == 10.0
    assert "mfu" not in found.training and found.training["grad_norm"].steps.tolist() == [1]


def test_a_step_that_came_again_counts_as_the_last_time(tmp_path):
    found = read(
        tmp_path, lines_of(step_line(1), step_line(3, skipped=True), step_line(2, loss=7.0), step_line(3))
    )
    assert found.training["loss"].values.tolist() == [10.0, 7.0, 10 / 3] and found.skipped == 0
    assert read(tmp_path, lines_of(step_line(1, skipped=True), step_line(2))).skipped == 1


def test_no_file_is_no_figures(tmp_path):
    found = read_figures(tmp_path / "absent.jsonl")
    assert found.training == {} and found.last_step == 0 and found.broken == 0


def test_answers_a_second_of_each_phase_follow_from_its_seconds(tmp_path):
    phases = {"generate_seconds": 2.0, "score_seconds": 1.0, "train_seconds": 5.0}
    found = with_phases(read(tmp_path, lines_of(step_line(1, samples_per_second=4.0, **phases))))
    of_phase = {
        name: found[f"{name}_samples_per_second"].values[0] for name in ("generate", "score", "train")
    }
    assert of_phase == pytest.approx({"generate": 16.0, "score": 32.0, "train": 6.4})  # 32 answers in 8 s
    nothing = with_phases(read(tmp_path, lines_of(step_line(1, samples_per_second=4.0))))
    assert not any(name.startswith("train_") for name in nothing)
    idle = with_phases(
        read(tmp_path, lines_of(step_line(1, samples_per_second=4.0, **phases | {"score_seconds": 0.0})))
    )
    assert math.isinf(idle["score_samples_per_second"].values[0])
