"""TensorBoard events, read back with TensorBoard's own reader."""

import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megalm.train.callbacks.base import Answer, Validation
from megalm.train.callbacks.tensorboard import TensorBoard


def started(run):
    callback = TensorBoard()
    callback.on_start(run)
    return callback


def scalars(run, tag):
    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_steps_validations_and_events_are_written(make_run, record):
    run = make_run()
    callback = started(run)
    step = record(1, 2.25)
    step.values["mfu"] = 0.5
    step.metrics.more["z_loss"] = 1.25
    callback.on_step(run, step)
    run.step = 1
    callback.on_validation(run, Validation({"loss": 2.5, "perplexity": 12.0}))
    callback.on_event(run, "saved")
    callback.on_end(run)
    assert scalars(run, "train/loss") == [(1, 2.25)]
    assert scalars(run, "train/grad_norm") == [(1, 1.5)]
    assert scalars(run, "train/z_loss") == [(1, 1.25)]
    assert scalars(run, "throughput/mfu") == [(1, 0.5)]
    assert scalars(run, "valid/loss") == [(1, 2.5)]
    assert scalars(run, "valid/perplexity") == [(1, 12.0)]
    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    [text] = events.Tensors("events/text_summary")
    assert text.tensor_proto.string_val[0] == b"saved"


def test_interval_thins_steps(make_run, play):
    run = make_run(interval=3)
    callback = started(run)
    play([callback], run, until=7)
    callback.on_end(run)
    assert [step for step, _ in scalars(run, "train/loss")] == [3, 6]


def test_loss_that_is_not_finite_is_written_as_such(make_run, record):
    run = make_run()
    callback = started(run)
    callback.on_step(run, record(1, float("nan"), skipped=True))
    callback.on_end(run)
    [(_, value)] = scalars(run, "train/loss")
    assert math.isnan(value)


def test_resume_purges_steps_past_the_checkpoint(make_run, play):
    run = make_run()
    killed = started(run)
    play([killed], run, until=5)
    killed.on_end(run)
    resumed = make_run(step=3)
    callback = started(resumed)
    play([callback], resumed, until=4)
    callback.on_end(resumed)
    assert [step for step, _ in scalars(resumed, "train/loss")] == [1, 2, 3, 4]


def test_rollback_purges_the_steps_it_undoes(make_run, play):
    run = make_run()
    callback = started(run)
    play([callback], run, until=5)
    run.step = 2
    play([callback], run, until=3)
    callback.on_end(run)
    assert [step for step, _ in scalars(run, "train/loss")] == [1, 2, 3]


def test_answers_are_texts_in_which_nothing_is_markup(make_run):
    run = make_run()
    callback = started(run)
    run.step = 1
    callback.on_validation(
        run, Validation({"loss": 2.5}, answers=[Answer("# one\ntwo", "<b>*three*", ["four"])])
    )
    callback.on_end(run)
    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    [text] = events.Tensors("samples/0/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (
        "**prompt**\n\n    # one\n    two\n\n**answer**\n\n    <b>*three*\n\n**reference**\n\n    four"
    )
