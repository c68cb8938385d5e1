"""Turns the user's files into token files of the base's tokenizer: cleaned for the domain, and general text for replay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalm.adapt.recipe import AdaptRecipe
from megalm.config import Config
from megalm.config.load import read_yaml
from megalm.config.schema import DataSource
from megalm.dataset import Extras, build_dataset
from megalm.dataset.indexed import idx_path
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.splits import SPLITS

_KINDS = {
    "text": (".txt", ".text", ".md"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
_COMPRESSED = (".gz", ".zst")

Blend = list[dict[str, Any]]


def build_corpus_of(recipe_path: Path, files: Sequence[str], output: Path, workers: int | None) -> Path:
    """Clean `files` by the domain's corpus recipe; the directory of its documents. Finished work is not done again."""
    from megalm.corpus.build import build_corpus
    from megalm.corpus.plan import OtherBuildError
    from megalm.corpus.recipe import parse_recipe

    data = read_yaml(recipe_path)
    first = data["sources"][0]
    data["sources"] = [first | {"path": list(files)}] if first["kind"] == "code" else sources_of(files)
    data |= {"output": str(output), "executor": {"workers": workers} if workers else {}}
    try:
        report = build_corpus(parse_recipe(data, where=str(recipe_path)), progress=True)
    except OtherBuildError as error:
        raise UserError(f"{error.why}; other files or another recipe need another --output") from None
    assert report is not None  # None is for tasks on a cluster
    if not report["documents"]:
        raise UserError(
            f"the steps of {recipe_path} leave nothing of the files; see {output / 'report.html'}"
        )
    return output / "documents"


def sources_of(files: Sequence[str]) -> list[dict[str, Any]]:
    """A source for each kind of file among `files` and below the directories among them; UserError for other kinds."""
    paths: dict[str, list[str]] = {}
    for name in files:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{name}: no such file or directory")
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        known = [(kind, str(file)) for file in found if (kind := _kind(file))]
        if not known:
            endings = " ".join(ending for kind in _KINDS.values() for ending in kind)
            raise UserError(
                f"{name}: no documents of a known kind there ({endings}, then .gz or .zst); convert them"
            )
        for kind, file in known:
            paths.setdefault(kind, []).append(file)
    return [{"kind": kind, "path": paths[kind], "name": f"files_{kind}"} for kind in sorted(paths)]


def _kind(path: Path) -> str | None:
    name = path.with_suffix("").name if path.suffix in _COMPRESSED else path.name
    return next((kind for kind, endings in _KINDS.items() if name.lower().endswith(endings)), None)


def index(
    inputs: Sequence[str | Path], tokenizer: Path, prefix: Path, splits: str, fim_rate: float = 0.0
) -> int:
    """Build token files of documents; how many tokens there are for training. UserError where a part has no document."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    records = build_dataset(
        inputs, tokenizer, prefix, splits=splits, extras=Extras(fim_rate=fim_rate), progress=True
    )
    for name in SPLITS[:2]:
        if name not in records:
            for file in prefix.parent.glob(f"{prefix.name}_*"):
                file.unlink()  # so that the same command may be given with other splits
            raise UserError(
                f"{prefix}: splits {splits} left no document for {name}; give more files, or change splits"
            )
    return int(records["train"]["tokens"])


def general_blends(
    base: Config, files: Sequence[str], tokenizer: Path, folder: Path, recipe: AdaptRecipe
) -> tuple[Blend, Blend]:
    """General text for training and for validation: of `files`, else what the base was trained on.

    ([], []) where that is not known or gone; UserError if it was to be replayed.
    """
    if files:
        prefix = folder / "general"
        index(files, tokenizer, prefix, recipe.splits)
        return [{"path": f"{prefix}_train"}], [{"path": f"{prefix}_valid"}]
    train, valid = base.data.train, base.data.valid
    missing = next((source.path for source in (*train, *valid) if not idx_path(source.path).exists()), None)
    if train and valid and missing is None:
        return [_weighted(source) for source in train], [{"path": source.path} for source in valid]
    if recipe.replay:
        why = f"{missing} is not there any more" if missing else "it does not say what it was trained on"
        raise UserError(
            f"replay {recipe.replay} needs general text, and that of the base cannot be had ({why}): name files with "
            "--general, or set replay=0"
        )
    return [], []


def _weighted(source: DataSource) -> dict[str, Any]:
    """The source with a weight; the size of its part where it had a budget."""
    if source.weight is None and (source.tokens or source.epochs):
        size = (read_sidecar(source.path) or {}).get("tokens", 1)
        return {"path": source.path, "weight": source.tokens or source.epochs * size}
    return {"path": source.path, "weight": source.weight or 1.0}


def scaled(blend: Blend, share: float) -> Blend:
    """The blend with weights that add up to `share`."""
    total = sum(source.get("weight", 1.0) for source in blend)
    return [source | {"weight": share * source.get("weight", 1.0) / total} for source in blend]
