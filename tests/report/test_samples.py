"""Which answers the tables show."""

import json
import math

from megalm.report.run import read_runs
from megalm.report.samples import MOST_EXTREME, MOST_OF_A_STEP, tables_of
from tests.report.runs import lines_of, start_line, write_run


def answer(step, reward, text="answer", **more):
    line = {
        "step": step,
        "prompt": f"prompt {step}",
        "answer": text,
        "reward": reward,
        "rewards": {"length": 0.5},
    }
    return line | {"tokens": 3, "finish_reason": "stop"} | more


def tables(tmp_path, text, name="rollouts"):
    (found,) = tables_of(read_runs([write_run(tmp_path / "run", start_line(), **{name: text})]))
    return found


def test_first_middle_and_last_step_and_the_best_and_worst_of_all(tmp_path):
    lines = [answer(step, 100 * step + place) for step in range(1, 10) for place in range(2)]
    found = tables(tmp_path, lines_of(*lines))
    shown = {table.title: [sample.reward for sample in table.samples] for table in found.tables}
    assert shown == {
        "Step 1": [100, 101],
        "Step 5": [500, 501],
        "Step 9": [900, 901],
        "Best answers": [901, 900, 801, 800, 701],
        "Worst answers": [100, 101, 200, 201, 300],
    }
    assert (found.answers, found.steps, found.titles) == (18, 9, ["length"]) and MOST_EXTREME == 5


def test_equal_rewards_keep_the_order_of_the_file(tmp_path):
    found = tables(tmp_path, lines_of(*(answer(1, 1.0, str(place)) for place in range(9))))
    best, worst = found.tables[1:]
    assert [sample.answer for sample in best.samples] == ["0", "1", "2", "3", "4"]
    assert [sample.answer for sample in worst.samples] == ["0", "1", "2", "3", "4"]


def test_of_a_step_with_many_answers_the_first_are_shown_and_the_rest_is_counted(tmp_path):
    found = tables(tmp_path, lines_of(*(answer(1, None) for _ in range(20))))
    (table,) = found.tables  # no reward, no best
    assert len(table.samples) == MOST_OF_A_STEP and table.more == 20 - MOST_OF_A_STEP
    assert math.isnan(table.samples[0].reward)


def test_lines_that_are_no_answers_are_left_out_and_odd_ones_are_shown_as_they_are(tmp_path):
    odd = {
        "step": 4,
        "prompt": ["x"],
        "rewards": [1],
        "reward": "much",
        "tokens": "3",
        "references": "no list",
    }
    found = tables(tmp_path, "no json\n{}\n" + json.dumps(odd) + "\n" + json.dumps(answer(5, 1.0)))
    (table,) = found.tables  # the last line has no end yet
    (sample,) = table.samples
    assert (sample.step, sample.prompt, sample.answer, sample.tokens) == (4, "['x']", "", None)
    assert sample.references == [] and sample.parts == {}


def test_answers_at_validations_have_references_in_the_place_of_rewards(tmp_path):
    line = {
        "step": 10,
        "prompt": "p",
        "answer": "a",
        "references": ["right"],
        "tokens": 1,
        "finish_reason": "stop",
    }
    found = tables(tmp_path, lines_of(line | {"step": 0}, line), "samples")
    assert not found.is_rewarded and [table.title for table in found.tables] == ["Step 0", "Step 10"]
    assert found.tables[1].samples[0].references == ["right"]


def test_a_run_without_answers_has_no_tables(tmp_path):
    assert tables_of(read_runs([write_run(tmp_path / "run", start_line(), rollouts="")])) == []
