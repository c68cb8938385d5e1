"""`megalm plan` and `megalm bench` on the command line: mistakes are one line and code 2."""

import pytest

from megalm import cli, launch
from megalm.cli_plan import memory_of, parse_size
from megalm.errors import UserError

MODEL = "model:\n  num_layers: 2\n  hidden_size: 32\n  num_attention_heads: 4\n  vocab_size: 256\n"
TP4 = "parallel.tensor_model_parallel_size=4"


@pytest.fixture(autouse=True)
def no_world(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(MODEL)
    return str(path)


def mistake(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("megalm: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", ["plan", "bench"])
def test_unknown_file_and_key_are_one_line(capsys, config, command):
    assert "absent.yaml" in mistake(capsys, command, "absent.yaml")
    assert "hidden_sizes" in mistake(capsys, command, config, "model.hidden_sizes=3")


def test_layout_that_does_not_match_the_machines_is_refused_with_the_arithmetic(capsys, config):
    said = mistake(capsys, "plan", config, "--nodes", "3", "--gpus-per-node", "2", TP4)
    assert "multiple of TP 4" in said and "there are 6" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device-memory", "much"], "80GiB"),
        (["--device-memory", "0"], "without memory"),
        (["--device-memory", "1e400"], "80GiB"),
        (["--device", "H1000"], "'H1000' is unknown"),
        (["--nodes", "0"], "--nodes"),
    ],
)
def test_mistaken_options_of_plan_are_one_line(capsys, config, options, said):
    assert said in mistake(capsys, "plan", config, "--gpus-per-node", "1", *options)


def test_bench_refuses_an_impossible_layout_before_any_process_starts(capsys, config, monkeypatch):
    monkeypatch.setattr(launch, "run_local", lambda *_: pytest.fail("processes were started"))
    assert "there are 3" in mistake(capsys, "bench", config, "--nproc", "3", TP4)


def test_bench_hands_the_same_command_to_so_many_processes(config, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "run_local", lambda argv, nproc, *_: started.append((argv, nproc)) or 7)
    assert cli.main(["bench", config, "--nproc", "2", "--steps", "5", "--json"]) == 7
    assert started == [(["bench", config, "--steps", "5", "--json"], 2)]


def test_memory_of_a_device_is_its_data_sheets_unless_it_is_given():
    assert memory_of("L4", None) == 24 * 2**30
    assert memory_of("L4", "1GiB") == 2**30
    assert memory_of("cpu", None) is None


def test_sizes_are_read_with_binary_and_decimal_units():
    assert parse_size("80GiB") == parse_size("80 gib") == 80 * 2**30
    assert parse_size("80GB") == parse_size("8e10") == 80 * 10**9
    assert parse_size("1.5MiB") == 3 * 2**19
    for text in ("", "GiB", "80XB", "1.2.3", "-5"):
        with pytest.raises(UserError):
            parse_size(text)
