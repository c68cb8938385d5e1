"""Configuration files, overrides and the messages of mistakes."""

import pytest

from megalm.config import dump_config, load_config, parse_config
from megalm.errors import UserError


def message(data, *overrides):
    with pytest.raises(UserError) as caught:
        parse_config(data, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_override_sets_nested_values_lists_and_numbers_in_scientific_notation():
    config = parse_config(
        {"data": {"train": [{"path": "a"}, {"path": "b"}]}},
        ["optimizer.lr=3e-3", "data.train.1.weight=2", "model.tie_embeddings=true", "run.dir=x=y"],
    )
    assert config.optimizer.lr == 3e-3
    assert [source.weight for source in config.data.train] == [None, 2.0]
    assert config.model.tie_embeddings is True
    assert config.run.dir == "x=y"


def test_unknown_key_names_the_nearest_known_one():
    assert "did you mean 'num_layers'" in message({"model": {"num_layer": 3}})
    assert "did you mean 'optimizer'" in message({"optimzer": {}})
    assert "did you mean 'path'" in message({"data": {"train": [{"pth": "x", "path": "y"}]}})


def test_wrong_value_names_field_and_value():
    text = message({}, "model.num_layers=many")
    assert "model.num_layers" in text and "many" in text


def test_a_field_of_several_kinds_says_all_of_them_under_its_own_name():
    with pytest.raises(
        UserError, match=r"`classify.class_weights` = 'foo': input should be 'balanced' or a valid dict"
    ):
        parse_config({"classify": {"class_weights": "foo"}})
    with pytest.raises(
        UserError, match=r"`samples.prompts` = 5: input should be a valid string or a valid list"
    ):
        parse_config({"samples": {"prompts": 5}})


def test_mistake_of_an_override_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {num_layers: 2}\n")
    with pytest.raises(UserError, match=r"^override 'optimizer.lrr=1': unknown key"):
        load_config(path, ["optimizer.lrr=1"])
    path.write_text("optimizer: {lrr: 1}\n")
    with pytest.raises(UserError, match=r"run\.yaml: unknown key"):
        load_config(path, ["model.num_layers=3"])


def test_value_in_place_of_a_section_is_named():
    assert message({}, "optimizer=3").endswith("`optimizer` = 3: a section is expected, keys with values")


@pytest.mark.parametrize(
    "text", ["batch: {seq_length: 64}\nbatch: {micro_batch_size: 2}\n", "run: {seed: 1, seed: 2}\n"]
)
def test_key_that_stands_twice_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"the key `(batch|seed)` stands twice.* line [12]"):
        load_config(path)


def test_override_without_equals_sign_or_into_a_value_is_refused():
    assert "key=value" in message({}, "optimizer.lr")
    assert "is a value, not a section" in message({"run": {"dir": "x"}}, "run.dir.deeper=1")
    assert "no index" in message({"data": {"train": []}}, "data.train.0.path=x")


def test_missing_file_wrong_yaml_and_wrong_shape_are_one_line(tmp_path):
    for content, expected in (("a: [", "YAML"), ("- 1", "expected sections"), ("run: 3", "run")):
        file = tmp_path / "c.yaml"
        file.write_text(content)
        with pytest.raises(UserError, match=expected) as caught:
            load_config(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")


def test_resolved_config_reads_back_equal(tmp_path):
    config = parse_config(
        {"model": {"preset": "llama-tiny"}}, ["optimizer.schedule=wsd", "data.train=[{path: a}]"]
    )
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_values_beside_a_preset_win():
    config = parse_config({"model": {"preset": "gpt2-124m", "num_layers": 2}})
    assert config.model.num_layers == 2
    assert config.model.hidden_size == 768


def test_unknown_preset_names_the_nearest():
    assert "did you mean 'llama-7b'" in message({"model": {"preset": "llama-7"}})


def test_parsing_leaves_the_given_dictionary_alone():
    data = {"optimizer": {"lr": 1e-3}}
    parse_config(data, ["optimizer.lr=2e-3"])
    assert data == {"optimizer": {"lr": 1e-3}}
