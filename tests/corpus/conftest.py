"""Recipes of tests may name the steps of tests/corpus/steps.py."""

import pytest


@pytest.fixture
def own_steps(monkeypatch):
    """The tests' own steps, by name."""
    from megalm.corpus import registry
    from tests.corpus.steps import NAMES

    monkeypatch.setattr(registry, "STEPS", registry.STEPS | NAMES)
