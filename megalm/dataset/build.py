"""Builds shuffled token datasets with several processes; a killed build goes on where it was."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.dataset.chunks import chunk_marker, read_counts, run_path, tokenize_chunk
from megalm.dataset.copying import counts_of
from megalm.dataset.fim import FimTokens
from megalm.dataset.indexed import idx_path, token_dtype
from megalm.dataset.plan import InputFile, Plan
from megalm.dataset.publishing import publish, remove_dataset
from megalm.dataset.recipe import Extras, Recipe
from megalm.dataset.shuffle import open_runs, write_split
from megalm.dataset.sidecar import read_sidecar, write_sidecar
from megalm.dataset.writer import IndexedDatasetWriter, sha256_of
from megalm.errors import UserError
from megalm.launch import available_cores
from megalm.splits import SPLITS, split_limits
from megalm.tasks import Task, progress_bar, run_tasks
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.documents import SampleBy, check_sample_by, expand_inputs

Record = dict[str, Any]
OPTIONAL = {field.name for field in fields(Extras)} | {"fim_tokens"}
"""Names in a record that a plain build leaves out."""


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
) -> dict[str, Record]:
    """Tokenize, split and shuffle the documents of `inputs` into PREFIX_train, PREFIX_valid and PREFIX_test.

    `inputs` are JSONL (text under `text_key`) or text files (a document each, or cut by `sample_by`), plain,
    .gz or .zst, or directories of them. `splits` are the shares of train, valid and test; which one a
    document is in depends on its text alone. The order within a split depends on `seed` and the documents'
    places in the inputs. Each split that is not empty is a .bin, an .idx and a .json that records how it was
    made; empty texts are left out. `extras` adds origins, names, prompts or fill-in-the-middle (see `Extras`).

    The result does not depend on `workers` (default: the CPUs this process may use). After a kill, the same
    call makes only the parts that are missing (they lie in PREFIX.build until the end) and gives the same
    bytes. A result that is there already is returned as it is; another one in its place is an error unless
    `overwrite`.

    Returns the record (what the .json holds) of each split written. Raises UserError for inputs or settings
    that do not fit.
    """
    prefix = Path(prefix)
    recipe = _recipe(tokenizer_path, append_eod, text_key, sample_by, splits, seed, extras or Extras())
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; at least one is needed")
    paths = expand_inputs(inputs)
    plan = Plan.make(recipe, paths)
    folder = prefix.with_name(f"{prefix.name}.build")
    shutil.rmtree(_trash(folder), ignore_errors=True)
    if not overwrite and not plan.begun_in(folder):
        finished = _finished(prefix, plan)
        if finished:
            return finished
    with _locked(folder):
        plan.clear_unusable(folder)
        atomic.write_text(folder / "plan.json", plan.to_json())
        _run_first_pass(plan, folder, workers or available_cores(), progress)
        if Plan.make(recipe, paths) != plan:
            raise UserError(
                f"the inputs of {prefix} changed during the build; repeat the command when they are at rest"
            )
        records = _run_second_pass(plan, folder, progress)
        _publish(folder, prefix, records)
        _remove(folder)
    return records


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
        append_eod=append_eod,
        text_key=text_key,
        sample_by=sample_by,
        splits=splits,
        seed=seed,
        extras=extras,
        fim_tokens=FimTokens.of(tokenizer) if extras.fim_rate else None,
    )


def _run_first_pass(plan: Plan, folder: Path, workers: int, progress: bool) -> None:
    """Hash every input and turn every chunk into sorted runs, unless a marker says that it is done."""
    tasks = []
    for number, file in enumerate(plan.files):
        if not _digest_path(folder, file).exists():
            tasks.append(Task(_save_digest, (file, folder), 0))
        for chunk in plan.chunks:
            if chunk.file_number == number and not chunk_marker(folder, chunk.key).exists():
                tasks.append(Task(tokenize_chunk, (chunk, plan.recipe, folder), chunk.size))
    total = sum(chunk.size for chunk in plan.chunks)
    with progress_bar("tokenize", total, progress) as advance:
        advance(total - sum(task.size for task in tasks))
        run_tasks(tasks, workers, advance)


def _run_second_pass(plan: Plan, folder: Path, progress: bool) -> dict[str, Record]:
    """Write the datasets into `folder`/out and return their records."""
    counts = [read_counts(folder, chunk.key) for chunk in plan.chunks]
    runs = [
        (run_path(folder, chunk.key, number), size)
        for chunk, count in zip(plan.chunks, counts, strict=True)
        for number, size in enumerate(count.runs)
    ]
    inputs = [
        {"path": file.path, "bytes": file.size, "sha256": _digest_path(folder, file).read_text()}
        for file in plan.files
    ]
    tokens = [sum(count.tokens[split] for count in counts) for split in range(len(SPLITS))]
    if not sum(tokens):
        raise UserError("the inputs hold no text; check the files and the key that the text is under")

    extras = plan.recipe.extras
    masked = extras.prompt_key is not None
    sources = [file.path for file in plan.files] if extras.traced else None
    records = {}
    dtype = token_dtype(plan.recipe.vocab_size)
    with progress_bar("shuffle", sum(tokens), progress) as advance, open_runs(runs, dtype) as readers:
        for split, name in enumerate(SPLITS):
            if not tokens[split]:
                continue
            out = folder / "out" / name
            with IndexedDatasetWriter(out, dtype, masked, sources) as writer:
                write_split(writer, readers, split, tokens[split], advance)
            records[name] = _record(plan.recipe, name, writer, inputs)
            write_sidecar(out, records[name])
    return records


def _record(recipe: Recipe, split: str, writer: IndexedDatasetWriter, inputs: list[Record]) -> Record:
    return {
        "kind": "megalm dataset",
        "tokenizer": recipe.tokenizer,
        "tokenizer_hash": recipe.tokenizer_hash,
        "vocab_size": recipe.vocab_size,
        "eod_id": recipe.eod_id,
        "append_eod": recipe.append_eod,
        **counts_of(writer),
        "split": split,
        "splits": recipe.splits,
        "seed": recipe.seed,
        "text_key": recipe.text_key,
        "sample_by": recipe.sample_by,
        **{name: value for name, value in recipe.settings().items() if name in OPTIONAL},
        "inputs": inputs,
    }


def _publish(folder: Path, prefix: Path, records: dict[str, Record]) -> None:
    """Move the datasets to their names; a reader never finds files of two builds under one prefix."""
    for name in SPLITS:
        if name not in records:
            remove_dataset(f"{prefix}_{name}")
    publish({f"{prefix}_{name}": folder / "out" / name for name in records})


def _remove(folder: Path) -> None:
    """Remove the build folder; a kill amid the removal leaves nothing that looks like an unfinished build."""
    os.rename(folder, _trash(folder))
    shutil.rmtree(_trash(folder), ignore_errors=True)


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.trash")


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


def _digest_path(folder: Path, file: InputFile) -> Path:
    return folder / f"{file.key}.sha256"


def _save_digest(file: InputFile, folder: Path) -> None:
    atomic.write_text(_digest_path(folder, file), sha256_of(file.path))


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
        yield
