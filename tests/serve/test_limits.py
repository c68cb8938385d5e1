"""What a server refuses, puts off and survives: wrong keys, too much at once, clients that go or stall, a copy that dies."""

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from megalm.cli import main
from megalm.serve.gate import Gate
from megalm.serve.keys import KeyFile, add_key, remove_key
from megalm.serve.meter import Bucket
from megalm.serve.metrics import Metrics
from megalm.serve.requests import OpenRequests
from megalm.serve.settings import LimitSettings
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from tests.evaluate.small import save_random_model
from tests.serve.servers import Server, serving, until

pytestmark = pytest.mark.timeout(300)
LONG = {"prompt": "the end", "max_tokens": 60, "logit_bias": {}, "n": 8}


def complete(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "the end", "max_tokens": 4} | body)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return found


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "dictionary"),
        (b'{"prompt": "a", "modle": "tiny"}', 400, "modle"),
        (b'{"prompt": "a", "model": "other"}', 404, "there are tiny"),
        (b'{"prompt": "a", "n": 0}', 400, "n: "),
        (b'{"prompt": "a", "n": 33}', 400, "at most 32"),
        (b'{"prompt": "a", "n": 9}', 400, "at most 8"),
        (b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens"),
        (b'{"prompt": "a", "max_tokens": 64}', 400, "beyond the model's context of 64"),
        (b'{"prompt": [999999]}', 400, "none of the model's"),
        (b'{"prompt": [-1]}', 400, "prompt"),
        (b'{"prompt": []}', 400, "no prompt"),
        (b'{"prompt": [[]]}', 400, "no token"),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', 400, "no token id"),
        (b'{"prompt": "a", "logit_bias": {"99999": 1}, "stream": true}', 400, "no token id"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "finite"),
        (b'{"prompt": "a", "seed": 1e99}', 400, "seed"),
        (b'{"prompt": "a", "stop": [""]}', 400, "stop"),
        (b'{"prompt": "a", "best_of": 3}', 400, "best_of"),
        (b'{"prompt": "a", "suffix": "b"}', 400, "suffix"),
        (b'{"prompt": "a", "echo": true, "logprobs": 1, "stream": true}', 400, "echo"),
        (b'{"prompt": "a", "max_tokens": 0}', 400, "nothing to write"),
        (b'{"prompt": [1], "max_tokens": 0, "echo": true, "logprobs": 0}', 400, "it must have 2 to 65"),
        (b'{"prompt": "a", "logprobs": 21}', 400, "logprobs"),
        (b'{"prompt": "\\ud800"}', 400, ""),
    ],
)
def test_what_makes_no_sense_is_one_sentence(server: Server, body: bytes, status: int, told: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert told in error_of(answer)["message"]


def test_conversations_are_checked_too(server: Server) -> None:
    with server.client() as client:
        for messages, more, told in (
            ([], {}, "messages"),
            ([{"role": "robot", "content": "a"}], {}, "role"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                {},
                "content",
            ),
            ([{"role": "user", "content": "a"}], {"top_logprobs": 2}, "needs logprobs"),
            ([{"role": "user", "content": "a"}], {"tools": []}, "tools"),
            ([{"role": "user", "content": "the end " * 100}], {}, "shorten it"),
        ):
            answer = client.post("/v1/chat/completions", json={"messages": messages} | more)
            assert answer.status_code == 400 and told in error_of(answer)["message"], answer.text


def test_other_addresses_answer_in_the_same_form(server: Server) -> None:
    with server.client() as client:
        assert error_of(client.get("/v1/nothing"))["type"] == "not_found_error"
        assert client.get("/v1/%2e%2e/%2e%2e/etc/passwd").status_code == 404
        assert client.put("/v1/completions").status_code == 405
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").json() == {"status": "ready"}
        answer = complete(client)
        assert len(answer.headers["x-request-id"]) == 32 and "server" not in answer.headers


def test_bodies_that_are_too_large_or_too_slow_are_refused(server: Server) -> None:
    with server.client() as client:
        large = client.post("/v1/completions", json={"prompt": "a" * 1_100_000})
        assert large.status_code == 413 and "1 MB" in error_of(large)["message"]
        stops = complete(client, stop=["x"] * 100_000)
        assert stops.status_code == 400 and "at most 16" in error_of(stops)["message"]

        def pieces() -> Any:
            for _ in range(12):
                yield b" " * 100_000

        announced_nothing = client.post(
            "/v1/completions", content=pieces(), headers={"content-type": "application/json"}
        )
        assert announced_nothing.status_code == 413
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_texts_of_a_client_that_goes_are_dropped(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for stream in (True, False):
        body = json.dumps(LONG | {"stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=30) as gone:
                gone.sendall(head.encode() + body)
                time.sleep(0.05)
        until(lambda: server.metric("megalm_open_texts") == 0)
    with server.client() as client:
        assert complete(client).status_code == 200


def test_tokens_count_though_their_reader_goes(run: Path, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.jsonl", "ann", tokens_per_minute=10_000)
    model = {"checkpoint": str(run), "name": "tiny", "max_rows": 1}  # the second text is still waiting then
    with serving(tmp_path, models=[model], api_keys=str(tmp_path / "keys.jsonl")) as server:
        body = {"prompt": ["the end"] * 30, "max_tokens": 60, "stream": True}
        with (
            server.client(headers={"authorization": f"Bearer {key}"}) as client,
            client.stream("POST", "/v1/completions", json=body) as answer,
        ):
            lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
            for _ in range(3):
                next(lines)
        until(lambda: server.metric("megalm_open_texts") == 0)
        until(lambda: server.metric("megalm_tokens_total", kind="prompt") > 0)
        assert 3 <= server.metric("megalm_tokens_total", kind="completion") < 30 * 60


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    ended: list[str] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200})
        finally:
            ended.append("the application")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def stalled(message: Any) -> None:
        await asyncio.Event().wait()

    gate = Gate(answer, LimitSettings(request_seconds=0.2), Metrics(), OpenRequests())
    scope = {"type": "http", "method": "GET", "headers": []}
    asyncio.run(asyncio.wait_for(gate(scope, receive, stalled), 30))
    assert ended == ["the application"]


def test_more_texts_than_may_wait_are_told_to_come_back(run: Path, tmp_path: Path) -> None:
    model = {"checkpoint": str(run), "name": "tiny", "max_rows": 1}
    with serving(tmp_path, models=[model], limits={"max_waiting": 2}) as small:
        answers: list[httpx.Response] = []
        ready = threading.Barrier(12)  # else the first may be answered before the last is sent

        def ask() -> None:
            with small.client() as client:
                ready.wait(60)
                answers.append(complete(client, max_tokens=60))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused and len(refused) + sum(answer.status_code == 200 for answer in answers) == 12
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert small.metric("megalm_refused_total", why="waiting") == len(refused)
        with small.client() as client:
            assert complete(client).status_code == 200


def test_keys_are_needed_limited_and_taken_back(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    alice = add_key(file, "alice")
    bob = add_key(file, "bob", requests_per_minute=2)
    carol = add_key(file, "carol", tokens_per_minute=3)
    assert not any(key in file.read_text() for key in (alice, bob, carol))
    assert file.stat().st_mode & 0o077 == 0
    models = [{"checkpoint": str(run), "name": "tiny"}]
    with serving(tmp_path, models=models, api_keys=str(file)) as closed, closed.client() as client:

        def ask(key: str | None, path: str = "/v1/completions") -> httpx.Response:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            if path != "/v1/completions":
                return client.get(path, headers=headers)
            return client.post(path, json={"prompt": "the end", "max_tokens": 4}, headers=headers)

        for wrong in (None, "x", alice[:-1], alice + "x", "megalm-"):
            for path in ("/v1/completions", "/v1/models"):
                answer = ask(wrong, path)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert ask(alice).status_code == ask(alice, "/v1/models").status_code == 200
        assert [ask(bob).status_code for _ in range(3)] == [200, 200, 429]
        assert ask(carol).status_code == 200
        late = ask(carol)
        assert late.status_code == 429 and "3 tokens a minute" in error_of(late)["message"]
        assert 1 <= int(late.headers["retry-after"]) <= 120
        assert client.get("/health").status_code == 200
        remove_key(file, "alice")
        until(lambda: ask(alice).status_code == 401, 30)
        assert not any(key in "".join(closed.log) for key in (alice, bob, carol))
        assert '"client": "bob"' in "".join(closed.log) and "the end" not in "".join(closed.log)


def test_a_copy_that_dies_is_started_again_from_the_same_checkpoint(run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    vocabulary = load_tokenizer(run / "tokenizer").vocab_size
    run_distributed(save_random_model, 1, tmp_path / "later", vocabulary, "model.init_method_std=0.9")
    model = {"checkpoint": str(own), "name": "tiny"}
    with serving(tmp_path, models=[model]) as server, server.client() as client:
        before = complete(client, seed=1).json()["choices"]
        shutil.move(
            next((tmp_path / "later" / "checkpoints").glob("step_*")), own / "checkpoints" / "step_00000009"
        )
        [worker] = [
            int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_worker_of(path, server.process.pid)
        ]
        os.kill(worker, signal.SIGKILL)
        until(lambda: client.get("/ready").status_code == 503)
        lost = complete(client)
        assert lost.status_code == 503 and "retry-after" in lost.headers
        until(lambda: client.get("/ready").status_code == 200)
        assert complete(client, seed=1).json()["choices"] == before


def _is_worker_of(process: Path, parent: int) -> bool:
    try:
        is_child = f"\nPPid:\t{parent}\n" in (process / "status").read_text()
        return is_child and b"megalm.serve.worker" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_sigterm_lets_open_answers_end(run: Path, tmp_path: Path) -> None:
    model = {"checkpoint": str(run), "name": "tiny", "max_rows": 8}
    with serving(tmp_path, models=[model]) as server, server.client() as client:
        whole = complete(client, seed=1, max_tokens=60, n=8).json()
        texts = [""] * 8
        with client.stream("POST", "/v1/completions", json=LONG | {"seed": 1, "stream": True}) as answer:
            lines = answer.iter_lines()
            for line in lines:
                if line.startswith("data: {"):
                    break
            server.process.send_signal(signal.SIGTERM)
            for part in [line, *lines]:
                if part.startswith("data: {"):
                    for choice in json.loads(part[6:])["choices"]:
                        texts[choice["index"]] += choice["text"]
        assert texts == [choice["text"] for choice in whole["choices"]]
        assert server.process.wait(60) == 0


def test_sigterm_waits_for_so_long_alone(run: Path, tmp_path: Path) -> None:
    model = {"checkpoint": str(run), "name": "tiny", "max_rows": 1}
    with serving(tmp_path, models=[model], drain_seconds=0.0) as server, server.client() as client:
        body = LONG | {"n": 1, "prompt": ["the end"] * 32, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert any("was lost" in line for line in lines)
        assert server.process.wait(30) == 0


def test_a_key_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.jsonl"
    assert main(["serve-keys", "add", "ann", "--file", str(file), "--tokens-per-minute", "5"]) == 0
    key = capsys.readouterr().out.strip()
    assert KeyFile(file).find(key).name == "ann" and KeyFile(file).find(key + "x") is None
    assert main(["serve-keys", "list", "--file", str(file)]) == 0
    assert "ann" in (told := capsys.readouterr().out) and "5 tokens a minute" in told
    for arguments, wrong in (
        (["add", "ann"], "already"),
        (["remove", "bob"], "it has ann"),
    ):
        assert main(["serve-keys", *arguments, "--file", str(file)]) == 2
        assert wrong in capsys.readouterr().err
    file.write_text("{}\n")
    assert main(["serve-keys", "list", "--file", str(file)]) == 2
    assert "no file of keys" in capsys.readouterr().err
    file.write_text(json.dumps({"name": "ann", "sha256": "0", "created": "", "requests_per_minute": 0}))
    assert main(["serve-keys", "list", "--file", str(file)]) == 2
    assert "0 a minute is no limit" in capsys.readouterr().err


def test_a_bucket_fills_evenly_and_may_be_overdrawn() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(60)
    assert bucket.seconds_until(1) == 1 and bucket.left() == 0
    now[0] = 10.0
    assert bucket.left() == pytest.approx(10)
    bucket.take(40)
    assert bucket.seconds_until(1) == 31
    now[0] = 1000.0
    assert bucket.left() == 60 and bucket.seconds_until(100) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a checkpoint"),
        (["absent"], "absent"),
        (["RUN", "RUN"], "two models are called"),
        (["RUN", "--host", "0.0.0.0"], "give --api-keys FILE"),
        (["RUN", "--api-keys", "absent"], "megalm serve-keys add"),
        (["RUN", "--set", "limits.max_body_mb=0"], "max_body_mb"),
        (["RUN", "--set", "limit.max_body_mb=1"], "limit"),
        (["RUN", "--dtype", "fp8"], "dtype"),
        (["RUN", "--tensor-model-parallel-size", "3"], "3"),
        (["RUN", "--settings", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(
    run: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["serve", *(str(run) if one == "RUN" else one for one in arguments), "--port", "0"]) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("megalm: error:")][-1:]
    assert told in line


def test_an_address_that_cannot_be_had_is_told_before_models_are_loaded(
    server: Server, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port = server.url.rpartition(":")[2]
    for arguments in (["--port", port], ["--host", "no.such.host.invalid", "--set", "allow_anyone=true"]):
        begun = time.monotonic()
        assert main(["serve", str(run), *arguments]) == 2
        assert time.monotonic() - begun < 30
        [line] = [line for line in capfd.readouterr().err.splitlines() if "megalm: error:" in line]
        assert "choose another --host or --port" in line
