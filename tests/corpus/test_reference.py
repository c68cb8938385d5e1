"""The page about recipes is what the classes say, and every option says something."""

from pathlib import Path

import pytest

from megalm.corpus.reference import render_recipe_reference
from megalm.corpus.registry import STEPS, step_class
from megalm.corpus.sources import KINDS, source_class


def test_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "corpus_recipe.md"
    assert page.read_text(encoding="utf-8") == render_recipe_reference(), (
        "run: python tools/recipe_reference.py > docs/corpus_recipe.md"
    )


@pytest.mark.parametrize(
    "section",
    [*(source_class(kind) for kind in KINDS), *(step_class(name).Settings for name in STEPS)],
    ids=lambda section: section.__qualname__,
)
def test_every_option_is_described(section):
    assert all(field.description for field in section.model_fields.values())
