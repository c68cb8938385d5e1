"""Another version takes over while clients ask: nothing is dropped, no answer is of both, and the way back restores every one."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from megalm.checkpoint import find_checkpoint
from megalm.cli import main
from megalm.release.file import promote, read_release
from megalm.serve.requests import OpenRequests
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.evaluate.small import save_random_model
from tests.serve.servers import Server, serving, until

pytestmark = pytest.mark.timeout(300)
PROMPTS = ["the end", "how many hands", "a text of the hand", "question"]
ASKED = {"temperature": 0, "max_tokens": 12, "logprobs": True}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model with another tokenizer and a longer context than `run`."""
    directory = tmp_path_factory.mktemp("other") / "run"
    directory.mkdir()
    text = directory / "text.txt"
    text.write_text("a hand in the end of many questions; how the text ends\n" * 10, encoding="utf-8")
    train_bpe([text], 290, directory / "tokenizer")
    vocabulary = load_tokenizer(directory / "tokenizer").vocab_size
    run_distributed(save_random_model, 1, directory, vocabulary, "model.max_sequence_length=80")
    return directory


@pytest.fixture(scope="module")
def release(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which `run` is the first version."""
    file = tmp_path_factory.mktemp("released") / "tiny.release.json"
    assert main(["feedback", "promote", str(run), "--release", str(file), "--first"]) == 0
    return file


@pytest.fixture(scope="module")
def served(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = {"checkpoint": str(release), "chat_template": "plain", "max_rows": 8}
    with serving(tmp_path_factory.mktemp("swap"), models=[model]) as found:
        yield found


def told(server: Server) -> dict[str, Any]:
    """What /v1/models says of the release."""
    [model] = server.client().get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    return model


def ask(client: httpx.Client, prompt: str) -> tuple[str, Any]:
    """Which version answered, and its choices."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}]} | ASKED
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["system_fingerprint"], found["choices"]


def text_of(choices: Any) -> str:
    [choice] = choices
    assert choice["finish_reason"] == "length"
    return str(choice["message"]["content"])


def stream(client: httpx.Client, prompt: str) -> tuple[str, str]:
    """The same of a streamed answer, with its text alone."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True} | ASKED
    texts, versions, reasons = [], set(), []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        part = json.loads(line.removeprefix("data: "))
        versions.add(part["system_fingerprint"])
        [choice] = part["choices"]
        texts.append(choice["delta"].get("content", ""))
        reasons.append(choice["finish_reason"])
    assert reasons[-1] == "length"
    [version] = versions
    return version, "".join(texts)


def all_answers(server: Server) -> tuple[str, list[Any]]:
    """The version in service, and its answers to all prompts: bit for bit the same with nobody else asking."""
    with server.client() as client:
        found = [ask(client, prompt) for prompt in PROMPTS]
    [version] = {version for version, _ in found}
    return version, [answer for _, answer in found]


class Clients:
    """Threads that ask all the time; `seen`: of each what it got, in order."""

    def __init__(self, server: Server, count: int) -> None:
        self.seen: list[list[tuple[int, str, str]]] = [[] for _ in range(count)]
        self.failures: list[BaseException] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, number)) for number in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, server: Server, number: int) -> None:
        try:
            with server.client() as client:
                while not self._end.wait(0.03):
                    place = len(self.seen[number]) % len(PROMPTS)
                    if number % 2:
                        version, text = stream(client, PROMPTS[place])
                    else:
                        version, choices = ask(client, PROMPTS[place])
                        text = text_of(choices)
                    self.seen[number].append((place, version, text))
        except BaseException as error:
            self.failures.append(error)


def test_a_swap_under_load_drops_nothing_and_the_way_back_restores_all(
    served: Server, release: Path, other: Path
) -> None:
    versions = {1: all_answers(served)}
    assert told(served)["release"]["version"] == 1 and told(served)["context_length"] == 64
    with Clients(served, 4) as clients:
        until(lambda: all(len(one) > 2 for one in clients.seen))
        promote(release, other, {}, 1)
        until(lambda: told(served)["release"]["version"] == 2)
        counts = [len(one) for one in clients.seen]
        until(lambda: all(len(one) > count + 3 for one, count in zip(clients.seen, counts, strict=True)))
        versions[2] = all_answers(served)
        assert main(["feedback", "rollback", str(release)]) == 0
        until(lambda: told(served)["release"]["version"] == 1)
        counts = [len(one) for one in clients.seen]
        until(lambda: all(len(one) > count + 3 for one, count in zip(clients.seen, counts, strict=True)))
    assert not clients.failures, clients.failures
    assert all_answers(served) == versions[1] != versions[2]
    names = {version: number for number, (version, _) in versions.items()}
    assert len(names) == 2
    for one in clients.seen:
        order = []
        for place, version, text in one:
            assert text == text_of(versions[names[version]][1][place])
            order.append(names[version])
        assert [n for n, before in zip(order, [None, *order], strict=False) if n != before] == [1, 2, 1]
    until(lambda: served.metric("megalm_open_texts") == 0)
    assert served.metric("megalm_swaps_total", outcome="done") == 2
    assert served.metric("megalm_release_version") == 1
    until(lambda: workers_of(served) == 1)


def workers_of(server: Server) -> int:
    """Processes that hold a model for it."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return len(children.split())


def test_a_version_that_cannot_be_served_leaves_the_one_in_service_where_it_is(
    served: Server, release: Path, other: Path, tmp_path: Path
) -> None:
    before, whole = all_answers(served), release.read_bytes()

    def problem() -> str:
        assert all_answers(served) == before
        return str(told(served)["release"]["problem"] or "")

    release.write_text("{")
    until(lambda: problem().startswith("the release file could not be read at 20"))
    assert "is no release file" in "".join(served.log)
    release.write_bytes(whole)
    until(lambda: not problem())
    broken, copy = tmp_path / "broken", tmp_path / release.name
    shutil.copytree(other, broken, symlinks=True)
    shutil.copy(release, copy)
    promote(copy, broken, {}, read_release(copy).current)
    weights = max(find_checkpoint(broken).joinpath("tensors").iterdir(), key=lambda file: file.stat().st_size)
    sound = weights.read_bytes()
    weights.write_bytes(b"x" * len(sound))
    os.replace(copy, release)
    number = read_release(release).current
    until(lambda: problem().startswith(f"version {number} could not be started at 20"))
    assert str(tmp_path) not in served.client().get("/v1/models").text, "where it lies is nobody's business"
    assert weights.name in "".join(served.log) and "trying again in" in "".join(served.log)
    assert served.client().get("/ready").status_code == 200
    assert served.metric("megalm_swaps_total", outcome="failed") >= 2
    weights.write_bytes(sound)  # nothing of the release file changes
    until(lambda: told(served)["release"]["version"] == number)
    assert told(served)["release"]["problem"] is None
    assert main(["feedback", "rollback", str(release)]) == 0
    until(lambda: told(served)["release"]["version"] == 1)
    assert all_answers(served) == before
    shutil.rmtree(broken)


def test_a_release_that_cannot_be_served_is_told_at_the_start(
    run: Path, release: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.release.json"
    shutil.copytree(run, tmp_path / "gone")
    promote(gone, tmp_path / "gone", {}, None)
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "damaged.release.json").write_text('{"format": 1, "current": 3}')
    for arguments, wrong in (
        ([str(tmp_path / "absent.release.json")], "--first"),
        ([str(tmp_path / "damaged.release.json")], "`versions` is missing"),
        ([str(gone)], "version 1: "),
        (["--set", f"models=[{{checkpoint: {release}, step: '7'}}]"], "leave step out"),
    ):
        assert main(["serve", *arguments, "--port", "0"]) == 2
        [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("megalm: error:")]
        assert wrong in line


def test_only_requests_that_are_open_are_waited_for() -> None:
    import asyncio

    async def waits() -> list[bool]:
        requests, done = OpenRequests(), []
        first = requests.one()
        first.__enter__()
        waiting = asyncio.create_task(requests.over(60))
        await asyncio.sleep(0)
        with requests.one():  # it began later
            done.append(waiting.done())
            first.__exit__(None, None, None)
            await asyncio.wait_for(waiting, 10)
            await requests.over(0.01)  # it gives up
        await asyncio.wait_for(requests.over(60), 10)
        return done

    assert asyncio.run(waits()) == [False]
