"""Unit tests as a reward: code found in responses, shares of tests passed, records that hold no tests."""

import pytest

from megalm.config.rewards import UnitTestsConfig
from megalm.errors import UserError
from megalm.evaluate.final_answers import code_of
from megalm.rlhf.rewards import Sample, TotalReward
from megalm.rlhf.rewards.unit_tests import UnitTests
from megalm.sandbox.confine import can_refuse_system_calls

pytestmark = pytest.mark.skipif(not can_refuse_system_calls(), reason="needs seccomp")

RIGHT = "def double(x):\n    return 2 * x\n"
WRONG = "def double(x):\n    return x + 2\n"
TESTS = ["assert double(2) == 4", "assert double(3) == 6"]


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nbetter:\n```Python3\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("a ``` b", "a ``` b"),
    ],
)
def test_the_last_block_is_the_code(response: str, code: str):
    assert code_of(response) == code


def test_the_reward_is_the_share_of_tests_passed():
    samples = [
        Sample("", f"```python\n{RIGHT}```", {"tests": TESTS}),
        Sample("", WRONG, {"tests": TESTS}),
        Sample("", "no code at all", {"tests": TESTS}),
        Sample("", RIGHT, {"tests": "def check(f):\n    assert f(1) == 2", "entry_point": "double"}),
    ]
    share = TotalReward([UnitTestsConfig(weight=2)])(samples)
    assert share.parts == {"unit_tests": [1.0, 0.5, 0.0, 1.0]} and share.total == [2.0, 1.0, 0.0, 2.0]
    whole = UnitTests(UnitTestsConfig(all_or_nothing=True, workers=1))
    assert whole(samples) == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("tests", [None, [], 5, ["assert 1", 2], {"a": "b"}])
def test_records_without_tests_are_refused(tests: object):
    with pytest.raises(UserError, match="reward `unit_tests`: the record has .* under 'tests'"):
        UnitTests(UnitTestsConfig()).check({"tests": tests})
    with pytest.raises(UserError, match="'entry_point' is 5; name a function"):
        UnitTests(UnitTestsConfig()).check({"tests": "pass", "entry_point": 5})
