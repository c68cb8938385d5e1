"""Rules: answers found and compared, forms matched in bounded time, lengths and ends judged by their formulas."""

import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.config.rewards import ExactAnswerConfig, FormatConfig, LengthConfig, StopConfig
from megalm.errors import UserError
from megalm.evaluate.final_answers import after_hashes, as_number, boxed, last_number, plain, same_answer
from megalm.rlhf.rewards import Sample
from megalm.rlhf.rewards.exact_answer import ExactAnswer
from megalm.rlhf.rewards.rules import Format, Length, Stop


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.", "7"),
        ("it costs $1,234.50 in all", "$1,234.50"),
        ("between 3-5", "5"),
        ("x = -5", "-5"),
        ("x = −5", "-5"),
        ("the range (2)-3", "3"),
        ("a half is 1/2", "1/2"),
        (".5 of it", ".5"),
        ("1e-3 metres", "1e-3"),
        ("1,2 and 3,45", "45"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None):
    assert last_number(text) == number


def test_answers_behind_hashes_and_in_boxes():
    assert after_hashes("5 - 2 = 3\n#### 3\nwell") == "3"
    assert after_hashes("#### 1\n#### 2 ") == "2"
    assert after_hashes("# 3") is None
    assert boxed(r"so \boxed{1} or \boxed{\frac{1}{2}} it is") == r"\frac{1}{2}"
    assert boxed(r"$\boxed 7$.") == "7"
    assert boxed(r"\boxed{never closed") is None
    assert boxed("none") is None and boxed(r"\boxed") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000.0"),
        ("$18", "18"),
        ("50%", "50"),
        (r"50\%", "50"),
        (r"\frac{1}{2}", "0.5"),
        (r"-\dfrac{3}{4}", "-3/4"),
        ("1e3", "1000"),
        ("18.", "18"),
        ("+7", "7"),
        (r"\text{Monday}", "monday."),
        ("The  Answer", "the answer"),
        ("ﬁve", "five"),
        (r"\left(1,2\right)", "(1,2)"),
    ],
)
def test_the_same_answer_is_written_in_many_ways(one: str, other: str):
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "10"),
        ("1000", "1,0000"),
        ("-5", "5"),
        ("1/3", "0.333"),
        ("(1,2)", "12"),
        ("5 apples", "5"),
        ("", "0"),
    ],
)
def test_other_answers_are_not_the_same(one: str, other: str):
    assert not same_answer(one, other) and not same_answer(other, one)


@given(st.fractions(max_denominator=10**6), st.integers(0, 4))
def test_numbers_are_read_as_they_are_written(number: Fraction, digits: int):
    assert as_number(f"{number.numerator}/{number.denominator}") == number
    assert as_number(f"{number.numerator:,}") == number.numerator
    written = f"{float(number):.{digits}f}"
    assert as_number(written) == Fraction(written)


@given(st.text(max_size=200))
def test_any_text_is_the_same_answer_as_itself(text: str):
    assert same_answer(text, text) and plain(text) == plain(f" {text}. ")
    for extract in (last_number, after_hashes, boxed):
        extract(text)


@pytest.mark.parametrize(
    "hostile", ["9" * 100_000, "1e999999999", "1/0", "1e5/0", "1," * 20_000, "{" * 100_000]
)
def test_hostile_numbers_end_quickly_and_are_texts(hostile: str):
    assert as_number(hostile) is None
    assert same_answer(hostile, hostile) and not same_answer(hostile, "1")
    last_number(hostile)


def judged(reward: Any, response: str, **fields: Any) -> float:
    return reward([Sample("?", response, **fields)])[0]


def test_exact_answer_compares_what_it_extracts_with_any_reference():
    reward = ExactAnswer(ExactAnswerConfig())
    assert judged(reward, "2 + 2 = 4", record={"answer": 4}) == 1.0
    assert judged(reward, "2 + 2 = 5", record={"answer": 4}) == 0.0
    assert judged(reward, "four", record={"answer": 4}) == 0.0
    assert judged(reward, "it is 7", record={"answer": ["six", 7.0]}) == 1.0
    whole = ExactAnswer(ExactAnswerConfig(extract="whole", key="gold"))
    assert judged(whole, " Paris.\n", record={"gold": "paris"}) == 1.0
    pattern = ExactAnswer(ExactAnswerConfig(extract="pattern", pattern=r"<a>(.*?)</a>"))
    assert judged(pattern, "<a>1</a> no <a>2</a>", record={"answer": "2"}) == 1.0
    assert judged(pattern, "2", record={"answer": "2"}) == 0.0


def test_the_answer_of_a_worked_reference_is_extracted_as_well():
    record = {"answer": "He has 3 + 4 = 7.\n#### 7"}
    reward = ExactAnswer(ExactAnswerConfig(extract="hashes", extract_reference=True))
    assert judged(reward, "#### 7", record=record) == 1.0
    assert judged(reward, "#### 7", record={"answer": "7"}) == 1.0
    assert judged(ExactAnswer(ExactAnswerConfig(extract="hashes")), "#### 7", record=record) == 0.0


@pytest.mark.parametrize(
    "record", [{}, {"answer": None}, {"answer": []}, {"answer": " "}, {"answer": {"a": 1}}]
)
def test_a_record_without_an_answer_is_refused(record: dict[str, Any]):
    with pytest.raises(UserError, match=r"reward `exact_answer`: the record has .* under 'answer'"):
        ExactAnswer(ExactAnswerConfig()).check(record)


def test_format_matches_all_or_a_part():
    tags = r"(?s)<think>.*?</think>\s*<answer>.*?</answer>"
    reward = Format(FormatConfig(pattern=tags))
    assert judged(reward, "<think>a\nb</think> <answer>1</answer>") == 1.0
    assert judged(reward, "x <think>a</think><answer>1</answer>") == 0.0
    part = Format(FormatConfig(pattern=tags, full_match=False))
    assert judged(part, "x <think>a</think><answer>1</answer>") == 1.0


def test_a_pattern_that_never_ends_counts_as_no_match_and_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr("megalm.rlhf.rewards.patterns.SECONDS", 0.05)
    reward = Format(FormatConfig(pattern=r"(\w|\w\w)*[:;]"))
    assert reward([Sample("", "a" * 5000 + "!")] * 2) == [0.0, 0.0]
    assert reward.pattern.timeouts == 2
    assert [record.message.startswith("the pattern") for record in caplog.records] == [True]
    assert judged(Format(FormatConfig(pattern="a+")), "aa") == 1.0


def test_length_falls_beyond_its_target():
    soft, endless = Length(LengthConfig(target=10, limit=14)), Length(LengthConfig(target=10))
    samples = [Sample("", "", response_tokens=range(n)) for n in (0, 10, 11, 13, 14, 30)]
    # DAPO, equation 13: L_max = 14, L_cache = 4
    assert soft(samples) == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    assert endless(samples) == pytest.approx([0.0, 0.0, -0.1, -0.3, -0.4, -2.0])


def test_stop_tells_ended_from_cut():
    reward = Stop(StopConfig(bonus=0.5, penalty=-2))
    assert judged(reward, "", finish_reason="stop") == 0.5
    assert judged(reward, "", finish_reason="length") == -2.0


def test_rewards_load_no_torch():
    code = "import sys, megalm.rlhf.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
