"""The command `megalm corpus bias`: figures by group of documents that lie anywhere, without a build."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document

from megalm.corpus.bias.figures import representation
from megalm.corpus.bias.representation import Representation, TermsSettings
from megalm.corpus.report import read_report
from megalm.tokenizer.documents import expand_inputs, read_documents


def audit(path: str | Path, terms: Path | None = None, text_key: str = "text") -> dict[str, Any]:
    """The figures of `representation` over the documents in `path`: a corpus, shards, JSONL or text files.

    A corpus whose recipe counted removals by group brings them along as `removal_by_group`. Raises UserError for a path without
    documents.
    """
    path = Path(path)
    step = Representation(TermsSettings(terms=terms))
    for _ in step.run(_documents(path, text_key)):
        pass
    (figures,) = representation([step.tally.to_json()])
    report = read_report(path) if path.is_dir() else None
    removals = (report or {}).get("removal_by_group")
    return figures | ({} if removals is None else {"removal_by_group": removals})


def _documents(path: Path, text_key: str) -> Iterator[Document]:
    folder = path / "documents"
    for file in expand_inputs([folder if folder.is_dir() else path]):
        for number, found in enumerate(read_documents(file, text_key)):
            record = found.record or {}
            metadata = record.get("metadata")
            known = record | metadata if isinstance(metadata, dict) else record
            language = {"language": known["language"]} if "language" in known else {}
            yield Document(found.text, f"{file.name}#{number}", metadata=language)
