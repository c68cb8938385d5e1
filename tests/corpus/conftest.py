"""Steps that recipes of tests may name, and a web site on loopback."""

from collections.abc import Iterator

import pytest

from megalm.corpus import fetch
from tests.corpus.sources.mirror import Mirror, serving
from tests.corpus.web_site import PAGES


@pytest.fixture
def own_steps(monkeypatch):
    """The tests' own steps, by name."""
    from megalm.corpus import registry
    from tests.corpus.steps import NAMES

    monkeypatch.setattr(registry, "STEPS", registry.STEPS | NAMES)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that readers would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    monkeypatch.setenv("no_proxy", "*")
    return slept


@pytest.fixture
def site(tmp_path, waits) -> Iterator[Mirror]:
    """A running site of the pages of tests/corpus/web_site.py."""
    folder = tmp_path / "site"
    (folder / "secret").mkdir(parents=True)
    for name, text in PAGES.items():
        (folder / name).write_text(f"<html><body>{text}</body></html>")
    (folder / "robots.txt").write_text("User-agent: *\nDisallow: /secret/\nDisallow: /*.pdf$\n")
    with serving(folder) as server:
        yield server
