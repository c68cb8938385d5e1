"""From a model back to its raw sources, by what was recorded beside each thing on the way."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megalm.checkpoint.directory import CHECKPOINTS, TENSORS, list_checkpoints
from megalm.dataset.sidecar import read_sidecar, sidecar_path
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.lineage.record import FILE_NAME, model_hash
from megalm.run_files import EXPORT_LINEAGE
from megalm.tokenizer.load import METADATA_NAME


@dataclass
class Node:
    """Something that was made, or a source.

    kind: run, checkpoint, model, dataset, tokenizer, corpus, feedback, file, folder, address, or `missing` where nothing is found. facts: what is known of it. parts: what
    it was made of, each with its role. warnings: where it is not what was recorded.
    """

    kind: str
    path: str
    facts: dict[str, Any] = field(default_factory=dict)
    parts: list[tuple[str, "Node"]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_told: bool = False
    """Whether its parts are told at another place of the tree."""

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        parts = [{"role": role} | part.to_json() for role, part in self.parts]
        named = {"kind": self.kind, "path": self.path, **self.facts}
        named |= {"warnings": self.warnings} if self.warnings else {}
        return named | ({"told_above": True} if self.is_told else {"made_of": parts})

    def walk(self) -> Iterator["Node"]:
        """It and all below."""
        yield self
        for _, part in self.parts:
            yield from part.walk()


def trace(path: str | Path, verify: bool = False) -> Node:
    """The tree from what lies at `path`: a run, a checkpoint, a converted model, token files (their prefix), a tokenizer, a corpus.

    verify: read raw files, too, to compare their hashes; else sizes alone are compared. Raises UserError where nothing is there or
    nothing is recorded.
    """
    tracer = _Tracer(verify)
    try:
        found = tracer.node(Path(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{tracer.place}: what is recorded there has another form than megalm writes ({error!r}); move it away to trace the rest"
        ) from None
    if found.kind == "missing":
        raise UserError(
            f"{path}: there is no such file or directory; name a run, checkpoint, dataset, tokenizer or corpus"
        )
    if found.kind in ("file", "folder"):
        raise UserError(
            f"{path}: nothing is recorded of it; name a run, checkpoint, dataset, tokenizer or corpus of megalm"
        )
    return found


class _Tracer:
    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.told: set[Path] = set()
        self.place = Path()
        """What is read."""

    def node(self, path: Path, record: dict[str, Any] | None = None) -> Node:
        """What lies there. record: what is known of it where it was used: `sha256`, `bytes`."""
        record = record or {}
        known = path.resolve()
        for matches, read in (
            (_is_checkpoint, self._checkpoint),
            (_is_run, self._run),
            (_is_corpus, self._corpus),
            (_is_feedback, self._feedback),
            (_is_dataset, self._dataset),
            (_is_tokenizer, self._tokenizer),
            (_is_model, self._model),
        ):
            if matches(path):
                if known in self.told:
                    return Node(read.__name__[1:], str(path), is_told=True)
                self.told.add(known)
                self.place = path
                return read(path, record)
        return self._file(path, record)

    def _checkpoint(self, path: Path, record: dict[str, Any]) -> Node:
        node = Node("checkpoint", str(path), {"sha256": model_hash(path)})
        if record.get("sha256") not in (None, node.facts["sha256"]):
            node.warnings.append("it is another one than was used")
        if (path / FILE_NAME).exists():
            self._made(path, node)
            if (path / "tokenizer").is_dir():
                node.parts.append(("tokenizer", self.node(path / "tokenizer")))
        elif path.parent.name == CHECKPOINTS and (run := path.parent.parent / FILE_NAME).exists():
            node.facts["step"] = _json(path / "state.json").get("step")
            node.parts.append(("run", self.node(run.parent)))
        return node

    def _run(self, path: Path, record: dict[str, Any]) -> Node:
        lineage = _json(path / FILE_NAME)
        settings = _yaml(path / "config.yaml")
        node = Node("run", str(path), {"task": settings.get("task", "pretrain")})
        if checkpoints := list_checkpoints(path):
            node.facts["step"] = max(checkpoints)
        if starts := lineage.get("starts"):
            last = starts[-1]
            node.facts |= {"starts": len(starts), "last_start": last["time"], "layout": last["layout"]}
            node.facts |= _program(last["program"])
        parent = lineage.get("parent")  # of earlier versions
        for each in lineage.get("models", [{"role": "weights", "path": parent}] if parent else []):
            node.parts.append((each["role"], self._used(each)))
        for role, name in (("data", "data"), ("validation", "validation")):
            for prefix, digest in lineage.get(name, {}).items():
                node.parts.append((role, self.node(Path(prefix), {"sha256": digest})))
        for each in lineage.get("files", []):
            node.parts.append((each["role"], self.node(Path(each["path"]), each)))
        tokenizer = settings.get("tokenizer", {}).get("path") or path / "tokenizer"
        if lineage.get("tokenizer"):
            node.parts.append(("tokenizer", self.node(Path(tokenizer), {"hash": lineage["tokenizer"]})))
        return node

    def _used(self, record: dict[str, Any]) -> Node:
        """A model, by the checkpoint that was taken, else by its path."""
        if record.get("checkpoint"):
            return self.node(Path(record["checkpoint"]), record)
        return self.node(Path(record["path"]), record)

    def _model(self, path: Path, record: dict[str, Any]) -> Node:
        """In a form that is not ours, with a record beside it."""
        node = Node("model", str(path))
        self._made(path, node)
        return node

    def _made(self, path: Path, node: Node) -> None:
        made = _json(path / FILE_NAME)
        node.facts["made_by"] = made.get("made_by")
        node.facts |= _program(made.get("program", {}))
        for each in made.get("made_of", []):
            node.parts.append((each["role"], self._used(each)))

    def _feedback(self, path: Path, record: dict[str, Any]) -> Node:
        """What people said of models' answers."""
        found = _json(_export_record(path))
        node = Node("feedback", str(path), {name: found.get(name) for name in ("form", "split", "records")})
        node.facts["store"] = found.get("store")
        for each in found.get("made_of", []):
            node.parts.append((each["role"], self._used(each)))
        _compare(path, record | {"sha256": found.get("sha256")}, node, self.verify)
        return node

    def _dataset(self, path: Path, record: dict[str, Any]) -> Node:
        sidecar = read_sidecar(_prefix(path)) or {}
        node = Node("dataset", str(path))
        node.facts |= {
            name: sidecar.get(name) for name in ("split", "documents", "tokens") if sidecar.get(name)
        }
        node.facts["sha256"] = sidecar.get("bin_sha256")
        if record.get("sha256") not in (None, node.facts["sha256"]):
            node.warnings.append("its tokens are others than were used")
        sources = [*sidecar.get("merged", []), *filter(None, [sidecar.get("split_from")])]
        for each in sources:
            node.parts.append(
                ("part of", self.node(Path(each["prefix"]), {"sha256": each.get("bin_sha256")}))
            )
        for each in sidecar.get("inputs", []):
            node.parts.append(("input", self.node(Path(each["path"]), each)))
        if sidecar.get("tokenizer"):
            wanted = {"hash": sidecar.get("tokenizer_hash")}
            node.parts.append(("tokenizer", self.node(Path(sidecar["tokenizer"]), wanted)))
        return node

    def _tokenizer(self, path: Path, record: dict[str, Any]) -> Node:
        folder = path if path.is_dir() else path.parent
        metadata = _json(folder / METADATA_NAME) if (folder / METADATA_NAME).exists() else {}
        node = Node(
            "tokenizer", str(path), {name: metadata[name] for name in ("kind", "hash") if name in metadata}
        )
        if record.get("hash") and metadata.get("hash") not in (None, record["hash"]):
            node.warnings.append("it is another one than was used")
        for each in metadata.get("inputs", []):
            node.parts.append(("trained on", self.node(Path(each["path"]), each)))
        return node

    def _corpus(self, path: Path, record: dict[str, Any]) -> Node:
        folder = _corpus_of(path)
        assert folder is not None
        report = _json(folder / "report.json")
        node = Node("corpus", str(folder))
        node.facts |= {name: report.get(name) for name in ("documents", "characters")}
        recipe = _yaml(folder / "recipe.yaml")
        steps = [step if isinstance(step, str) else next(iter(step)) for step in recipe.get("steps", [])]
        node.facts["steps"] = ", ".join(steps)
        for source in recipe.get("sources", []):
            role = f"source {source.get('name') or source.get('kind')}"
            if source.get("url"):
                node.parts.append((role, Node("address", source["url"])))
            paths = source.get("path") or []
            for each in [paths] if isinstance(paths, str) else paths:
                node.parts.append((role, self.node(Path(each))))
        if path.is_file():
            _compare(path, record, node, self.verify)
        return node

    def _file(self, path: Path, record: dict[str, Any]) -> Node:
        if not path.exists():
            return Node("missing", str(path), warnings=["it is not there any more"])
        if path.is_dir():
            return Node("folder", str(path))
        node = Node("file", str(path), {"bytes": path.stat().st_size})
        if record.get("sha256"):
            node.facts["sha256"] = record["sha256"]
        _compare(path, record, node, self.verify)
        return node


