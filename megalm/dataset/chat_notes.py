"""What was wrong with the conversations of a build: counted by reason, named in a file, and too much of it refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.dataset.chunks import notes_path, read_counts
from megalm.dataset.plan import Plan
from megalm.errors import UserError
from megalm.tokenizer.documents import BUILD_SUFFIX

EXAMPLES = 3
"""So many are named in an error."""


def left_out_path(prefix: str | Path) -> Path:
    """Return the file that names every record that the build of `prefix` left out or changed, a JSON object a line."""
    return Path(f"{prefix}.left_out")


def conversations_record(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return how many records there were, how many were kept, and how many left out or changed, by reason."""
    notes = [json.loads(line) for line in _lines(plan, folder)]
    left_out = Counter(note["reason"] for note in notes if not note["kept"])
    changed = Counter(note["reason"] for note in notes if note["kept"])
    read = sum(read_counts(folder, chunk.key).records for chunk in plan.chunks)
    return {
        "read": read,
        "kept": read - left_out.total(),
        "left_out": dict(sorted(left_out.items())),
        "changed": dict(sorted(changed.items())),
    }


def check_conversations(plan: Plan, folder: Path) -> None:
    """Name what was left out in a file beside the datasets to be; UserError where it is too much, or nothing is left."""
    chat = plan.recipe.extras.chat
    assert chat is not None
    prefix = folder.with_name(folder.name.removesuffix(BUILD_SUFFIX))
    lines, path = _lines(plan, folder), left_out_path(prefix)
    if lines:
        atomic.write_text(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)
    record = conversations_record(plan, folder)
    bad = record["read"] - record["kept"]
    if record["kept"] and bad <= chat.max_rejected * record["read"]:
        return
    if not record["read"]:
        raise UserError("the inputs hold no record; check the files")
    share = f"more than max_rejected {chat.max_rejected:g} of them" if record["kept"] else "all of them"
    raise UserError(
        f"{bad} of {record['read']} records cannot be learned from, {share}: {told(record['left_out'])}; for instance "
        f"{'; '.join(examples(path, EXAMPLES))}; all are named in {path}: mend them, say how they are to be read "
        "(--chat, --messages-key, --prompt-key, --answer-key, --max-length), or raise --max-rejected"
    )


def examples(path: Path, count: int) -> list[str]:
    """Name the first records of each reason that were left out, `count` at most: file:line, reason, what was found."""
    if not path.exists():
        return []
    notes = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    seen: Counter[str] = Counter()
    ranked = []
    for number, note in enumerate(notes):
        if not note["kept"]:
            ranked.append((seen[note["reason"]], number))
            seen[note["reason"]] += 1
    chosen = sorted(number for _, number in sorted(ranked)[:count])
    return [
        f"{note['path']}:{note['line']} {note['reason']} ({note['detail'][:120]})"
        for note in map(notes.__getitem__, chosen)
    ]


def told(reasons: dict[str, int]) -> str:
    """`3 too_long, 1 empty_answer`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda e: -e[1]))


def _lines(plan: Plan, folder: Path) -> list[str]:
    """The notes on all files, in the order of the inputs."""
    found = []
    for chunk in plan.chunks:
        text = notes_path(folder, chunk.key).read_text(encoding="utf-8")
        found += [line + "\n" for line in text.split("\n") if line]
    return found
