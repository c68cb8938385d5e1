"""Looks into a corpus: its documents, kept and removed, with the reason beside each."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document

from megalm.corpus.report import read_report
from megalm.corpus.shards import SUFFIX, read_shard, shard_paths
from megalm.errors import UserError

Entry = dict[str, Any]


def show_documents(
    path: str | Path,
    removed: bool = False,
    reason: str | None = None,
    document: int = 0,
    count: int | None = None,
) -> Iterator[Entry]:
    """Yield documents of a corpus, or of one shard, from number `document` on, `count` of them or all.

    Each is a dictionary with number, id, text, metadata, step and reason; the reason of one that stayed is "kept".
    With `removed`, or a `reason` (or the beginning of one), those that a step removed: all where the recipe says
    keep_removed, else the samples in the report. Raises UserError for a path without documents.
    """
    entries = _entries(Path(path), removed or (reason is not None and reason != "kept"))
    chosen = (entry for entry in entries if reason is None or entry["reason"].startswith(reason))
    for number, entry in enumerate(
        islice(chosen, document, None if count is None else document + count), document
    ):
        yield {"document": number, **entry}


def render(entry: Entry) -> str:
    """An entry as text for people."""
    by = f" by {entry['step']}" if entry["step"] else ""
    lines = [f"--- document {entry['document']}  {entry['id']}", f"    {entry['reason']}{by}"]
    if entry["metadata"]:
        lines.append(f"    {json.dumps(entry['metadata'], ensure_ascii=False)}")
    return "\n".join([*lines, entry["text"], ""])


def _entries(path: Path, removed: bool) -> Iterator[Entry]:
    if path.is_file():
        return _read([path])
    if not path.is_dir():
        raise UserError(f"{path} does not exist; name a corpus (the output of a recipe) or a shard")
    folder = path / "documents" if (path / "documents").is_dir() else path
    if not removed:
        shards = shard_paths(folder)
        if not shards:
            raise UserError(
                f"{path} holds no shards (*{SUFFIX}); name a corpus (the output of a recipe) or a shard"
            )
        return _read(shards)
    if (path / "removed").is_dir():
        return _read(sorted((path / "removed").rglob(f"*{SUFFIX}")))
    report = read_report(path)
    if report is None:
        raise UserError(f"{path} has no report yet, and so no removed documents; finish the build first")
    return _samples(report)


def _read(shards: list[Path]) -> Iterator[Entry]:
    for path in shards:
        for document in _documents(path):
            metadata = dict(document.metadata)
            step = metadata.pop("removed_by", "")
            reason = metadata.pop("reason", "kept") if step else "kept"
            yield {
                "id": document.id,
                "step": step,
                "reason": reason,
                "metadata": metadata,
                "text": document.text,
            }


def _documents(path: Path) -> Iterator[Document]:
    try:
        yield from read_shard(path)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no shard of a corpus or is damaged ({error}); name another") from None


def _samples(report: dict[str, Any]) -> Iterator[Entry]:
    for step in report["steps"]:
        for reason, samples in step["samples"].items():
            for sample in samples:
                metadata = {**sample["metadata"], "characters": sample["characters"]}
                yield {
                    "id": sample["id"],
                    "step": step["step"],
                    "reason": reason,
                    "metadata": metadata,
                    "text": sample["text"],
                }
