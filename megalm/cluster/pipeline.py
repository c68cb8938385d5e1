"""Several steps as one file: runs and commands, each of which may need others, as `megalm launch PIPELINE.yaml` submits them."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from megalm.cluster.settings import numbers_as_text, parse_settings
from megalm.cluster.submit import Work
from megalm.config import load_config
from megalm.config.load import assign, explain, override, read_yaml
from megalm.config.section import Section
from megalm.config.suggest import nearest
from megalm.errors import UserError

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_NAMED = re.compile(r"(?<!\$)\{([A-Za-z_][\w-]*)\}")
_TAKEN_APART = re.compile(r"[][{}\"'#:,]")  # by YAML, in the values of `set`


class Step(Section):
    """One step: a run (`train`) or a command (`run`). {NAME} stands for the directory of step NAME, or the value NAME."""

    train: str | None = Field(None, description="Configuration of a run, e.g. configs/sft/x.yaml.")
    set: list[str] = Field(default_factory=list, description="Values to change in it, KEY=VALUE.")
    run: str | None = Field(None, description="A line of shell, e.g. megalm convert {pretrain} {dir}/hf.")
    after: list[str] | None = Field(
        None, description="Steps that must have ended well; default: the one above; []: none."
    )
    cluster: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the pipeline's settings of the cluster."
    )

    @model_validator(mode="after")
    def _does_one_thing(self) -> "Step":
        if (self.train is None) == (self.run is None):
            raise ValueError("give either train: CONFIG or run: COMMAND")
        if self.set and self.train is None:
            raise ValueError("set belongs to train: a command takes its values in its line")
        if any(change.startswith("run.dir=") for change in self.set):
            raise ValueError("a step's run.dir is DIR/NAME: leave run.dir out")
        return self


class Pipeline(Section):
    """Steps in an order in which they can be run."""

    dir: str = Field(description="Directory of the pipeline; step NAME lies in DIR/NAME.")
    cluster: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the cluster for all steps."
    )
    values: dict[str, str] = Field(
        default_factory=dict, description="What steps call {NAME} beside steps; values.NAME=... changes one."
    )
    steps: dict[str, Step] = Field(min_length=1, description="Steps by name.")

    @field_validator("values", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        return numbers_as_text(value)

    @model_validator(mode="after")
    def _has_no_name_twice(self) -> "Pipeline":
        for name in self.values:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a value cannot be called {name!r}: take letters, digits, - and _")
            if name in self.steps or name in ("dir", "cluster"):
                raise ValueError(f"{name} is the name of a value and of something else: rename the value")
        return self

    @model_validator(mode="after")
    def _needs_earlier_steps(self) -> "Pipeline":
        if found := _TAKEN_APART.search(self.dir):
            raise ValueError(
                f"dir {self.dir!r}: {found[0]!r} in it would be taken apart; choose another name"
            )
        before: dict[str, set[str]] = {}
        for name in self.steps:
            if name in ("dir", "cluster") or not _NAME.fullmatch(name):
                raise ValueError(f"a step cannot be called {name!r}: take letters, digits, - and _")
            for other in self.needs_of(name):
                if other not in before:
                    raise ValueError(f"{name} comes after {other}, which is no step above it")
            before[name] = {name}.union(*({other} | before[other] for other in self.needs_of(name)))
            self._uses_what_is_made(name, before[name])
        return self

    def needs_of(self, name: str) -> list[str]:
        """Steps after which step `name` comes at once."""
        names, after = list(self.steps), self.steps[name].after
        place = names.index(name)
        return names[max(0, place - 1) : place] if after is None else after

    def _uses_what_is_made(self, name: str, before: set[str]) -> None:
        """ValueError where it names a step that it does not wait for; in a command braces may be the shell's own."""
        step = self.steps[name]
        for text in [*step.set, step.train or "", step.run or ""]:
            for used in _NAMED.findall(text):
                if used in self.steps and used not in before:
                    raise ValueError(
                        f"{name} uses {{{used}}} and does not wait for it: put {used} into its after"
                    )
                known = [*self.steps, *self.values, "dir"]
                guess = nearest(used, known)
                if used not in known and (guess or text != step.run):
                    raise ValueError(f"{name}: {{{used}}} is no step{guess}")
                if text in step.set and _TAKEN_APART.search(self.values.get(used, "")):
                    raise ValueError(
                        f"{name}: the value {used} ({self.values[used]!r}) would be taken apart in set; choose another"
                    )


def is_pipeline(path: str | Path) -> bool:
    """Whether the YAML file at `path` holds steps."""
    content = read_yaml(Path(path))
    return isinstance(content, dict) and "steps" in content


def load_pipeline(path: str | Path, overrides: Sequence[str], cluster: Sequence[str]) -> list[Work]:
    """The works of the pipeline at `path`. overrides: values to change in it (`steps.sft.set=...`, `dir=...`); cluster: settings
    given beside it, for all its steps. Raises UserError with one line.
    """
    try:
        pipeline = Pipeline.model_validate(override(read_yaml(Path(path)), overrides))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Pipeline)}") from None
    names = list(pipeline.steps)
    places = {name: str(Path(pipeline.dir) / name) for name in names}
    places |= pipeline.values | {"dir": pipeline.dir}
    works: list[Work] = []
    for name, step in pipeline.steps.items():
        where = f"{path}: step {name}"
        settings = parse_settings(pipeline.cluster | step.cluster, cluster, where)
        needs = [names.index(other) for other in pipeline.needs_of(name)]
        if step.run is not None:
            command = _fill(step.run, {name: shlex.quote(place) for name, place in places.items()})
            works.append(Work(Path(places[name]), settings, command=command, needs=needs))
            continue
        assert step.train is not None
        changes = [assign("run.dir", places[name]), *(_fill(change, places) for change in step.set)]
        try:
            config = load_config(_fill(step.train, places), changes)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        works.append(Work(Path(config.run.dir), settings, config, needs=needs))
    if len({work.settings.kind for work in works}) > 1:
        raise UserError(f"{path}: all steps run on one kind of cluster, local or slurm")
    first = works[0].settings
    if first.kind == "local" and any(work.settings.setup != first.setup for work in works):
        raise UserError(
            f"{path}: on this machine one process runs all steps: put setup beside steps, under cluster"
        )
    return works


def _fill(text: str, places: dict[str, str]) -> str:
    return _NAMED.sub(lambda found: places.get(found[1], found[0]), text)
