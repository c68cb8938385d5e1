"""Whether a candidate prefers the better answers of held-out pairs more than the model in service does."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.evaluate.bootstrap import interval, ratio_score
from megalm.release.grouping import Grouped, Unit
from megalm.release.pairs import Likelihoods

Float64 = NDArray[np.float64]
SEED = 1234
"""Of the selections of groups behind the interval."""


@dataclass(frozen=True)
class Preference:
    """What held-out pairs say of a candidate beside the model in service.

    unit: what counts once: owners, conversations or prompts; groups: how many of them there are. won, lost, level: those on most of whose
    prompts the candidate has moved towards the chosen answer, away from it, or neither. p_value: how often so many would be won if it
    had moved by chance. ahead_before, ahead_after: share of pairs whose chosen answer the model finds likelier a token; low, high: 95%
    interval of the difference over other such groups, None with a single one.
    """

    pairs: int
    prompts: int
    unit: Unit
    groups: int
    won: int
    lost: int
    level: int
    p_value: float
    ahead_before: float
    ahead_after: float
    low: float | None
    high: float | None
    truncated: int

    @property
    def is_behind(self) -> bool:
        """Whether the candidate finds the chosen answers likelier in fewer pairs, and that is certain."""
        return self.high is not None and self.high < 0

    def is_better(self, certainty: float) -> bool:
        """Whether chance would have won so many groups in less than 1 - certainty of all cases."""
        return self.p_value < 1 - certainty

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def compare(pairs: Grouped, before: Likelihoods, after: Likelihoods) -> Preference:
    """Set two models' likelihoods of the same pairs side by side.

    The candidate moves towards the chosen answer where DPO's implicit reward, with the model in service as the reference, is larger for
    it: log p_after / p_before (Rafailov et al. 2023, arXiv:2305.18290, equation 5). Pairs of one prompt are not independent, nor are prompts
    of one group: the pairs of a prompt have one vote, the prompts of a group one, and a sign test counts the groups without those that
    are level. The interval is of selections of groups.
    """
    ratio_P2 = after.logprobs_P2 - before.logprobs_P2
    signs_P = np.sign(ratio_P2[:, 0] - ratio_P2[:, 1])
    prompt_P, group_Q = np.array(pairs.prompts), np.array(pairs.groups)
    sign_Q = np.sign(np.bincount(prompt_P, signs_P))
    sign_G = np.sign(np.bincount(group_Q, sign_Q))
    won, lost = int((sign_G > 0).sum()), int((sign_G < 0).sum())
    group_P = group_Q[prompt_P]
    size_G = np.bincount(group_P)
    scores = []
    for one in (before, after):
        ahead_P = (1 + np.sign(one.margins_P)) / 2
        score = ratio_score(list(np.bincount(group_P, ahead_P)), list(size_G), SEED)
        scores.append(score)
    old, new = scores
    low = high = None
    if old.draws is not None and new.draws is not None:
        low, high = interval(new.draws - old.draws)
    return Preference(
        pairs=len(prompt_P),
        prompts=len(group_Q),
        unit=pairs.unit,
        groups=len(sign_G),
        won=won,
        lost=lost,
        level=len(sign_G) - won - lost,
        p_value=sign_test(won, lost),
        ahead_before=old.value,
        ahead_after=new.value,
        low=low,
        high=high,
        truncated=max(before.truncated, after.truncated),
    )


def sign_test(won: int, lost: int) -> float:
    """How likely at least so many of won + lost even chances are won, exactly."""
    count = won + lost
    term = math.comb(count, won)
    total = 0
    for number in range(won, count + 1):
        total += term
        term = term * (count - number) // (number + 1)
    return total / 2**count
