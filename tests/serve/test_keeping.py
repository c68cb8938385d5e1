"""What is kept of requests gets to the disk whoever goes, waits for nothing long, and leaves no words in the log."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from megalm.feedback.conversations import list_conversations, show_conversation
from megalm.feedback.origin import origin_of
from megalm.feedback.store import Said, Store
from megalm.serve.api.errors import ApiError
from megalm.serve.api.kept import Keeping
from megalm.serve.api.texts import Text
from megalm.serve.keeping import THREADS, Keeper
from megalm.serve.pool import ServedModel
from megalm.serve.settings import ModelSettings
from tests.feedback.small import ANN, user


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    yield Keeper(f"sqlite:///{tmp_path}/store.db")


@pytest.fixture(scope="module")
def model(run: Path) -> ServedModel:
    """One that nobody has started."""
    return ServedModel(ModelSettings(checkpoint=str(run), chat_template="plain"), 1)


def keeping_of(keeper: Keeper, model: ServedModel) -> Keeping:
    return Keeping(keeper, ANN, Said("one", "tiny", user("private-question"), {}, "talk", True), model)


def answers(words: str = "private-answer", reason: str | None = "stop") -> list[Text]:
    return [Text(words, reason)]


class Busy:
    """Holds threads of a keeper until it is let go."""

    def __init__(self, keeper: Keeper, count: int, is_long: bool = False) -> None:
        self._free = threading.Event()
        wait = self._free.wait
        self.tasks = [asyncio.ensure_future(keeper.do(lambda _: wait(60), is_long)) for _ in range(count)]

    async def end(self) -> None:
        self._free.set()
        await asyncio.gather(*self.tasks)


def test_an_exchange_whose_request_is_cancelled_while_it_waits_to_be_kept_is_kept(
    keeper: Keeper, model: ServedModel
) -> None:
    async def run() -> None:
        busy = Busy(keeper, THREADS)
        await asyncio.sleep(0)
        keeping = keeping_of(keeper, model)
        request = asyncio.ensure_future(keeping.keep(answers()))
        await asyncio.sleep(0.05)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        keeping.leave(answers())  # as a request does at its end
        await busy.end()
        await keeper.close()

    asyncio.run(run())
    [exchange] = show_conversation(Store(str(keeper.store.url)), ANN, "talk")["exchanges"]
    assert exchange["choices"][0]["content"] == "private-answer"


def test_what_takes_long_keeps_no_answer_waiting(keeper: Keeper, model: ServedModel) -> None:
    async def run() -> None:
        busy = Busy(keeper, 2 * THREADS, is_long=True)
        await asyncio.sleep(0)
        await asyncio.wait_for(keeping_of(keeper, model).keep(answers()), 30)
        await busy.end()
        await keeper.close()

    asyncio.run(run())
    assert len(list_conversations(Store(str(keeper.store.url)), ANN, 5)[0]) == 1


def test_a_store_that_fails_leaves_nobodys_words_in_the_log(
    keeper: Keeper, model: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with keeper.store.writing() as session:
        session.execute(text("DROP TABLE choices"))

    async def run() -> None:
        with pytest.raises(ApiError, match="cannot be kept just now"):
            await keeping_of(keeper, model).keep(answers())

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert "OperationalError" in caplog.text and "private" not in caplog.text


def test_the_checkpoint_is_the_one_that_the_model_has_when_the_answer_is_there(
    keeper: Keeper, model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = [tmp_path / "step_1", tmp_path / "step_2"]
    for number, folder in enumerate(checkpoints, 1):
        folder.mkdir()
        (folder / "state.json").write_text(f'{{"step": {number}}}')
        (folder / "manifest.json").write_text("{}")

    async def run() -> None:
        monkeypatch.setattr(model, "checkpoint", checkpoints[0])
        keeping = keeping_of(keeper, model)
        monkeypatch.setattr(
            model, "checkpoint", checkpoints[1]
        )  # a copy was started again, and found a newer one
        await keeping.keep(answers())

    asyncio.run(run())
    with keeper.store.reading() as session:
        assert session.execute(text("SELECT checkpoint, step FROM exchanges")).one() == (
            str(checkpoints[1]),
            2,
        )
    before = origin_of(checkpoints[1])
    (checkpoints[1] / "state.json").write_text('{"step": 3}')
    (checkpoints[1] / "manifest.json").write_text("{ }")
    assert before.step == 2 and origin_of(checkpoints[1]).step == 3
