"""Exchanges are kept for those who ask for it, through OpenAI's own client; what is said of them is theirs alone."""

import asyncio
import json
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from sqlalchemy import select, text

from megalm.cli import main
from megalm.feedback.store import Store
from megalm.feedback.summary import summary
from megalm.feedback.tables import Exchange
from megalm.lineage.record import model_hash
from megalm.serve.api.errors import ApiError
from megalm.serve.keeping import Keeper
from tests.serve.servers import Server, serving, until

pytestmark = pytest.mark.timeout(300)
MESSAGES: list[Any] = [{"role": "user", "content": "how many hands"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def settings(run: Path, folder: Path) -> dict[str, Any]:
    """Of a server that keeps feedback."""
    model = {"checkpoint": str(run), "name": "tiny", "chat_template": "plain", "max_rows": 8}
    return {
        "models": [model],
        "feedback": f"sqlite:///{folder}/store.db",
        "feedback_reasons": {"up": ["fine"], "down": ["bad"]},
    }


@pytest.fixture(scope="module")
def keeping(settings: dict[str, Any], folder: Path) -> Iterator[Server]:
    """That server."""
    with serving(folder / "server", **settings) as found:
        yield found


def client_of(server: Server, user: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.api, api_key="none", max_retries=0, default_headers={"x-user": user})


def api(server: Server, user: str) -> httpx.Client:
    return httpx.Client(base_url=f"{server.api}/feedback", timeout=60, headers={"x-user": user})


def ask(server: Server, user: str, **more: Any) -> Any:
    values = {"model": "tiny", "messages": MESSAGES, "seed": 3, "max_tokens": 6, "store": True} | more
    return client_of(server, user).chat.completions.create(**values)


def test_an_exchange_is_kept_as_it_was_shown(keeping: Server, run: Path) -> None:
    metadata = {"conversation": "talk", "consent": "yes", "parent": "before", "page": "anything"}
    whole = ask(keeping, "one", n=2, metadata=metadata)
    streamed, texts = "", ["", ""]
    for part in ask(keeping, "one", n=2, stream=True, metadata={"conversation": "talk"}):
        streamed = part.id
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
    with api(keeping, "one") as client:
        shown = client.get("/conversations/talk").json()
        listed = client.get("/conversations").json()
    assert [exchange["reply"] for exchange in shown["exchanges"]] == [whole.id, streamed]
    first, second = shown.pop("exchanges")
    assert listed == {"object": "list", "data": [shown], "has_more": False}
    assert (shown["title"], shown["consent"], shown["replies"]) == ("how many hands", True, 2)
    for exchange in (first, second):
        assert exchange["model"] == "tiny" and exchange["messages"] == MESSAGES
        assert exchange["options"]["seed"] == 3 and exchange["options"]["max_new_tokens"] == 6
        assert [choice["content"] for choice in exchange["choices"]] == texts
        assert [choice["finish_reason"] for choice in exchange["choices"]] == [
            choice.finish_reason for choice in whole.choices
        ]
    assert first["parent"] == "before" and second["parent"] is None


def test_which_weights_answered_is_known(keeping: Server, run: Path, folder: Path) -> None:
    ask(keeping, "weights", metadata={"conversation": "weights"})
    store = Store(f"sqlite:///{folder}/store.db")
    with store.reading() as session:
        found = session.scalars(select(Exchange).order_by(Exchange.id.desc()).limit(1)).one()
        checkpoint = run / "checkpoints" / "step_00000007"
        assert (found.checkpoint, found.step, found.lineage) == (str(checkpoint), 7, model_hash(checkpoint))


def test_nothing_is_kept_unless_it_is_asked_for(keeping: Server) -> None:
    ask(keeping, "shy", store=False, metadata={"conversation": "talk"})
    ask(keeping, "shy", store=None)
    with api(keeping, "shy") as client:
        assert client.get("/conversations").json()["data"] == []
        alone = ask(keeping, "shy")
        [found] = client.get("/conversations").json()["data"]
        assert found["id"] == alone.id and not found["consent"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"metadata": {"conversation": "no spaces"}}, "metadata.conversation"),
        ({"metadata": {"conversation": ""}}, "metadata.conversation"),
        ({"metadata": {"parent": "x" * 65}}, "metadata.parent"),
        ({"metadata": {"consent": "perhaps"}}, "`yes` or `no`"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"extra_headers": {"x-user": "x" * 129}}, "x-user"),
    ],
)
def test_what_cannot_be_kept_is_refused(keeping: Server, more: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        ask(keeping, "wrong", **more)


def test_opinions_are_taken_and_replaced(keeping: Server) -> None:
    first = ask(keeping, "two", n=2, metadata={"conversation": "c", "consent": "yes"})
    other = ask(keeping, "two", seed=4, metadata={"conversation": "c"})
    elsewhere = ask(
        keeping, "two", messages=[{"role": "user", "content": "the end"}], metadata={"conversation": "c"}
    )
    text = "<script>alert(1)</script>"
    with api(keeping, "two") as client:

        def post(address: str, **body: Any) -> int:
            return client.post(address, json=body).status_code

        a, b = {"reply": first.id, "choice": 1}, {"reply": other.id}
        assert post("/ratings", reply=first.id, choice=1, value=-1, reason="bad", comment=text) == 201
        assert post("/ratings", reply=first.id, choice=0, value=1, reason="bad") == 400
        assert post("/ratings", reply=first.id, choice=1, value=1, reason="fine") == 201
        assert post("/ratings", reply=first.id, choice=2, value=1) == 404
        assert post("/ratings", reply=first.id, choice=0, value=0) == 400
        assert post("/ratings", reply=first.id, choice=0, value=1, comment="x" * 4001) == 400
        assert post("/edits", reply=other.id, choice=0, content=text) == 201
        assert post("/edits", reply=other.id, choice=0, content=" \n") == 400
        assert post("/comparisons", a=a, b=b, pick="a") == post("/comparisons", a=b, b=a, pick="b") == 201
        assert post("/comparisons", a=a, b=a, pick="a") == 400
        assert post("/comparisons", a=a, b={"reply": elsewhere.id}, pick="a") == 400
        assert post("/comparisons", a=a, b=b, pick="both") == 400
        assert post("/comparisons", a=a, b={"reply": "chatcmpl-0"}, pick="tie") == 404
        plain = client.post("/edits", content=b'{"reply": "a"}', headers={"content-type": "text/plain"})
        assert plain.status_code == 400 and "dictionary" in plain.json()["error"]["message"]
        shown = client.get("/conversations/c").json()["exchanges"]
        assert shown[0]["choices"][1]["rating"] == {"value": 1, "reason": "fine", "comment": None}
        assert shown[1]["choices"][0]["edit"] == text
        export = client.get("/export", params={"form": "kto"})
        records = [json.loads(line) for line in export.text.splitlines()]
        assert [(record["completion"], record["label"]) for record in records] == [(text, True)]
        assert export.headers["content-type"].startswith("application/x-ndjson")
        assert client.get("/export", params={"form": "other"}).status_code == 400


def test_the_summary_counts_all(keeping: Server, folder: Path) -> None:
    with api(keeping, "anybody") as client:
        found = client.get("/summary", params={"days": 2}).json()
        assert found == summary(Store(f"sqlite:///{folder}/store.db"), 2)
        assert len(found["by_day"]) == 2 and found["totals"]["exchanges"] > 0
        assert client.get("/summary", params={"days": 0}).status_code == 400


def test_nobody_sees_or_touches_what_is_somebody_elses(keeping: Server) -> None:
    reply = ask(keeping, "mine", metadata={"conversation": "private"}).id
    with api(keeping, "thief") as thief, api(keeping, "mine") as mine:
        attempts = [
            thief.get("/conversations/private"),
            thief.patch("/conversations/private", json={"consent": True}),
            thief.delete("/conversations/private"),
            thief.get("/conversations", params={"before": "private"}),
            thief.post("/ratings", json={"reply": reply, "value": 1}),
            thief.post("/edits", json={"reply": reply, "content": "x"}),
            thief.post("/comparisons", json={"a": {"reply": reply}, "b": {"reply": reply}, "pick": "tie"}),
        ]
        assert [answer.status_code for answer in attempts] == [404] * len(attempts)
        assert not any(thief.delete("/data").json().values())
        [shown] = mine.get("/conversations/private").json()["exchanges"]
        assert shown["choices"][0]["rating"] is None
        changed = mine.patch("/conversations/private", json={"title": "Hands", "consent": True}).json()
        assert (changed["title"], changed["consent"]) == ("Hands", True)
        assert mine.patch("/conversations/private", json={"title": ""}).status_code == 400
        assert mine.delete("/conversations/private").json() == {"id": "private", "deleted": True}
        assert mine.get("/conversations/private").status_code == 404


def test_all_data_of_a_user_goes_at_once(keeping: Server, folder: Path) -> None:
    reply = ask(keeping, "leaver", metadata={"conversation": "gone-for-good"}).id
    with api(keeping, "leaver") as client:
        assert client.post("/ratings", json={"reply": reply, "value": 1}).status_code == 201
        assert client.delete("/data").json() == {
            "conversations": 1,
            "exchanges": 1,
            "choices": 1,
            "ratings": 1,
            "edits": 0,
            "comparisons": 0,
        }
        assert client.get("/conversations").json()["data"] == []
    assert not any(reply.encode() in file.read_bytes() for file in folder.glob("store.db*"))


def test_what_is_taken_back_while_an_answer_is_written_stays_taken_back(keeping: Server) -> None:
    def during(taken_back: Callable[[httpx.Client], httpx.Response]) -> list[dict[str, Any]]:
        """What is listed after an answer during which that was done."""
        body = {"messages": MESSAGES, "stream": True, "store": True, "max_tokens": 40, "n": 8}
        body["metadata"] = {"conversation": "c", "consent": "yes"}
        with api(keeping, "changing") as client, api(keeping, "changing") as other:
            ask(keeping, "changing", metadata={"conversation": "c", "consent": "yes"})
            with client.stream("POST", f"{keeping.api}/chat/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                assert taken_back(other).status_code == 200
                assert "data: [DONE]" in list(lines)
            return list(other.get("/conversations").json()["data"])

    [found] = during(lambda client: client.patch("/conversations/c", json={"consent": False}))
    assert not found["consent"]
    assert during(lambda client: client.delete("/conversations/c")) == []
    assert during(lambda client: client.delete("/data")) == []


def test_an_answer_whose_reader_goes_is_kept_as_far_as_it_came(keeping: Server) -> None:
    with api(keeping, "goer") as client:

        def is_broken_off() -> bool:
            name = f"c{random.random()}".replace(".", "-")
            body = {"messages": MESSAGES, "stream": True, "store": True, "max_tokens": 40, "n": 8}
            body["metadata"] = {"conversation": name}
            with client.stream("POST", f"{keeping.api}/chat/completions", json=body) as answer:
                next(
                    line
                    for line in answer.iter_lines()
                    if '"content"' in line and '"content": ""' not in line
                )
            until(lambda: client.get(f"/conversations/{name}").status_code == 200)
            [exchange] = client.get(f"/conversations/{name}").json()["exchanges"]
            assert any(choice["content"] for choice in exchange["choices"]), exchange
            return "interrupted" in {choice["finish_reason"] for choice in exchange["choices"]}

        until(is_broken_off)  # now and then an answer is there before its reader is gone


def test_a_server_without_a_store_says_so(server: Server) -> None:
    assert ask(server, "any", metadata={"conversation": "no spaces"}).choices
    with api(server, "any") as client:
        for answer in (
            client.get("/conversations"),
            client.post("/ratings", json={"reply": "a", "value": 1}),
        ):
            assert answer.status_code == 404 and answer.json()["error"]["code"] == "feedback_disabled"


def test_a_store_that_fails_is_told_to_the_client_and_not_how(tmp_path: Path) -> None:
    keeper = Keeper(f"sqlite:///{tmp_path}/store.db")
    with keeper.store.writing() as session:
        session.execute(text("DROP TABLE ratings"))
    with pytest.raises(ApiError, match="cannot be kept just now") as error:
        asyncio.run(keeper.do(summary))
    assert (error.value.status, error.value.code) == (503, "feedback_failed")
    assert "ratings" not in error.value.message


def test_a_server_whose_store_cannot_be_opened_says_why(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    for address, told in (("feedback.db", "no address"), (f"sqlite:///{tmp_path}/text.db", "not a database")):
        assert main(["serve", str(run), "--port", "0", "--feedback", address]) == 2
        [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("megalm: error:")]
        assert told in line


def rate_all(server: Server, reply: str, seed: int, acknowledged: dict[tuple[str, int], int]) -> None:
    """Rate the answers again and again until the server is gone; one writer an answer, so that its last word is known."""
    chance = random.Random(seed)
    with api(server, "rater") as client:
        while True:
            place, value = (reply, chance.randrange(8)), chance.choice([1, -1])
            before = acknowledged.pop(place, None)  # until it is acknowledged, either may be there
            try:
                answer = client.post("/ratings", json={"reply": reply, "choice": place[1], "value": value})
            except httpx.HTTPError:
                return
            assert answer.status_code == 201 and before in (None, 1, -1)
            acknowledged[place] = value


def test_acknowledged_ratings_survive_a_kill(keeping: Server, settings: dict[str, Any], folder: Path) -> None:
    """The server is killed while many rate; whatever was acknowledged the next one tells. The last test of this file."""
    acknowledged: dict[tuple[str, int], int] = {}
    replies = [ask(keeping, "rater", n=8, metadata={"conversation": "c"}).id for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for number, reply in enumerate(replies):
            threads.submit(rate_all, keeping, reply, number, acknowledged)
        until(lambda: len(acknowledged) >= 20)
        keeping.process.send_signal(signal.SIGKILL)
    with serving(folder / "next", **settings) as server, api(server, "rater") as client:
        shown = client.get("/conversations/c").json()
    kept = {
        (exchange["reply"], choice["index"]): choice["rating"] and choice["rating"]["value"]
        for exchange in shown["exchanges"]
        for choice in exchange["choices"]
    }
    assert len(kept) == 4 * 8 and len(acknowledged) >= 20 - 4
    assert {place: kept[place] for place in acknowledged} == acknowledged
