"""Builds shuffled token datasets with several processes; a killed build goes on where it was."""

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalm import atomic
from megalm.dataset.fim import FimTokens
from megalm.dataset.indexed import idx_path
from megalm.dataset.plan import Plan
from megalm.dataset.publishing import check_targets
from megalm.dataset.recipe import Extras, Recipe
from megalm.dataset.sidecar import read_sidecar
from megalm.dataset.stages import (
    OPTIONAL,
    Record,
    Work,
    begin_second_pass,
    finish,
    first_pass,
    missing,
    remove_folder,
    second_pass,
    trash,
)
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.launch import available_cores
from megalm.splits import SPLITS, split_limits
from megalm.tasks import ends_on_sigterm, progress_bar, run_tasks
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.documents import BUILD_SUFFIX, SampleBy, check_sample_by, expand_inputs

if TYPE_CHECKING:
    from megalm.executors.settings import ExecutorSettings


def build_dataset(
    inputs: Sequence[str | Path],
    tokenizer_path: str | Path,
    prefix: str | Path,
    workers: int | None = None,
    splits: str = "98,1,1",
    seed: int = 0,
    append_eod: bool = True,
    text_key: str = "text",
    sample_by: SampleBy = "document",
    overwrite: bool = False,
    progress: bool = False,
    extras: Extras | None = None,
    executor: "ExecutorSettings | None" = None,
    tasks: int | None = None,
) -> dict[str, Record]:
    """Tokenize, split and shuffle the documents of `inputs` into PREFIX_train, PREFIX_valid and PREFIX_test.

    `inputs` are JSONL (text under `text_key`) or text files (a document each, or cut by `sample_by`), plain,
    .gz or .zst, or directories of them. `splits` are the shares of train, valid and test; which one a
    document is in depends on its text alone. The order within a split depends on `seed` and the documents'
    places in the inputs. Each split that is not empty is a .bin, an .idx and a .json that records how it was
    made; empty texts are left out. `extras` adds origins, names, prompts or fill-in-the-middle, or says that the inputs are
    conversations (see `Extras`), of which PREFIX.left_out names those that are not in the result, and why.

    With `executor` the build is dealt out to so many `tasks` (by default one for each 4 to 512 MiB of input, 1,000 at most) on
    datatrove's local, SLURM or Ray executor, whose logs lie in PREFIX.logs; its own `workers` counts then.

    The result does not depend on `workers` (default: the CPUs this process may use), executor and `tasks`. After a kill, the
    same call makes only the parts that are missing (they lie in PREFIX.build until the end) and gives the same
    bytes. A result that is there already is returned as it is; another one in its place is an error unless
    `overwrite`.

    Returns the record (what the .json holds) of each split written, nothing where all was handed to SLURM and is still to
    run. Raises UserError for inputs or settings that do not fit.
    """
    prefix = Path(prefix)
    check_targets([f"{prefix}_{name}" for name in SPLITS] if prefix.name else [prefix])
    recipe = _recipe(tokenizer_path, append_eod, text_key, sample_by, splits, seed, extras or Extras())
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; at least one is needed")
    run_on_executor = _executor() if executor else None
    plan = Plan.make(recipe, expand_inputs(inputs))
    folder = prefix.with_name(f"{prefix.name}{BUILD_SUFFIX}")
    shutil.rmtree(trash(folder), ignore_errors=True)
    if not overwrite and not plan.begun_in(folder):
        finished = _finished(prefix, plan)
        if finished:
            return finished
    with atomic.name_full_disk(folder), _locked(folder):
        _refuse_queued(folder)
        if run_on_executor:
            return run_on_executor(plan, folder, prefix, executor, tasks)
        plan.begin_in(folder)
        return _run_here(plan, folder, prefix, workers or available_cores(), progress)


def _recipe(
    tokenizer_path: str | Path,
    append_eod: bool,
    text_key: str,
    sample_by: SampleBy,
    splits: str,
    seed: int,
    extras: Extras,
) -> Recipe:
    check_sample_by(sample_by)
    split_limits(splits)
    tokenizer = load_tokenizer(tokenizer_path)
    return Recipe(
        tokenizer=str(tokenizer_path),
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        append_eod=append_eod and not extras.chat,  # how a conversation ends is the template's to say
        text_key=text_key,
        sample_by=sample_by,
        splits=splits,
        seed=seed,
        extras=extras,
        fim_tokens=FimTokens.of(tokenizer) if extras.fim_rate else None,
    )


def _run_here(plan: Plan, folder: Path, prefix: Path, workers: int, progress: bool) -> dict[str, Record]:
    """Do what is missing on processes of this machine."""
    _run("tokenize", first_pass(plan, folder), workers, progress)
    begin_second_pass(plan, folder)
    _run("shuffle", second_pass(plan, folder), workers, progress)
    return finish(plan, folder, prefix)


def _run(title: str, work: list[Work], workers: int, progress: bool) -> None:
    tasks = missing(work)
    total = sum(one.task.size for one in work)
    with progress_bar(title, total, progress) as advance:
        advance(total - sum(task.size for task in tasks))
        run_tasks(tasks, max(1, min(workers, len(tasks))), advance)


def _executor() -> Callable[..., dict[str, Record]]:
    """What runs a build on an executor; its packages are not needed otherwise."""
    try:
        from megalm.dataset.on_executor import run_on_executor
    except ImportError as error:
        raise UserError(
            f"executors need a package that is not installed ({error}); pip install 'megalm[corpus]'"
        ) from None
    return run_on_executor


def _finished(prefix: Path, plan: Plan) -> dict[str, Record]:
    """Return the records of a complete build of `plan` at `prefix`, nothing where there is no build at all.

    Raises UserError where something else lies there.
    """
    there = [name for name in SPLITS if idx_path(f"{prefix}_{name}").exists()]
    if not there:
        return {}
    records = {name: read_sidecar(f"{prefix}_{name}") or {} for name in there}
    if all(_made_by(record, plan) for record in records.values()):
        return records
    raise UserError(
        f"{idx_path(f'{prefix}_{there[0]}')} exists and comes from other inputs or settings; "
        "choose another prefix or overwrite it with --overwrite"
    )


def _made_by(record: Record, plan: Plan) -> bool:
    settings = plan.recipe.settings()
    if any(record.get(name) != settings.get(name) for name in settings.keys() | OPTIONAL):
        return False
    inputs = record.get("inputs", [])
    if [entry["bytes"] for entry in inputs] != [file.size for file in plan.files]:
        return False
    return all(
        entry["sha256"] == sha256_of(file.path) for entry, file in zip(inputs, plan.files, strict=True)
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another build is at work in {folder}; wait for it or choose another prefix"
            ) from error
        try:
            with ends_on_sigterm():
                yield
        except UserError:
            if not any(folder.glob("*.run")) and not (folder / "slurm.json").exists():
                remove_folder(folder)  # there is nothing that another try could use
            raise


def _refuse_queued(folder: Path) -> None:
    jobs = folder / "slurm.json"
    if jobs.exists():
        from megalm.executors.run import refuse_queued

        refuse_queued(jobs)
