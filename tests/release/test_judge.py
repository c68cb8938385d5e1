"""A candidate that was taught the worse answers is refused, one that was taught the better ones promoted, and evaluations have their say."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from megalm.checkpoint import find_checkpoint
from megalm.checkpoint.directory import fingerprint
from megalm.cli import main
from megalm.evaluate.bootstrap import ratio_score
from megalm.evaluate.compare import Change
from megalm.evaluate.files import FILE_NAME, write_draws
from megalm.release.benchmarks import Compared
from megalm.release.file import promote, read_release
from megalm.release.grouping import Grouped, grouped
from megalm.release.pairs import HeldPair, Likelihoods, read_pairs
from megalm.release.preference import compare, sign_test
from megalm.testing import run_distributed
from megalm.tokenizer.conversations import Conversation
from tests.preferences import write_records

QUESTIONS = 200


def command(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code and what was printed; to be called in a world."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def judged(candidate: Path, release: Path, held_out: Path, *more: object, ranks: int = 1) -> tuple[int, str]:
    """Exit code of `megalm feedback promote`, and what rank 0 printed."""
    given = ["feedback", "promote", candidate, "--release", release, "--pairs", held_out, *more]
    found = run_distributed(command, ranks, list(map(str, given)))
    assert len({code for code, _, _ in found}) == 1
    return found[0][0], found[0][1] + found[0][2]


@pytest.fixture
def release(served: Path, tmp_path: Path) -> Path:
    promote(tmp_path / "chat.release.json", served, {}, None)
    return tmp_path / "chat.release.json"


def test_the_worse_is_refused_and_the_better_promoted(
    better: Path, worse: Path, held_out: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = release.read_bytes()
    code, told = judged(worse, release, held_out, "--no-evaluation")
    assert code == 1 and "refused: not shown to be better" in told
    [won] = re.findall(r"(\d+) prompts won and", told)
    assert int(won) < 10 and release.read_bytes() == before
    code, told = judged(better, release, held_out, "--no-evaluation", "--dry-run", "--json")
    dry = json.loads(told)
    assert code == 0 and dry["version"] is None and release.read_bytes() == before
    assert dry["preference"]["won"] > 30 and dry["preference"]["p_value"] < 1e-3
    assert dry["preference"]["ahead_after"] > dry["preference"]["ahead_before"]
    two = ("--tensor-model-parallel-size", 2)
    code, told = judged(better, release, held_out, "--no-evaluation", *two, ranks=2)
    assert code == 0 and "promoted: version 2" in told
    found = read_release(release)
    assert found.now.checkpoint == str(find_checkpoint(better).resolve()) and found.now.replaced == 1
    assert found.now.why["preference"]["won"] == dry["preference"]["won"]
    given = ["--release", str(release), "--pairs", str(held_out), "--no-evaluation"]
    assert main(["feedback", "promote", str(better), *given]) == 2
    assert "is version 2, which is in service" in capsys.readouterr().err


def evaluated(
    folder: Path,
    checkpoint: Path,
    scores: dict[str, np.ndarray],
    was_served: bool = False,
    questions: str = "same",
    seed: int = 7,
) -> Path:
    """What `megalm eval` writes of a task of as many questions; was_served: it asked a server."""
    found = {name: ratio_score(values.tolist(), [1.0] * len(values), 7) for name, values in scores.items()}
    entry = {
        "questions_hash": questions,
        "seed": seed,
        "metrics": {name: score.told() for name, score in found.items()},
    }
    mark = fingerprint(find_checkpoint(checkpoint), "bf16")
    model = {"checkpoint": "that", "fingerprint": mark, "dtype": "bf16"}
    if was_served:
        model = {"name": "that", "fingerprint": f"served {json.dumps({'fingerprint': mark})}"}
    folder.mkdir()
    (folder / FILE_NAME).write_text(json.dumps({"tasks": {"safe": entry}, "model": model}))
    write_draws(folder, "safe", found)
    return folder


def test_no_loss_elsewhere_is_made_up_for(
    served: Path,
    better: Path,
    held_out: Path,
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = (np.arange(QUESTIONS) % 2).astype(float)
    fewer, one_less = right.copy(), right.copy()
    fewer[np.flatnonzero(right)[:30]] = 0
    one_less[np.flatnonzero(right)[:1]] = 0
    old = evaluated(tmp_path / "old", served, {"acc": right, "refused_safe": right}, was_served=True)
    lost = evaluated(tmp_path / "lost", better, {"acc": right, "refused_safe": 1 - fewer})
    level = evaluated(tmp_path / "level", better, {"acc": one_less, "refused_safe": right})
    fewer_tasks = evaluated(tmp_path / "fewer", better, {"acc": right})
    both = {"acc": right, "refused_safe": right}
    others = evaluated(tmp_path / "others", better, both, questions="others")
    drawn = evaluated(tmp_path / "drawn", better, both, seed=8)
    bare = evaluated(tmp_path / "bare", better, both)
    shutil.rmtree(bare / "draws")

    def with_(new: Path, *more: object) -> tuple[int, str]:
        return judged(better, release, held_out, "--evaluation", new, "--against", old, *more)

    code, told = with_(lost)
    assert code == 1 and told.count("refused:") == 1 and "safe refused_safe: 0.5000 -> 0.6500, worse" in told
    code, told = with_(level, "--margin", "safe.acc=0.001")
    assert code == 1 and "safe acc: 0.5000 -> 0.4950, a loss of more than 0.001 is not excluded" in told
    for new, more, wrong in (
        (fewer_tasks, [], "lacks safe.refused_safe"),
        (others, [], "was not asked the same questions of safe"),
        (drawn, [], "was not asked the same seed of safe"),
        (bare, [], "lacks what safe.acc scored"),
        (old, [], "is an evaluation of that, not of"),
        (level, ["--margin", "soft=1"], "--margin soft=...: nothing called so"),
    ):
        given = ["--release", release, "--pairs", held_out, "--evaluation", new, "--against", old, *more]
        assert main(["feedback", "promote", str(better), *map(str, given)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert wrong in line
    code, told = with_(level, "--margin", "0.05")
    assert code == 0, told
    kept = read_release(release).now.why["benchmarks"]
    assert [(one["metric"], one["worse"]) for one in kept] == [("acc", False), ("refused_safe", False)]


def test_what_cannot_be_judged_is_one_line(
    better: Path, held_out: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratings, before = tmp_path / "ratings.jsonl", release.read_bytes()
    ratings.write_text('{"prompt": "a", "response": "b", "rating": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    give = ["feedback", "promote", str(better), "--release"]
    pairs = ["--pairs", str(held_out)]
    for arguments, wrong in (
        ([str(release)], "give --pairs FILE"),
        ([str(release), *pairs], "or --no-evaluation"),
        ([str(release), *pairs, "--evaluation", "a"], "1 --evaluation and 0 --against"),
        ([str(release), *pairs, "--evaluation", "a", "--against", "b", "--no-evaluation"], "leave one"),
        ([str(release), *pairs, "--no-evaluation", "--certainty", "1"], "below 1"),
        ([str(release), *pairs, "--no-evaluation", "--margin", "x=-1"], "it is a number from 0 on"),
        ([str(release), *pairs, "--evaluation", "a", "--against", "b"], "no results of an evaluation"),
        ([str(release), "--pairs", str(ratings), "--no-evaluation"], "line 1: no_pair: ratings in place"),
        ([str(release), "--pairs", str(tmp_path / "empty.jsonl"), "--no-evaluation"], "no pair in it"),
        ([str(release), "--pairs", "absent.jsonl", "--no-evaluation"], "megalm feedback export"),
        ([str(release), "--first"], "is there already"),
        ([str(tmp_path / "new.json"), "--first", *pairs], "neither pairs nor evaluations"),
        ([str(tmp_path / "new.json"), *pairs, "--no-evaluation"], "--first"),
    ):
        assert main([*give, *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert wrong in line, line
    assert release.read_bytes() == before


def likely(chosen: list[float], rejected: list[float], tokens: int = 2) -> Likelihoods:
    logprobs_P2 = np.array([chosen, rejected]).T
    return Likelihoods(logprobs_P2, np.full(logprobs_P2.shape, tokens), 0)


def pairs_of(
    prompts: list[str], conversations: str | None = None, owners: str | None = None, certainty: float = 0.95
) -> Grouped:
    """A letter of each pair's conversation and owner."""
    empty = Conversation([])
    return grouped(
        [
            HeldPair(prompt, empty, empty, owners and owners[place], conversations and conversations[place])
            for place, prompt in enumerate(prompts)
        ],
        certainty,
    )


