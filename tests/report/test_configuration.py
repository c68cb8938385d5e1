"""Configurations side by side."""

from megalm.report.configuration import MOST_KEYS, compare, flatten
from megalm.report.run import read_runs
from tests.report.runs import start_line, write_run


def configurations(tmp_path, *configs):
    paths = [
        write_run(tmp_path / str(number), start_line(), config=config)
        for number, config in enumerate(configs)
    ]
    return compare(read_runs(paths))


def test_only_what_differs_is_named_first(tmp_path):
    found = configurations(tmp_path, {"optimizer": {"lr": 1e-3}}, {"optimizer": {"lr": 2e-3}})
    assert [tuple(row) for row in found.differing] == [("optimizer.lr", ["0.001", "0.002"])]
    chosen = {row.key: row.values for row in found.chosen}
    assert chosen["model.vocab_size"] == ["100"] and "run.seed" not in chosen and "optimizer.lr" not in chosen
    assert {"run.seed", "run.dir", "optimizer.lr"} <= {row.key for row in found.all}


def test_of_one_run_all_that_is_not_as_by_default_is_named(tmp_path):
    found = configurations(tmp_path, {"optimizer": {"lr": 1e-3, "weight_decay": 0.25}})
    assert found.differing == []
    assert {"optimizer.weight_decay": ["0.25"], "model.num_layers": ["2"]}.items() <= {
        row.key: row.values for row in found.chosen
    }.items()


def test_entries_of_lists_have_keys_of_their_own():
    rewards = [{"name": "length", "weight": 1.0}]
    flat = flatten({"rlhf": {"rewards": rewards, "stop": ["a", "b"], "eval_prompts": []}, "x": None})
    assert flat == {
        "rlhf.rewards.0.name": "length",
        "rlhf.rewards.0.weight": "1.0",
        "rlhf.stop": "[a, b]",
        "rlhf.eval_prompts": "[]",
        "x": "null",
    }


def test_a_configuration_that_is_a_bomb_ends():
    bomb = {"a": 1}
    for _ in range(60):
        bomb = {"x": bomb, "y": bomb}
    assert len(flatten(bomb)) <= MOST_KEYS
    own: dict = {"y": 2}
    own["x"] = own
    assert flatten(own)["x.x.y"] == "2"