def _compare(path: Path, record: dict[str, Any], node: Node, verify: bool) -> None:
    """Warn where a file is not what it was when it was used."""
    is_other = record.get("bytes") not in (None, path.stat().st_size)
    if not is_other and verify and record.get("sha256"):
        is_other = sha256_of(path) != record["sha256"]
    if is_other:
        node.warnings.append(f"{path.name} has changed since it was used")


def _is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").is_file() and (path / TENSORS).is_dir()


def _is_run(path: Path) -> bool:
    return (path / FILE_NAME).is_file() and (path / "config.yaml").is_file()


def _is_model(path: Path) -> bool:
    return (path / FILE_NAME).is_file()


def _prefix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _export_record(path: Path) -> Path:
    return path.with_name(path.name + EXPORT_LINEAGE)


def _is_feedback(path: Path) -> bool:
    return path.is_file() and _export_record(path).is_file()


def _is_dataset(path: Path) -> bool:
    return path.name != "" and sidecar_path(_prefix(path)).is_file() and not path.is_dir()


def _is_tokenizer(path: Path) -> bool:
    return (path / METADATA_NAME).is_file() and not (path / FILE_NAME).exists()


def _is_corpus(path: Path) -> bool:
    return _corpus_of(path) is not None


def _corpus_of(path: Path) -> Path | None:
    """The corpus that it is, or whose documents it holds or is one of."""
    for folder in (path, path.parent, path.parent.parent):
        inside = path.relative_to(folder).parts
        if (folder / "report.json").is_file() and (folder / "recipe.yaml").is_file():
            return folder if inside[:1] in ((), ("documents",)) else None
    return None


def _program(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("megalm", "code") if found.get(name)}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away to trace the rest") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no record of megalm; move it away to trace the rest")
    return content


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    return content if isinstance(content, dict) else {}
