"""What is concluded from the ranks' statements."""

from collections.abc import Sequence

from megalm.watch.records import Collective, Pulse, Statement
from megalm.watch.verdict import Silent, judge


def pulse(rank: int, what: str = "training") -> Pulse:
    return Pulse(rank, "node", 100 + rank, "1", 9, 700.0, 600.0, 5, what)


def call(
    number: int,
    name: str = "all_reduce",
    group: str = "dp",
    ranks: Sequence[int] = (0, 1),
    pending: bool = True,
) -> Collective:
    return Collective(name, group, list(ranks), number, [[4]], ["Float"], pending)


def statement(rank: int, *calls: Collective, waits: bool = False) -> Statement:
    return Statement(pulse(rank), f"stack of {rank}", waits, "loop.py:1 f", list(calls))


def test_a_silent_rank_is_to_blame_and_those_who_wait_for_it_are_told() -> None:
    silent = {1: Silent("is stopped (state T)", pulse(1), "stack of 1")}
    verdict = judge({0: statement(0, call(7), waits=True), 2: statement(2, call(7), waits=True)}, silent, 700)
    assert (verdict.ranks, verdict.rank) == ([1], 1)
    assert verdict.headline == (
        "no progress for 700 s after step 5: rank 1 (node, process 101) is stopped (state T); "
        "ranks 0, 2 wait(s) in all_reduce #7 of dp (ranks 0-1), Float [4], called at loop.py:1 f"
    )
    assert "stack of 1" in verdict.text and "stack of 0" not in verdict.text


def test_a_rank_that_waits_for_nobody_is_to_blame_while_others_wait() -> None:
    verdict = judge({0: statement(0, call(7), waits=True), 1: statement(1, call(6, pending=False))}, {}, 700)
    assert verdict.ranks == [1]
    assert (
        "rank 1 (node, process 101) is at `training`, loop.py:1 f, and waits for nobody" in verdict.headline
    )
    assert "its last collective: all_reduce #6 of dp (ranks 0-1), Float [4], finished" in verdict.text


def test_the_rank_behind_in_a_groups_calls_is_to_blame_where_all_wait() -> None:
    ahead = statement(0, call(7), waits=True)
    behind = statement(1, call(6, pending=False), call(3, group="tp", ranks=(1, 2)), waits=True)
    other = statement(2, call(3, group="tp", ranks=(1, 2)), waits=True)
    verdict = judge({0: ahead, 1: behind, 2: other}, {}, 700)
    assert verdict.ranks == [1]
    assert "is at #6 of dp, others at #7: all_reduce #7 of dp" in verdict.headline


def test_ranks_that_make_different_calls_in_the_same_place_are_told() -> None:
    verdict = judge(
        {0: statement(0, call(7, "broadcast"), waits=True), 1: statement(1, call(7), waits=True)}, {}, 700
    )
    assert len(verdict.ranks) == 1
    assert "makes broadcast #7" in verdict.headline and "others make all_reduce #7" in verdict.headline


def test_nobody_is_to_blame_where_all_wait_in_the_same_call() -> None:
    verdict = judge({0: statement(0, call(7), waits=True), 1: statement(1, call(7), waits=True)}, {}, 700)
    assert verdict.ranks == [] and "look at the network and the devices" in verdict.headline
    assert "stack of 0" in verdict.text


def test_one_process_is_told_with_its_stack() -> None:
    verdict = judge({0: statement(0)}, {}, 700)
    assert verdict.ranks == [0] and "stack of 0" in verdict.text