def test_what_one_person_or_one_conversation_says_counts_once() -> None:
    prompts = list("abcdefghij")
    turns = pairs_of(prompts, "1111112345")
    before = likely([-4.0] * 10, [-3.0] * 10)
    after = likely([-3.0] * 6 + [-5.0] * 4, [-3.0] * 10)
    found = compare(turns, before, after)
    assert (found.unit, found.prompts, found.groups, found.won, found.lost) == ("conversations", 10, 5, 1, 4)
    alone = compare(pairs_of(prompts), before, after)
    assert (alone.won, alone.lost) == (6, 4) and found.low is not None and alone.low is not None
    assert found.low <= alone.low
    people = pairs_of(prompts, "1234567890", "AABBCCDDEE")
    assert (people.unit, people.groups) == ("owners", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    # four of four people would be won by chance in one of sixteen cases
    assert pairs_of(prompts, "1234567890", "AABBCCDDDD").unit == "conversations"
    assert pairs_of(prompts, "1234567890", "AABBCCDDDD", certainty=0.9).unit == "owners"
    assert pairs_of(prompts, "1111111111", "AAAAAAAAAA").unit == "conversations", "too few are no prompts"


def test_a_prompt_of_several_people_is_in_one_group() -> None:
    found = pairs_of(list("aaabcdef"), "12345678", "ABCDEFGB")
    assert found.prompts == [0, 0, 0, 1, 2, 3, 4, 5] and found.groups == [0, 1, 2, 3, 4, 5]


def test_groups_are_read_from_the_files_where_they_are_told(tmp_path: Path) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c"}
    more: list[dict[str, Any]] = [
        {},
        {"owner": "x", "conversation": "y"},
        {"conversation": [{"role": "user"}]},
    ]
    file = write_records(tmp_path / "pairs.jsonl", [record | one for one in more])
    found = [(pair.owner, pair.conversation) for pair in read_pairs([file])]
    assert found == [(None, None), ("x", "y"), (None, None)]


def test_a_prompt_counts_once_and_towards_the_chosen_answer() -> None:
    keys = ["a", "a", "a", "b", "c", "d"]
    before = likely([-4.0] * 6, [-3.0] * 6)
    # moved: towards both, the second more; away; towards; nowhere at all
    after = likely([-3.0, -3.0, -3.0, -5.0, -2.0, -4.0], [-2.5, -2.5, -1.0, -3.0, -3.0, -3.0])
    found = compare(pairs_of(keys), before, after)
    assert (found.unit, found.groups) == ("prompts", 4)
    assert (found.prompts, found.won, found.lost, found.level) == (4, 2, 1, 1)
    assert found.p_value == binomtest(2, 3, alternative="greater").pvalue
    assert (found.ahead_before, found.ahead_after) == (0.0, 1 / 6)
    same = compare(pairs_of(keys), before, before)
    assert (same.level, same.p_value, same.low, same.high) == (4, 1.0, 0.0, 0.0)
    assert not same.is_better(0.5) and not same.is_behind
    back = compare(pairs_of([str(n) for n in range(6)]), after, likely([-9.0] * 6, [-3.0] * 6))
    assert back.lost == 6 and back.high == pytest.approx(0.0, abs=0.5)


@pytest.mark.parametrize(("won", "lost"), [(5, 0), (3, 7), (7, 3), (61, 39), (600, 540)])
def test_the_sign_test_is_exact(won: int, lost: int) -> None:
    assert sign_test(won, lost) == pytest.approx(binomtest(won, won + lost, alternative="greater").pvalue)


@pytest.mark.parametrize(
    ("metric", "before", "after", "low", "high", "margin", "worse"),
    [
        ("acc", 0.5, 0.45, -0.09, -0.01, None, True),
        ("acc", 0.5, 0.45, -0.11, 0.01, None, False),
        ("acc", 0.5, 0.45, -0.11, 0.01, 0.1, True),
        ("acc", 0.5, 0.49, -0.03, 0.01, 0.05, False),
        ("perplexity", 20.0, 20.5, -0.5, 1.5, 1.0, True),
        ("perplexity", 20.0, 19.0, -3.0, 0.5, 1.0, False),
        ("preference", 0.6, 0.4, -0.3, -0.1, 0.05, True),  # best at a half
        ("preference", 0.6, 0.4, -0.2, -0.1, 0.05, False),
        ("refused", 0.1, 0.9, 0.7, 0.9, 0.0, False),
        ("acc", 0.5, 0.5, None, None, None, False),
        ("acc", 0.5, 0.5, None, None, 0.1, True),
    ],
)
def test_a_loss_counts_where_it_is_certain_or_not_excluded(
    metric: str, before: float, after: float, low: Any, high: Any, margin: float | None, worse: bool
) -> None:
    assert Compared(Change("task", metric, before, after, low, high, True), margin).is_worse is worse
