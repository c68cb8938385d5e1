"""The command line: quick help, one line and code 2 for a user's mistake, code 1 and a traceback for ours."""

import errno
import json
import os
import subprocess
import sys

import pydantic
import pytest

import megalm
from megalm import cli, launch
from megalm.cli_model import print_json
from megalm.config import load
from megalm.errors import UserError

HEAVY = ("torch", "numpy", "tokenizers", "transformers", "megatron", "matplotlib", "yaml", "datatrove")
MODEL = "model:\n  num_layers: 2\n  hidden_size: 32\n  num_attention_heads: 4\n  vocab_size: 256\n"


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
    """The single line that a mistaken command leaves on stderr."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("megalm: error: ") and err.count("\n") == 1
    return err


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | environment
    return subprocess.run(
        [sys.executable, *arguments], env=variables, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["generate"],
        ["embed"],
        ["classify"],
        ["dataset", "build-labelled"],
        ["dataset", "build-preferences"],
        ["score"],
        ["eval"],
        ["tokenizer", "train"],
        ["dataset", "build"],
        ["corpus", "build"],
        ["doctor"],
        ["plan"],
        ["bench"],
        ["report"],
    ],
)
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys; from megalm.cli import main; code = main(sys.argv[1:]); "
        f"print(code, *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = run("-c", code, *command, "--help")
    assert "Usage: megalm" in done.stdout
    assert done.stderr == "0\n"


def test_command_without_arguments_shows_help(capsys):
    assert cli.main([]) == 0
    assert "Usage: megalm" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"megalm {megalm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "train"),
        (["train"], "CONFIG"),
        (["train", "--bogus", "x.yaml"], "--bogus"),
        (["train", "x.yaml", "--nproc", "0"], "--nproc"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["tokenizer"], "megalm tokenizer --help"),
        (["generate", "runs/x"], "--prompt"),
        (["generate", "runs/x", "--prompt", "a", "--temperature", "0"], "--greedy"),
        (["generate", "runs/x", "--prompt", "a", "--top-p", "1.5"], "--top-p is 1.5"),
        (["generate", "runs/x", "--prompt", "a", "--dtype", "int8"], "bf16"),
        (["generate", "runs/x", "--prompt-file", "absent.txt"], "absent.txt"),
        (
            ["generate", "runs/x", "--prompt", "a", "--nproc", "2", "--tensor-model-parallel-size", "3"],
            "--nproc 3",
        ),
    ],
)
def test_mistakes_in_the_command_line_are_one_line(capsys, arguments, said):
    assert said in mistake(capsys, *arguments)


def test_mistakes_in_the_configuration_are_one_line(capsys, config):
    assert "hidden_sizes" in mistake(capsys, "train", config, "model.hidden_sizes=3")
    assert "num_layers" in mistake(capsys, "train", config, "model.num_layers=two")


def test_impossible_layout_is_refused_before_any_process_starts(capsys, config, monkeypatch):
    monkeypatch.setattr(launch, "run_local", lambda *_: pytest.fail("processes were started"))
    assert "3" in mistake(capsys, "train", config, "--nproc", "3", "parallel.tensor_model_parallel_size=2")


def test_nproc_hands_the_same_command_to_so_many_processes(config, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "run_local", lambda argv, nproc, *_: started.append((argv, nproc)) or 7)
    assert cli.main(["train", config, "--nproc", "2", "run.seed=5", "--resume", "--json"]) == 7
    assert cli.main(["train", config, "--nproc=4", "run.seed=5"]) == 7
    assert started == [
        (["train", config, "run.seed=5", "--resume", "--json"], 2),
        (["train", config, "run.seed=5"], 4),
    ]


def test_a_world_that_torchrun_made_is_not_nested(config):
    world = launch.rank_environment(rank=0, world_size=1, port=launch.free_port())
    done = run(
        "-m", "megalm", "train", config, "--nproc", "3", "parallel.tensor_model_parallel_size=2", **world
    )
    assert done.returncode == 2
    assert (
        "data.train" in done.stderr
    )  # found in this process; a launcher would have found 3 processes too odd


@pytest.mark.slow
def test_mistake_found_by_the_ranks_is_shown_once(config):
    done = run("-m", "megalm", "train", config, "--nproc", "2")
    assert done.returncode == 2
    assert done.stderr.count("megalm: error:") == 1 and "data.train" in done.stderr


def test_resume_insists_on_a_checkpoint(capsys, config, monkeypatch):
    monkeypatch.setattr(load, "check", lambda resolved: (_ for _ in ()).throw(UserError(resolved.run.resume)))
    assert "always" in mistake(capsys, "train", config, "--resume")
    assert "auto" in mistake(capsys, "train", config)


def test_failure_of_ours_is_a_traceback_and_code_1(capsys, monkeypatch):
    monkeypatch.setattr("megalm.config.load_config", lambda *_: 1 / 0)
    assert cli.main(["train", "x.yaml"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "Permission denied; check the path"),
        (errno.EEXIST, "a file is where a directory is needed; choose another path"),
        (errno.ENOSPC, "No space left on device; free some space there"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, number, said):
    def refuse(*_):
        raise OSError(number, os.strerror(number), "out/file")

    monkeypatch.setattr("megalm.config.load_config", refuse)
    assert f"out/file: {said}" in mistake(capsys, "train", "config.yaml")


def test_a_value_of_the_wrong_type_is_told(capsys):
    line = mistake(capsys, "tokenizer", "train", "a.txt", "-o", "t", "--vocab-size", "32k")
    assert "'--vocab-size'" in line and "found '32k'" in line


def test_interrupt_is_code_130_without_a_traceback(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("megalm.config.load_config", interrupt)
    assert cli.main(["train", "x.yaml"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_pydantic_does_not_leak(capsys, monkeypatch):
    class Size(pydantic.BaseModel):
        width: int

    monkeypatch.setattr("megalm.config.load_config", lambda *_: Size(width="wide"))
    assert "`width` = 'wide'" in mistake(capsys, "train", "x.yaml")


def test_json_is_printed_by_rank_0_alone(capsys, monkeypatch):
    print_json({"loss": 1.5}, wanted=True)
    assert json.loads(capsys.readouterr().out) == {"loss": 1.5}
    monkeypatch.setenv("RANK", "1")
    print_json({"loss": 1.5}, wanted=True)
    assert capsys.readouterr().out == ""
