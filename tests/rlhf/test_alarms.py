"""Alarms ring after `patience` steps in a row beyond a bound, and again after as many more; a run that goes on counts on."""

import pytest

from megalm.config.rlhf import AlarmConfig
from megalm.rlhf.alarms import FIRST_STEPS, Alarms


def rung(alarms: Alarms, steps: list[tuple[float | None, float]]) -> list[int]:
    """Numbers of the steps, from 1, at which something rang."""
    return [number for number, step in enumerate(steps, 1) if alarms.see(*step)]


def test_the_kl_rings_each_time_that_it_stayed_above_its_bound() -> None:
    alarms = Alarms(AlarmConfig(max_kl=2.0, patience=3))
    kls = [2.0, 2.1, 2.1, 1.9, *[2.1] * 7, None, 2.1]
    assert rung(alarms, [(kl, 10.0) for kl in kls]) == [7, 10]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_length_rings_against_the_first_steps(resumed: bool) -> None:
    """5 steps of 10 tokens on average: 20 is not more than twice that, 20.1 is."""
    config = AlarmConfig(max_length_growth=2.0, patience=2)
    alarms = Alarms(config)
    lengths = [2.0, 18.0, 10.0, 10.0, 10.0, 20.0, 20.1]
    assert rung(alarms, [(None, length) for length in lengths]) == []
    if resumed:
        state, alarms = alarms.state(), Alarms(config)
        alarms.load(state)
    message = alarms.see(None, 20.1)
    assert (
        message is not None and "in 2 steps in a row" in message and f"first {FIRST_STEPS} steps" in message
    )


def test_nothing_rings_without_a_bound() -> None:
    assert rung(Alarms(AlarmConfig(patience=1)), [(1e9, 1.0 + 1000 * step) for step in range(9)]) == []
