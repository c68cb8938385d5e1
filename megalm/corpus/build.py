"""Builds a corpus from a recipe: stage after stage of tasks, going on where a killed build was."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml
from datatrove.utils.logging import logger

from megalm import atomic
from megalm.corpus.bias.scan import GroupsOf
from megalm.corpus.bias.terms import load_terms
from megalm.corpus.plan import Plan, check_recipe
from megalm.corpus.progress import stage_progress
from megalm.corpus.recipe import Recipe
from megalm.corpus.report import (
    Report,
    WriteReport,
    merge_counts,
    page_path,
    read_report,
    report_path,
    stage_data,
    stage_folder,
    sweep,
)
from megalm.corpus.shards import ReadShards, Removals, WriteShards
from megalm.corpus.step import Step
from megalm.corpus.tasks import Ended, ReadSources, TaskBegin, TaskEnd, begin_progress
from megalm.errors import UserError
from megalm.executors.run import refuse_queued, run_local, run_ray, submit_slurm
from megalm.executors.stage import Stage


def build_corpus(recipe: Recipe, overwrite: bool = False, progress: bool = False) -> Report | None:
    """Make the corpus that `recipe` describes, in its `output` directory.

    OUTPUT/documents holds the shards, each complete or absent; OUTPUT/report.json, written last, what was counted.
    After a kill the same call does only the tasks that are missing and gives the same bytes, with any number of
    workers. A complete corpus is left as it is.

    Returns the report, or None where the tasks were handed to SLURM and are still to run. Raises UserError where
    something else was built in `output`, unless `overwrite`.
    """
    output = recipe.output
    work = output / "work"
    if not overwrite:
        check_recipe(recipe, work)
    _verify(recipe)  # before anything is fetched or removed
    plan = Plan.make(recipe)
    with atomic.name_full_disk(output), _locked(work):
        refuse_queued(work / "slurm.json")
        if overwrite:
            _clear(output)
        if begun := plan.check_same(work):
            if (report := read_report(output)) is not None:
                return report
        else:
            _refuse_foreign(output)
        stages = make_stages(recipe, plan)
        if not begun:  # a recipe that is refused until here can be mended without --overwrite
            plan.save(work)
        sweep(output)
        atomic.write_text(output / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))
        logger.remove()
        return _run(recipe, stages, progress)


def _verify(recipe: Recipe) -> None:
    """Raise UserError for models, lists and options that a step would stumble over when its turn comes."""
    for step in recipe.steps:
        step.verify()
    if recipe.file.removal_by_group:
        load_terms(recipe.file.group_terms)


def make_stages(recipe: Recipe, plan: Plan) -> list[Stage]:
    """The stages of a build in order: steps in a row share one, a collective brings its own."""
    output, tasks = recipe.output, len(plan.tasks)
    stages: list[Stage] = []
    source: Path | None = None
    rest = recipe.all_steps()
    while True:
        steps: list[Step] = []
        while rest and isinstance(step := rest[0], Step):
            steps.append(step)
            rest.pop(0)
        if source is None or steps:
            name = f"{len(stages):02d}-{'steps' if source else 'read'}"
            target = stage_data(output, name) / "documents" if rest else output / "documents"
            reader = ReadShards(source) if source else ReadSources(recipe.sources, output / "work")
            stages.append(Stage(name, tasks, [reader, *steps, WriteShards(target)]))
            source = target
        if not rest:
            return _finish(recipe, stages)
        collective = rest.pop(0)
        assert not isinstance(collective, Step) and source is not None
        own = stage_data(output, f"{len(stages):02d}-{collective.name}")
        target = own / "documents" if rest else output / "documents"
        for stage in collective.stages(source, own, target, tasks):
            stages.append(stage._replace(name=f"{len(stages):02d}-{collective.name}-{stage.name}"))
        source = target


def _finish(recipe: Recipe, stages: list[Stage]) -> list[Stage]:
    """The stages with their counts written at the end of each task, and the report at the end of all."""
    finished = []
    ended: list[Ended] = []
    groups = GroupsOf(recipe.file.group_terms) if recipe.file.removal_by_group else None
    for stage in stages:
        folder = stage_folder(recipe.output, stage.name)
        removals = Removals(recipe.output / "removed" / stage.name) if recipe.file.keep_removed else None
        before = ended[-1] if ended else None
        begin = TaskBegin()
        end = TaskEnd(stage.pipeline, folder / "counts", folder / "progress", removals, before, begin, groups)
        finished.append(stage._replace(pipeline=[begin, *stage.pipeline, end]))
        ended.append(Ended(folder / "counts", stage.tasks))
    return [*finished, Stage("report", 1, [WriteReport(recipe.output, ended, recipe.resolved())])]


def _run(recipe: Recipe, stages: list[Stage], progress: bool) -> Report | None:
    settings = recipe.file.executor
    folders = [stage_folder(recipe.output, stage.name) for stage in stages]
    for stage, folder in zip(stages, folders, strict=True):
        begin_progress(folder / "progress", stage.tasks)
    if settings.kind == "slurm":
        with_logs = [(stage, folder / "logs") for stage, folder in zip(stages, folders, strict=True)]
        path = recipe.output / "work" / "slurm.json"
        atomic.write_text(path, "[]")
        submit_slurm(with_logs, settings, lambda jobs: atomic.write_text(path, json.dumps(jobs)))
        return None
    run = run_local if settings.kind == "local" else run_ray
    documents: int | None = None
    for stage, folder in zip(stages, folders, strict=True):
        shown = progress and stage.name != "report"
        with stage_progress(stage.name, folder, stage.tasks, documents, shown):
            run(stage, folder / "logs", settings)
        documents = merge_counts(folder / "counts").kept.documents_out or documents
    return read_report(recipe.output)


def _clear(output: Path) -> None:
    """Remove an earlier build; a kill amid the removal leaves a plan that nothing can go on from."""
    plan = output / "work" / "plan.json"
    if not plan.exists():
        return
    atomic.write_text(plan, "{}")
    for path in (report_path(output), page_path(output)):
        path.unlink(missing_ok=True)
    for path in (output / "documents", output / "removed", *(output / "work").iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
    plan.unlink()


def _refuse_foreign(output: Path) -> None:
    """Refuse a directory where documents lie that no plan accounts for."""
    if any((output / "documents").glob("*")):
        raise UserError(
            f"{output / 'documents'} holds files that no build of a corpus made; choose another output"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # a file system, such as /proc, where none can be made
        raise UserError(f"{error.filename} cannot be made; choose another output") from None
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another build is at work in {folder}; wait for it or choose another output"
            ) from None
        yield
