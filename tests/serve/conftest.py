"""One random model, and one server of it, for the tests that change neither; one with a page, and a browser that shows it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from megalm.serve.keys import add_key
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from tests.evaluate.small import make_run, save_random_model
from tests.serve.browser import Browser, browsing
from tests.serve.servers import Server, serving

HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass
class Site:
    """A server with a page. downloads: where the browser saves files."""

    server: Server
    key: str
    downloads: Path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a random model of a context of 64 tokens."""
    return make_run(tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="session")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves it as `tiny`, without keys, for conversations too."""
    model = {"checkpoint": str(run), "name": "tiny", "chat_template": "plain", "max_rows": 8}
    limits = {"max_body_mb": 1.0, "body_seconds": 3.0}
    with serving(tmp_path_factory.mktemp("server"), models=[model], limits=limits) as found:
        yield found


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser; tests of the page are skipped without one."""
    with browsing(tmp_path_factory.mktemp("downloads")) as found:
        yield found


@pytest.fixture(scope="session")
def site(chromium: Browser, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with keys, a store of feedback, and the model under two names, with room for answers that take seconds."""
    folder = tmp_path_factory.mktemp("site")
    long = folder / "run"
    long.mkdir()
    (long / "tokenizer").symlink_to(run / "tokenizer")
    vocabulary = load_tokenizer(run / "tokenizer").vocab_size
    run_distributed(save_random_model, 1, long, vocabulary, "model.max_sequence_length=4096")
    key = add_key(folder / "keys.jsonl", "reader", None, None)
    models = [
        {"checkpoint": str(long), "name": name, "chat_template": "plain", "max_rows": 8, "cache_gib": 0.2}
        for name in ("tiny", HOSTILE)
    ]
    store = f"sqlite:///{folder}/feedback.db"
    with serving(folder, models=models, api_keys=str(folder / "keys.jsonl"), feedback=store) as found:
        yield Site(found, key, chromium.downloads)


@pytest.fixture
def page(site: Site, chromium: Browser) -> Iterator[Browser]:
    """The page as a new reader with a key finds it, who wants short answers, the same ones each time. What its scripts complain of is an error."""
    chromium.open(site.server.url, site.key, maxTokens=24, seed=1)
    yield chromium
    assert chromium.complaints() == []
    assert chromium.strangers() == []


def reader(page: Browser, site: Site) -> httpx.Client:
    """The API as the page's reader."""
    user = page.run("return localStorage.getItem('megalm.user')")
    return site.server.client(headers={"Authorization": f"Bearer {site.key}", "x-user": user})
