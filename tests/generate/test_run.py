"""`megalm generate` continues prompts from a run directory, the same under every layout and through the command line."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megalm.cli import main
from megalm.config import Config
from megalm.errors import UserError
from megalm.generate.request import GenerateRequest, GenerationOptions
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.tiny import tiny_config, tiny_engine, tiny_model
from tests.worlds import in_world

PROMPTS = ["the end", "", "of the text and of the hand"]
SAMPLED = {"max_new_tokens": 12, "seed": 3, "temperature": 0.9, "top_p": 0.95}
TRAINED = "run.seed=77"


def config_of(vocabulary: int, *overrides: str) -> Config:
    return tiny_config("gpt2-tiny", f"model.vocab_size={vocabulary}", "model.init_method_std=0.2", *overrides)


TP2_SP = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")


def save_random_model(directory: Path, vocabulary: int, parallel: tuple[str, ...] = TP2_SP) -> None:
    """A checkpoint of step 7 as training under TP2 (or else `parallel`) leaves it, without the tokenizer.

    Its configuration names another seed than its weights come from, as if they had been trained.
    """
    from megalm.checkpoint import CheckpointWriter

    engine = tiny_engine(config_of(vocabulary, *parallel, TRAINED))
    config = config_of(vocabulary, *parallel, "checkpoint.async_save=false")
    CheckpointWriter(directory, config, engine).save(7, {"step": 7, "counters": engine.counters})


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("run")
    (directory / "text.txt").write_text("the end of the text, and of the hand\n" * 10, encoding="utf-8")
    tokenizer = train_bpe([directory / "text.txt"], 280, directory / "tokenizer")
    run_distributed(save_random_model, 2, directory, tokenizer.vocab_size)
    return directory


def generate(directory: Path, changes: dict[str, Any]) -> tuple[list[dict[str, Any]], str, str]:
    """Results, standard output and standard error of this rank."""
    from megalm.generate import run

    show = changes.pop("show", True)
    request = GenerateRequest(
        checkpoint=str(directory), **({"prompts": PROMPTS, "dtype": "fp64"} | SAMPLED | changes)
    )
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        results = run.main(request, show)
    return results, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def alone(run_directory: Path) -> tuple[list[dict[str, Any]], str, str]:
    return run_distributed(generate, 1, run_directory, {})[0]


@pytest.mark.parametrize(
    "parallel",
    [
        ("parallel.context_parallel_size=2",),
        (
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
            "parallel.pipeline_layers=[0, 1, 1, 0]",
        ),
    ],
    ids=["CP2", "PP2xVP2"],
)
def test_generation_leaves_the_layout_of_the_training_behind(
    run_directory: Path, alone: Any, tmp_path: Path, parallel: tuple[str, ...]
) -> None:
    """Also what it has no use for: prompts are not shared between ranks, nor stages interleaved."""
    directory = tmp_path / "run"
    shutil.copytree(run_directory / "tokenizer", directory / "tokenizer")
    vocabulary = load_tokenizer(directory / "tokenizer").vocab_size
    run_distributed(save_random_model, 2, directory, vocabulary, parallel)
    assert run_distributed(generate, 1, directory, {})[0][0] == alone[0]


def test_results_hold_text_tokens_and_reason_of_each_prompt(run_directory: Path, alone: Any) -> None:
    results, out, err = alone
    tokenizer = load_tokenizer(run_directory / "tokenizer")
    assert [result["prompt"] for result in results] == PROMPTS
    for result in results:
        ended = result["finish_reason"] == "stop"
        kept = result["tokens"][:-1] if ended else result["tokens"]
        assert ended or len(kept) == 12
        assert result["text"] == tokenizer.decode(kept)
        assert result["prompt"] + result["text"] in out
    assert "tokens/s" in err


@in_world(1)
def test_texts_come_from_the_checkpoint_and_an_empty_prompt_begins_a_document(run_directory: Path) -> None:
    from megalm.generate.decode import Generator
    from megalm.parallel.layout import create_layout

    tokenizer = load_tokenizer(run_directory / "tokenizer")
    config = config_of(tokenizer.vocab_size, TRAINED)
    generator = Generator([tiny_model(config)], create_layout(config.parallel), 32, tokenizer)
    prompts = [tokenizer.encode(PROMPTS[0]), [tokenizer.eod_id], tokenizer.encode(PROMPTS[2])]
    expected = generator.generate(prompts, GenerationOptions(**SAMPLED))
    assert [r["tokens"] for r in generate(run_directory, {})[0]] == [c.tokens for c in expected]


@in_world(1)
def test_adapters_are_used_with_the_model_that_they_adapt(run_directory: Path, tmp_path: Path) -> None:
    """From a quantised base too: the same text as from the two merged."""
    from megalm.checkpoint import CheckpointWriter, find_checkpoint, load_weights
    from megalm.convert.merge import merge_checkpoints

    vocabulary = load_tokenizer(run_directory / "tokenizer").vocab_size
    base = find_checkpoint(run_directory)
    config = config_of(vocabulary, "lora.rank=4", "lora.quantize_base=nf4", f"run.load={base}")
    engine = tiny_engine(config)
    load_weights(engine, base)
    for name, parameter in engine.model.named_parameters():
        if name.endswith(".lora.b"):
            parameter.data.fill_(0.1)
    writer = CheckpointWriter(tmp_path / "run", config, engine)
    writer.save(1, {"step": 1, "counters": engine.counters})
    writer.finish()
    shutil.copytree(run_directory / "tokenizer", tmp_path / "run" / "tokenizer")
    found, *_ = generate(tmp_path / "run", {})
    merge_checkpoints([tmp_path / "run"], tmp_path / "merged")
    assert found == generate(tmp_path / "merged", {})[0]
    assert found != generate(run_directory, {})[0]


@pytest.mark.parametrize(
    "changes",
    [{"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}, {}],
    ids=["TP2", "PP2", "DP2"],
)
def test_two_processes_give_what_one_gives(run_directory: Path, alone: Any, changes: dict[str, int]) -> None:
    ranks = run_distributed(generate, 2, run_directory, changes)
    assert [rank[0] for rank in ranks] == [alone[0]] * 2
    assert [rank[1] for rank in ranks] == [alone[1], ""], "rank 0 alone speaks"


@in_world(1)
def test_a_single_prompt_is_streamed_and_gives_the_same_text(run_directory: Path) -> None:
    results, streamed, _ = generate(run_directory, {"prompts": ["the end"]})
    again, at_once, _ = generate(run_directory, {"prompts": ["the end"], "stream": False})
    assert results == again
    assert streamed == at_once == "the end" + results[0]["text"] + "\n"
    assert generate(run_directory, {"prompts": ["the end"], "show": False})[:2] == (results, "")


@in_world(1)
def test_a_checkpoint_directory_and_bf16_work_too(run_directory: Path) -> None:
    checkpoint = run_directory / "checkpoints" / "step_00000007"
    assert generate(checkpoint, {})[0] == generate(run_directory, {"step": 7})[0]
    assert all(result["tokens"] for result in generate(run_directory, {"dtype": "bf16"})[0])


@in_world(1)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["x" * 40]}, "prompt 0 has 40 tokens.*context of 32"),
        ({"tensor_model_parallel_size": 2}, "--nproc 2"),
        ({"step": 8}, "no checkpoint of step 8"),
    ],
)
def test_mistakes_are_explained(run_directory: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(run_directory, changes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cache-gib", "inf"], "--cache-gib is inf: it must be above 0 and finite"),
        (["--logprobs", "2"], "only --json shows log-probabilities"),
    ],
)
def test_options_that_cannot_have_an_effect_are_refused(capsys: Any, arguments: list[str], said: str) -> None:
    assert main(["generate", "run", "--prompt", "a", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "layout", "said"),
    [
        (
            ["generate", "--prompt", "a"],
            ["--tensor-model-parallel-size", "3"],
            "num_attention_heads 4 is not",
        ),
        (["chat"], ["--pipeline-model-parallel-size", "3"], "num_layers 2"),
        (["embed", "--text", "a"], ["--tensor-model-parallel-size", "3"], "num_attention_heads 4 is not"),
        (["classify", "--text", "a"], ["--pipeline-model-parallel-size", "3"], "num_layers 2"),
        (
            ["score", "--prompt", "a", "--text", "b"],
            ["--tensor-model-parallel-size", "3"],
            "num_attention_heads",
        ),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused_before_processes_start(
    run_directory: Path, capsys: Any, monkeypatch: Any, command: list[str], layout: list[str], said: str
) -> None:
    from megalm import launch

    monkeypatch.setattr(launch, "run_local", lambda *_: pytest.fail("processes were started"))
    assert main([command[0], str(run_directory), *command[1:], "--nproc", "3", *layout]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_looking_for_a_checkpoint_before_processes_start_loads_no_torch(run_directory: Path) -> None:
    code = (
        "import sys; from megalm.generate.candidates import check_layout; from megalm.generate.request import ModelRequest; "
        "check_layout(ModelRequest(checkpoint=sys.argv[1], tensor_model_parallel_size=2), 2); "
        "print([name for name in ('torch', 'megatron', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.stdout == "[]\n", done.stderr


@in_world(1)
def test_the_newest_intact_checkpoint_of_a_run_is_taken_and_nothing_is_moved(
    run_directory: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(run_directory, tmp_path / "run")
    good = run / "checkpoints" / "step_00000007"
    for step, damaged in ((8, "tensors"), (9, "config.yaml")):
        newer = shutil.copytree(good, run / "checkpoints" / f"step_{step:08d}")
        file = next((newer / "tensors").glob("*.distcp")) if damaged == "tensors" else newer / damaged
        file.write_bytes(b"x" + file.read_bytes()[1:])
    before = sorted(run.rglob("*"))
    assert generate(run, {})[0] == generate(run_directory, {})[0]
    assert sorted(run.rglob("*")) == before
    with pytest.raises(UserError, match="step_00000008.*use another checkpoint"):
        generate(run, {"step": 8})
    state = good / "state.json"
    state.write_bytes(b"x" + state.read_bytes()[1:])
    with pytest.raises(UserError, match="step_00000007.*use another checkpoint"):
        generate(run, {})


@in_world(1)
def test_a_checkpoint_without_a_tokenizer_is_explained(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(run_directory / "checkpoints")
    moved = tmp_path / "moved" / "checkpoints" / "step_00000007"
    moved.parent.mkdir(parents=True)
    shutil.copytree(run_directory / "checkpoints" / "step_00000007", moved)
    with pytest.raises(
        UserError, match="no tokenizer in it or in its run .* copy the model.s to .*moved/tokenizer"
    ):
        generate(tmp_path / "moved", {})


def test_the_command_line_gives_the_same_on_two_ranks(run_directory: Path, alone: Any) -> None:
    command = [sys.executable, "-m", "megalm", "generate", str(run_directory), "--json", "--dtype", "fp64"]
    command += ["--nproc", "2", "--tensor-model-parallel-size", "2", "--max-new-tokens", "12", "--seed", "3"]
    command += ["--temperature", "0.9", "--top-p", "0.95"]
    for prompt in PROMPTS:
        command += ["--prompt", prompt]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == alone[0]
