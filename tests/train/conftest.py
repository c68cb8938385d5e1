"""Token files that the tests of training read."""

from pathlib import Path

import pytest

from tests.train.runs import write_tokens


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data"))
