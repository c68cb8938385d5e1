"""What a model card says of the data: token files, the corpora behind them, prompts and rewards."""

from collections.abc import Iterator, Sequence

from megalm.config.rlhf import RL_TASKS
from megalm.html.numbers import counted, short
from megalm.report.corpora import corpora_of
from megalm.report.lineage import Data, Lineage
from megalm.report.run import RunRecord
from megalm.report.summary import UNKNOWN

HEADS = ["token files", "for", "in", "share", "documents", "tokens", "SHA-256", "note"]


def data_rows(run: RunRecord, lineage: Lineage) -> tuple[list[tuple[str, str]], list[str], list[list[str]]]:
    """Facts, and the heads and rows of a table of token files, those of the runs before it too."""
    used = [(data, "this run") for data in lineage.data]
    used += [(data, one.path) for one in lineage.ancestors for data in one.data]
    rows = [
        [
            data.path,
            data.use,
            where,
            data.share or "–",
            counted(data.documents) if data.documents is not None else "–",
            counted(data.tokens) if data.tokens is not None else "–",
            data.digest or UNKNOWN,
            data.note,
        ]
        for data, where in used
    ]
    return list(_facts(run, lineage, [data for data, _ in used])), HEADS if rows else [], rows


def _facts(run: RunRecord, lineage: Lineage, used: Sequence[Data]) -> Iterator[tuple[str, str]]:
    if not lineage.data and run.task not in RL_TASKS:
        yield "token files", UNKNOWN
    inputs = [one.path for data in used for one in data.inputs]
    if inputs:
        yield "made of", ", ".join(dict.fromkeys(inputs))
    corpora = corpora_of(inputs)
    for corpus in corpora:
        yield (
            f"corpus {corpus.path}",
            (
                f"{counted(corpus.documents)} documents, {short(corpus.characters)} characters; from "
                f"{', '.join(corpus.sources) or UNKNOWN}; cleaned by {', '.join(corpus.steps) or 'nothing'}"
            ),
        )
    for part in lineage.parts:
        yield part.role, f"{part.path} (SHA-256 {part.digest or UNKNOWN})"
    if run.task in RL_TASKS and run.parsed:
        rewards = (f"{reward.title} (weight {reward.weight:g})" for reward in run.parsed.rlhf.rewards)
        yield "rewards", ", ".join(rewards) or UNKNOWN
    languages = [
        f"{name} ({counted(count)} documents)" for corpus in corpora for name, count in corpus.languages
    ]
    yield "languages", ", ".join(languages) or UNKNOWN
    yield "licences and consent", UNKNOWN
    yield "personal data", UNKNOWN
