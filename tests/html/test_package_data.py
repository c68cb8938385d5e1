"""Templates are installed with the package."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "megalm").rglob("*.jinja"))


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in TEMPLATES}), ids=lambda folder: folder.parent.name
)
def test_every_folder_of_templates_is_package_data(folder):
    package = ".".join(folder.parent.relative_to(ROOT).parts)
    assert (
        folder.name == "templates" and f'"{package}": ["templates/*.jinja"' in (ROOT / "setup.py").read_text()
    )
