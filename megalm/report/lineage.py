"""What runs are made of: tokenizer, data with what their own records say, and the runs that their weights came from."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from megalm import run_files
from megalm.report.json_lines import mapping, objects, read_named
from megalm.report.run import RunRecord

MOST_ANCESTORS = 20
MOST_INPUTS = 50
_DATASET = "megalm dataset"


class Input(NamedTuple):
    """A file that token files were made of."""

    path: str
    digest: str


class Data(NamedTuple):
    """A source of token files. share: of the blend, or its budget. documents, tokens: None where no record tells, see `note`."""

    use: str
    path: str
    digest: str | None
    share: str | None
    documents: int | None
    tokens: int | None
    inputs: list[Input]
    more_inputs: int
    note: str


class Ancestor(NamedTuple):
    """A run or checkpoint that weights came from, and what that learned from; None for what its directory does not tell."""

    path: str
    task: str | None
    data: list[Data]


class Part(NamedTuple):
    """A model that is asked, or a file that is read, with its role."""

    role: str
    path: str
    digest: str | None


class Lineage(NamedTuple):
    """What one run is made of; None for what is not recorded. version, code: of megalm at the last start."""

    run: str
    version: str | None
    code: str | None
    digest: str | None
    tokenizer: str | None
    parts: list[Part]
    data: list[Data]
    ancestors: list[Ancestor]


def lineages_of(runs: Sequence[RunRecord]) -> list[Lineage]:
    """Of each run."""
    return [lineage_of(run) for run in runs]


def lineage_of(run: RunRecord) -> Lineage:
    """What its lineage.json tells, and the records beside the token files as far as those are the same still."""
    recorded = run.lineage
    starts = objects(recorded.get("starts"))
    program = mapping(starts[-1].get("program")) if starts else recorded
    parts = [*objects(recorded.get("models")), *objects(recorded.get("files"))]
    return Lineage(
        run=run.name,
        version=_text(program.get("megalm")),
        code=_text(program.get("code")),
        digest=_text(recorded.get("config")),
        tokenizer=_text(recorded.get("tokenizer")),
        parts=[
            Part(str(part.get("role")), str(part.get("path")), _text(part.get("sha256"))) for part in parts
        ],
        data=list(_data(recorded)),
        ancestors=list(_ancestors(recorded)),
    )


def _data(recorded: dict[str, Any]) -> Iterator[Data]:
    shares = recorded.get("shares")
    shares = list(shares) if isinstance(shares, list) else []
    for place, (path, digest) in enumerate(mapping(recorded.get("data")).items()):
        share = shares[place] if place < len(shares) else None
        yield _source("training", path, _text(digest), _share(share))
    for path, digest in mapping(recorded.get("validation")).items():
        yield _source("validation", path, _text(digest), None)


def _source(use: str, path: str, digest: str | None, share: str | None) -> Data:
    record, note = _record(path, digest)
    inputs = objects(record.get("inputs"))
    shown = [Input(str(entry.get("path")), str(entry.get("sha256"))) for entry in inputs[:MOST_INPUTS]]
    documents, tokens = record.get("documents"), record.get("tokens")
    return Data(
        use=use,
        path=path,
        digest=digest,
        share=share,
        documents=documents if isinstance(documents, int) else None,
        tokens=tokens if isinstance(tokens, int) else None,
        inputs=shown,
        more_inputs=len(inputs) - len(shown),
        note=note,
    )


def _record(path: str, digest: str | None) -> tuple[dict[str, Any], str]:
    """What the file beside the token files says of them, and why it says nothing."""
    if digest is None:
        return {}, "token files of another program: nothing is recorded of them"
    found = read_named(Path(f"{path}.json"))
    if found is None or found.get("kind") != _DATASET:
        return {}, "their record is not there any more"
    if found.get("bin_sha256") != digest:
        return {}, "other token files lie there now"
    return found, ""


def _share(value: Any) -> str | None:
    """A part of the blend, or a budget in tokens or epochs."""
    if isinstance(value, float | int):
        return f"{value:.1%}"
    budget = [
        f"{amount:g} {name}" for name, amount in mapping(value).items() if isinstance(amount, int | float)
    ]
    return ", ".join(budget) or None


def _ancestors(recorded: dict[str, Any]) -> Iterator[Ancestor]:
    """Where the weights came from, and where those came from, the nearest first."""
    seen: set[Path] = set()
    while (parent := _parent(recorded)) is not None and len(seen) < MOST_ANCESTORS:
        directory = _run_of(Path(parent))
        if directory in seen:
            return
        seen.add(directory)
        recorded = read_named(directory / run_files.LINEAGE) or {}
        yield Ancestor(parent, _task(directory), list(_data(recorded)))


def _parent(recorded: dict[str, Any]) -> str | None:
    """The checkpoint or run that the weights came from; records of earlier versions have it by itself."""
    weights = (model for model in objects(recorded.get("models")) if model.get("role") == "weights")
    found = next((model.get("checkpoint") or model.get("path") for model in weights), recorded.get("parent"))
    return _text(found)


def _run_of(path: Path) -> Path:
    """The run directory of a run, or of one of its checkpoints."""
    with suppress(OSError, RuntimeError, ValueError):  # links in a circle, names that are none
        path = path.resolve()
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _task(directory: Path) -> str | None:
    """From the configuration's top level, which is all that is needed of it."""
    try:
        lines = (directory / run_files.CONFIG).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("task:")), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
