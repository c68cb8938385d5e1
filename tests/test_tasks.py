"""Worker processes: an error, Ctrl-C and SIGTERM end them all at once, and undo what is unfinished."""

import signal
import threading

import numpy as np
import pytest

from megalm.dataset import IndexedDatasetWriter, merge
from megalm.errors import UserError
from megalm.tasks import Task, ends_on_sigterm, run_tasks
from megalm.tokenizer import train_tokenizer


def wait_for_ever() -> None:
    threading.Event().wait()


def fail() -> None:
    raise UserError("a wrong line")


def check_that_ctrl_c_is_not_heard() -> None:
    if signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []):
        raise RuntimeError("a worker would answer Ctrl-C with a traceback of its own")


def test_an_error_ends_the_tasks_that_are_under_way():
    with pytest.raises(UserError, match="a wrong line"):
        run_tasks([Task(wait_for_ever, (), 1), Task(fail, (), 1)], 2, lambda _: None)


def test_workers_leave_ctrl_c_to_their_parent():
    run_tasks([Task(check_that_ctrl_c_is_not_heard, (), 1)] * 2, 2, lambda _: None)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def terminate(*_, **__) -> None:
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_amid_a_training_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some words")
    monkeypatch.setattr("megalm.tokenizer.training.train.count_words", terminate)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        train_tokenizer([tmp_path / "a.txt"], tmp_path / "sub" / "t", "bpe", 300)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_amid_a_merge_leaves_nothing(tmp_path, monkeypatch):
    with IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(3))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("megalm.dataset.merging.Copier.copy", terminate)
    with pytest.raises(SystemExit):
        merge([tmp_path / "a"], tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == before


def test_a_handler_that_is_there_stays():
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with ends_on_sigterm():
            terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
