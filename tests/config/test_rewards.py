"""The list of rewards in a configuration: each kind by its name, with its own keys, and mistakes told in one line."""

from typing import Any

import pytest
from pydantic import Field, ValidationError

from megalm.config.load import explain
from megalm.config.reference import inner_sections
from megalm.config.rewards import ExactAnswerConfig, LengthConfig, Rewards
from megalm.config.section import Section


class Around(Section):
    """A section that holds rewards."""

    rewards: Rewards = Field(default_factory=list, description="Rewards.")


def mistake(*rewards: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Around.model_validate({"rewards": list(rewards)})
    text = explain(caught.value, Around)
    assert "\n" not in text
    return text


def test_each_name_is_read_with_its_own_keys():
    around = Around.model_validate(
        {"rewards": [{"name": "exact_answer", "key": "gold"}, {"name": "length", "target": 9, "weight": 0.1}]}
    )
    assert around.rewards == [ExactAnswerConfig(key="gold"), LengthConfig(target=9, weight=0.1)]
    assert Around.model_validate(around.model_dump()) == around


def test_unknown_names_and_keys_name_the_nearest_known_one():
    assert "`rewards.0.name` = 'exact_anser' is unknown: did you mean 'exact_answer'?" in mistake(
        {"name": "exact_anser"}
    )
    found = mistake({"name": "stop"}, {"name": "length", "target": 4, "limt": 7})
    assert "unknown key `rewards.1.limt`: did you mean 'limit'?" in found and "pattern" not in found
    assert "`rewards.0.name` is missing (known: exact_answer, format" in mistake({"weight": 1})


def test_missing_and_wrong_values_are_named_as_a_user_writes_them():
    assert mistake({"name": "length"}) == "`rewards.0.target` is missing"
    assert mistake({"name": "length", "target": 0}).startswith("`rewards.0.target` = 0:")
    assert "limit 4 must be more than target 4" in mistake({"name": "length", "target": 4, "limit": 4})
    assert "no regular expression: missing )" in mistake({"name": "format", "pattern": "(a"})
    assert "belong together" in mistake({"name": "exact_answer", "extract": "pattern"})
    assert "belong together" in mistake({"name": "exact_answer", "pattern": "x"})
    assert "a section is expected" in mistake(5) or "`rewards.0` = 5" in mistake(5)


def test_two_of_a_kind_need_labels():
    twice = [{"name": "format", "pattern": "a"}, {"name": "format", "pattern": "b"}]
    assert "`format` stands twice: give each a `label`" in mistake(*twice)
    Around.model_validate({"rewards": [twice[0], twice[1] | {"label": "b"}]})


def test_the_reference_has_a_table_for_each_kind():
    text = "\n".join(inner_sections(Around))
    assert "## rewards (name: exact_answer)" in text and "## rewards (name: model)" in text
    assert "| `all_or_nothing` |" in text
