"""What the tests of compression share."""

from pathlib import Path

import pytest

from tests.compress.models import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with hf/, base/ (a checkpoint with tokenizer) and text.txt; nothing is written into it."""
    folder: Path = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder
