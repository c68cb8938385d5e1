"""The list of callbacks that a configuration asks for."""

from megalm.config.schema import Config, LoggingConfig
from megalm.train.callbacks import Validation, standard_callbacks


def names(**logging):
    return [
        type(callback).__name__ for callback in standard_callbacks(Config(logging=LoggingConfig(**logging)))
    ]


def test_throughput_comes_before_those_who_write_its_values():
    assert names() == ["Throughput", "MetricsFile", "TensorBoard", "Progress", "LearningCurve"]


def test_logging_section_turns_callbacks_off():
    assert names(tensorboard=False, progress=False, plot=False) == ["Throughput", "MetricsFile"]
    assert "TensorBoard" not in names(tensorboard=False)
    assert "Progress" not in names(progress=False)
    assert "LearningCurve" not in names(plot=False)


def test_other_ranks_write_and_print_nothing(make_run, play, capfd):
    run = make_run(rank=1)
    callbacks = standard_callbacks(run.config)
    for callback in callbacks:
        callback.on_start(run)
    play(callbacks, run, until=3)
    for callback in callbacks:
        callback.on_validation(run, Validation({"loss": 2.0, "perplexity": 7.4}))
        callback.on_event(run, "saved")
        callback.on_end(run)
    assert not run.directory.exists()
    assert capfd.readouterr().err == ""


def test_values_of_throughput_reach_every_file(make_run, play, capfd):
    run = make_run()
    callbacks = standard_callbacks(run.config)
    for callback in callbacks:
        callback.on_start(run)
    play(callbacks, run, until=2)
    for callback in callbacks:
        callback.on_end(run)
    assert '"mfu": ' in (run.directory / "metrics.jsonl").read_text()
    assert "MFU " in capfd.readouterr().err
    assert (run.directory / "learning_curve.png").exists()
    assert list((run.directory / "tensorboard").iterdir())
