"""The recipe of a corpus: where documents come from, the steps they go through, and where all that runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from megalm.config.load import explain, override, read_yaml
from megalm.config.section import Section
from megalm.corpus.registry import step_class
from megalm.corpus.route import Route, RouteSettings
from megalm.corpus.sources import source_class
from megalm.corpus.sources.base import Source
from megalm.corpus.step import Collective, ForLanguages, Step
from megalm.errors import UserError
from megalm.executors.settings import ExecutorSettings

_BEFORE_EXTRACTION = ("url_blocklist", "url_words")


class RecipeFile(Section):
    """The file as written; sources and steps are read by the classes they name."""

    output: str = Field(min_length=1, description="Directory of the corpus.")
    sources: list[dict[str, Any]] = Field(min_length=1, description="Where documents come from.")
    steps: list[str | dict[str, dict[str, Any] | None]] = Field(
        [], description="What is done with them, in order: a name, or a name with options."
    )
    tasks: int | None = Field(
        None, ge=1, description="Tasks, and so shards; by default one for each `task_bytes` of input."
    )
    task_bytes: int = Field(64 << 20, ge=1, description="Input of a task, where `tasks` is not given.")
    keep_removed: bool = Field(
        False, description="Write the removed documents too, with step and reason, into OUTPUT/removed."
    )
    route: RouteSettings | None = Field(
        None, description="Write the documents into folders, such as one for each language."
    )
    removal_by_group: bool = Field(
        False, description="Count for each step how many documents that mention a group it removes."
    )
    group_terms: Path | None = Field(
        None, description="Term lists of one's own for removal_by_group, laid over those of megalm."
    )
    executor: ExecutorSettings = Field(ExecutorSettings(), description="Where the tasks run.")


class Recipe(NamedTuple):
    """A recipe with its sources and steps made."""

    file: RecipeFile
    sources: list[Source]
    steps: list[Step | Collective]

    @property
    def output(self) -> Path:
        """Directory of the corpus, absolute."""
        try:
            return Path(self.file.output).expanduser().absolute()
        except RuntimeError:
            raise UserError(
                f"`output` = {self.file.output!r}: there is no such user; write it in full"
            ) from None

    def all_steps(self) -> list[Step | Collective]:
        """The steps, and at their end what writes the documents into folders."""
        return [*self.steps, *([Route(self.file.route)] if self.file.route else [])]

    def files(self) -> list[Path]:
        """The files beside the sources that the build reads."""
        own = [self.file.group_terms] if self.file.group_terms else []
        return own + [path for step in self.steps for path in step.files()]

    def resolved(self) -> dict[str, Any]:
        """The recipe with every option spelled out; the executor is left out, for it does not change the corpus."""
        return {
            **self.file.model_dump(mode="json", exclude={"sources", "steps", "executor"}),
            "sources": [source.model_dump(mode="json") for source in self.sources],
            "steps": [{step.name: step.settings.model_dump(mode="json")} for step in self.steps],
        }


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the YAML file `path` and apply `key=value` overrides; raises UserError with one line."""
    path = Path(path)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys (output, sources, steps, ...), found {type(data).__name__}")
    return parse_recipe(data, overrides, str(path))


def parse_recipe(data: dict[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """The same from a dictionary in memory."""
    file = _validated(RecipeFile, override(data, overrides), where)
    sources = [_source(entry, f"{where}: sources.{number}") for number, entry in enumerate(file.sources)]
    steps = [_step(entry, f"{where}: steps.{number}") for number, entry in enumerate(file.steps)]
    recipe = Recipe(file, sources, steps)
    _check_extracted(recipe, where)
    for source in sources:
        source.set_output(recipe.output)
    return recipe


def _check_extracted(recipe: Recipe, where: str) -> None:
    """Refuse steps that would find every page without text, and remove it."""
    pages = [source.label for source in recipe.sources if source.gives_pages]
    for number, step in enumerate(recipe.steps if pages else ()):
        if step.name in _BEFORE_EXTRACTION:
            continue
        if isinstance(step, Step) and (step.needs_text or isinstance(step.settings, ForLanguages)):
            raise UserError(
                f"{where}: steps.{number}.{step.name} looks at texts, and the source `{pages[0]}` gives raw pages; "
                "put the step `extract` before it"
            )
        return


def _source(entry: dict[str, Any], where: str) -> Source:
    kind = entry.get("kind")
    if not isinstance(kind, str):
        raise UserError(f"{where}: `kind` is missing; say what the files are, e.g. kind: warc")
    return _validated(_named(source_class, kind, where), entry, where)


def _step(entry: str | dict[str, dict[str, Any] | None], where: str) -> Step | Collective:
    if isinstance(entry, str):
        entry = {entry: None}
    if len(entry) != 1:
        names = ", ".join(entry) or "nothing"
        raise UserError(
            f"{where}: one step with its options is expected, found {names}; write a dash for each step"
        )
    ((name, options),) = entry.items()
    step = _named(step_class, name, where)
    return step(_validated(step.Settings, options or {}, f"{where}.{name}"))


def _named(find: Any, name: str, where: str) -> Any:
    try:
        return find(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ImportError as error:
        raise UserError(
            f"{where}: `{name}` needs a package that is not installed ({error}); pip install 'megalm[corpus]'"
        ) from error


def _validated(section: type[BaseModel], data: dict[str, Any], where: str) -> Any:
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, section)}") from None
