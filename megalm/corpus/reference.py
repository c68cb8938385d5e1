"""Renders what a recipe may hold as a page for users: its own keys, kinds of sources, steps."""

from megalm.config.reference import inner_sections, table
from megalm.corpus.recipe import RecipeFile
from megalm.corpus.registry import STEPS, step_class
from megalm.corpus.sources import KINDS, source_class

_HEAD = """# Recipes of corpora

Everything that the YAML file of `megalm corpus build` may hold. Unknown keys and values of the wrong type are errors; every value can be
changed on the command line as `key=value`. This page is made by `python tools/recipe_reference.py > docs/corpus_recipe.md`.
"""


def render_recipe_reference() -> str:
    """Markdown with a table for the recipe, each kind of source and each step, in the order of their names."""
    parts = [_HEAD, "## The file\n\n" + table(RecipeFile), *inner_sections(RecipeFile)]
    for kind in sorted(KINDS):
        source = source_class(kind)
        parts.append(f"## Source `{kind}`\n\n{_first_paragraph(source)}\n\n{table(source)}")
    for name in sorted(STEPS):
        step = step_class(name)
        options = table(step.Settings) if step.Settings.model_fields else "It has no options.\n"
        parts.append(f"## Step `{name}`\n\n{_first_paragraph(step)}\n\n{options}")
    return "\n".join(parts)


def _first_paragraph(documented: type) -> str:
    return " ".join((documented.__doc__ or "").split("\n\n")[0].split())
