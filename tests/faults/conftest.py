"""What the faults have in common: token files, and the run that nothing happens to."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.moments import STEPS, settings
from tests.train.runs import step_lines, train_in_world, write_tokens


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[dict[str, Any]]:
    """The steps of the run without a fault."""
    directory: Path = tmp_path_factory.mktemp("undisturbed")
    train_in_world(2, settings(directory, data))
    steps = step_lines(directory)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    return steps
