"""Jobs of tests find the code."""

import pytest

from tests.cluster.jobs import environment_of_jobs


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of_jobs().items():
        monkeypatch.setenv(name, value)
