"""metrics.jsonl: what its lines hold, and that each step stands in it once."""

import json
import resource

import pytest

from megalm.train.callbacks.base import Validation
from megalm.train.callbacks.metrics import MetricsFile, read_metrics


def strict_lines(run):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    text = (run.directory / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def steps_in(run):
    return [line["step"] for line in read_metrics(run.directory / "metrics.jsonl") if "loss" in line]


def started(run):
    metrics = MetricsFile()
    metrics.on_start(run)
    return metrics


def test_step_line_holds_metrics_and_values(make_run, record):
    run = make_run()
    metrics = started(run)
    step = record(1, 2.25)
    step.values["mfu"] = 0.5
    step.metrics.more["z_loss"] = 1.25
    metrics.on_step(run, step)
    expected = {
        "step": 1,
        "loss": 2.25,
        "grad_norm": 1.5,
        "lr": 1e-3,
        "tokens": 64,
        "weight": 60.0,
        "skipped": False,
    }
    assert strict_lines(run)[-1] == expected | {"z_loss": 1.25, "mfu": 0.5}


def test_start_validation_and_event_lines(make_run):
    run = make_run()
    run.facts["mfu_against"] = "peak"
    metrics = started(run)
    run.step = 4
    metrics.on_validation(run, Validation({"loss": 2.0, "perplexity": 7.4}))
    metrics.on_event(run, "checkpoint ü saved")
    start, validation, event = strict_lines(run)
    layout = {"engine": "megatron", "layout": "TP1 x PP1 x DP1", "world_size": 1}
    assert start == {"step": 0, "event": "start", "mfu_against": "peak"} | layout
    assert validation == {"step": 4, "valid_loss": 2.0, "valid_perplexity": 7.4}
    assert event == {"step": 4, "event": "checkpoint ü saved"}


def test_lines_are_on_disk_at_once(make_run, play):
    run = make_run()
    metrics = started(run)
    for step in (1, 2, 3):
        play([metrics], run, until=step)
        assert steps_in(run)[-1] == step


def test_numbers_that_are_not_finite_become_null(make_run, record):
    run = make_run()
    metrics = started(run)
    step = record(1, float("nan"), skipped=True)
    step.metrics.grad_norm = float("inf")
    step.values["mfu"] = float("-inf")
    metrics.on_step(run, step)
    metrics.on_validation(run, Validation({"loss": float("nan"), "perplexity": float("inf")}))
    line, validation = strict_lines(run)[-2:]
    assert (line["loss"], line["grad_norm"], line["mfu"], line["skipped"]) == (None, None, None, True)
    assert validation == {"step": 0, "valid_loss": None, "valid_perplexity": None}


def test_interval_thins_lines_but_not_tokens(make_run, play):
    run = make_run(interval=3)
    play([started(run)], run, until=7)
    assert [(line["step"], line["tokens"]) for line in strict_lines(run)[1:]] == [(3, 192), (6, 384)]


def test_resume_drops_what_a_killed_run_wrote_past_its_checkpoint(make_run, play):
    run = make_run()
    killed = started(run)
    play([killed], run, until=5)
    killed.on_validation(run, Validation({"loss": 2.0, "perplexity": 7.4}))
    path = run.directory / "metrics.jsonl"
    before = path.read_bytes().splitlines()
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')  # killed in the middle of a line

    resumed = make_run(step=3)
    play([started(resumed)], resumed, until=6)
    assert path.read_bytes().splitlines()[:4] == before[:4]
    assert steps_in(resumed) == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in strict_lines(resumed) if "loss" in line] == [
        64 * n for n in range(1, 7)
    ]
    assert [line["step"] for line in strict_lines(resumed) if "event" in line] == [0, 3]
    assert not any("valid_loss" in line for line in strict_lines(resumed))
    assert [entry.name for entry in run.directory.iterdir()] == ["metrics.jsonl"]


def test_resume_counts_tokens_of_steps_between_lines(make_run, play):
    run = make_run(interval=3)
    play([started(run)], run, until=5)
    resumed = make_run(step=5, interval=3)
    play([started(resumed)], resumed, until=6)
    assert [(line["step"], line["tokens"]) for line in strict_lines(resumed) if "loss" in line] == [
        (3, 192),
        (6, 384),
    ]


def test_a_run_from_the_start_in_a_used_directory_begins_anew(make_run, play):
    run = make_run()
    play([started(run)], run, until=4)
    again = make_run()
    play([started(again)], again, until=2)
    assert [(line["step"], line["tokens"]) for line in strict_lines(again) if "loss" in line] == [
        (1, 64),
        (2, 128),
    ]


def test_rollback_replaces_steps_and_keeps_events(make_run, play):
    run = make_run()
    metrics = started(run)
    play([metrics], run, until=5)
    metrics.on_validation(run, Validation({"loss": 2.0, "perplexity": 7.4}))
    metrics.on_event(run, "step 5 skipped")
    run.step = 2
    metrics.on_event(run, "rolled back to step 2")
    play([metrics], run, until=4)
    assert steps_in(run) == [1, 2, 3, 4]
    assert [line["tokens"] for line in strict_lines(run) if "loss" in line] == [64, 128, 192, 256]
    events = [line["event"] for line in strict_lines(run) if "event" in line]
    assert events == ["start", "step 5 skipped", "rolled back to step 2"]
    assert not any("valid_loss" in line for line in strict_lines(run))


def test_failure_to_write_is_raised(make_run, play):
    run = make_run()
    metrics = started(run)
    size = (run.directory / "metrics.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OSError):
            play([metrics], run, until=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    metrics.on_end(run)


def test_a_validation_before_the_first_step_stands_once_when_the_run_begins_again(make_run):
    for _ in range(2):
        run = make_run()
        started(run).on_validation(run, Validation({"loss": 2.0}))
    assert [line["valid_loss"] for line in strict_lines(run) if "valid_loss" in line] == [2.0]
    started(make_run(step=3))
    assert [line["valid_loss"] for line in strict_lines(run) if "valid_loss" in line] == [2.0]
