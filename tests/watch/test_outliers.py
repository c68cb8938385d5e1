"""Ranks that take longer are told apart from chance."""

import numpy as np
import pytest

from megalm.watch.outliers import slowest


def test_score_is_the_modified_z_score_against_the_other_ranks() -> None:
    seconds = [1.0, 1.2, 1.4, 1.1, 3.0]
    others = np.array(seconds[:4])
    deviation = np.median(np.abs(others - np.median(others)))
    found = slowest(seconds, [0] * 5)
    assert found.rank == 4
    assert found.ratio == pytest.approx(3.0 / np.median(others))
    assert found.z == pytest.approx(0.6745 * (3.0 - np.median(others)) / deviation)


def test_ranks_of_another_stage_are_not_compared_with() -> None:
    """The last stage, with the output layer, takes twice as long as the first."""
    found = slowest([1.0, 2.0, 1.0, 2.0], [0, 1, 0, 1])
    assert found.z == 0 and found.ratio == 1
    assert slowest([1.0, 2.0], [0, 1]).z == 0


@pytest.mark.parametrize(("ratio", "is_far"), [(1.1, False), (1.5, True)])
def test_very_even_ranks_are_not_slow_for_a_hundredth(ratio: float, is_far: bool) -> None:
    """Without a floor any difference to ranks that are all alike would be infinitely far."""
    found = slowest([1.0, 1.0, 1.0, ratio], [0] * 4)
    assert found.rank == 3 and (found.z > 3.5) is is_far


def test_two_ranks_can_be_told_apart() -> None:
    found = slowest([1.0, 2.0], [0, 0])
    assert (found.rank, found.ratio) == (1, 2.0) and found.z > 3.5
