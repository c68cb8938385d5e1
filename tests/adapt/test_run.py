"""From a tree of source code and a base model to an adapted one, in one process; the same call again does nothing twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from megalm import cli
from megalm.adapt.data import general_blends
from megalm.adapt.recipe import load_adapt_recipe
from megalm.adapt.run import main
from megalm.checkpoint.directory import write_manifest
from megalm.cli_adapt import adapt
from megalm.config import dump_config, load_config, parse_config
from megalm.dataset import build_dataset
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.testing import RankError, run_distributed
from megalm.tokenizer import train_bpe
from megalm.train.callbacks.metrics import read_metrics
from tests.train.runs import run_config, train

RECIPE = str(Path(__file__).parents[2] / "configs" / "adapt" / "code.yaml")
FIM = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
SMALL = ["splits=80,20,0", "validations=2", "config.train.eval_batches=1", "epochs=1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on general text, with its tokenizer, and a tree of code beside it."""
    directory: Path = tmp_path_factory.mktemp("base")
    texts = [
        f"the {word} of the end and the hand of {word} {n}" for n in range(80) for word in ("sea", "wood")
    ]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_bpe([directory / "text.jsonl"], 290, directory / "tokenizer", special_tokens=FIM)
    build_dataset(
        [directory / "text.jsonl"], directory / "tokenizer", directory / "text", workers=1, splits="80,20,0"
    )
    for number in range(60):
        (directory / "code" / f"part{number % 4}").mkdir(parents=True, exist_ok=True)
        names = ", ".join(f"{chr(97 + (number * k) % 26)}{number}" for k in (1, 3, 5))
        (directory / "code" / f"part{number % 4}" / f"m{number}.py").write_text(
            f"def f{number * 37}({names}):\n    return [{names}, {number**3}]\n"
        )
    run_distributed(_train_base, 1, directory)
    return directory


def _train_base(directory: Path) -> None:
    config = run_config(directory / "run", directory, "train.steps=2", "model.vocab_size=null")
    config.tokenizer.path = str(directory / "tokenizer")
    config.data.train[0].path = str(directory / "text_train")
    config.data.valid[0].path = str(directory / "text_valid")
    train(config)


def _adapt(base: Path, output: Path, *changes: str) -> dict[str, Any]:
    return main(
        RECIPE, str(base / "run"), [str(base / "code")], str(output), overrides=[*SMALL, *changes], workers=1
    )


def test_code_is_learned_with_replay_and_compared_before_and_after(base: Path, tmp_path: Path) -> None:
    (result,) = run_distributed(_adapt, 1, base, tmp_path, "config.optimizer.lr=5e-3")
    code, general = result["before_and_after"]
    assert (code["text"], general["text"]) == ("domain_valid", "text_valid")
    assert code["perplexity_after"] < 0.9 * code["perplexity_before"], "the domain is learned"

    config = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert [Path(source["path"]).name for source in config["data"]["train"]] == [
        "domain_fim_train",
        "text_train",
    ]
    assert [source["weight"] for source in config["data"]["train"]] == pytest.approx([0.9, 0.1])
    assert (read_sidecar(tmp_path / "data" / "domain_fim_train") or {})["fim_rate"] == 0.5
    assert "fim_rate" not in (read_sidecar(tmp_path / "data" / "domain_valid") or {})

    lines = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    first, *_, last = (line for line in lines if "valid_loss" in line)
    assert first["step"] == 0 and first["valid_loss_domain_valid"] == code["loss_before"]
    assert last["step"] == config["train"]["steps"] and last["valid_loss_text_valid"] == general["loss_after"]

    (again,) = run_distributed(_adapt, 1, base, tmp_path, "config.optimizer.lr=5e-3")
    assert again == result
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, config["train"]["steps"] + 1)), "no step is trained twice"


def test_the_command_can_stop_before_the_training_and_refuses_to_be_a_rank(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["adapt", RECIPE, str(base / "run"), str(base / "code"), "--output", str(tmp_path)]
    assert cli.main([*command, *SMALL, "fim_rate=0", "--workers", "1", "--prepare"]) == 0
    assert capsys.readouterr().out == f"megalm train {tmp_path / 'train.yaml'}\n"
    config = load_config(tmp_path / "train.yaml")
    assert [Path(source.path).name for source in config.data.train] == ["domain_train", "text_train"]
    assert config.run.load and not (tmp_path / "run").exists()
    assert cli.main(["adapt", RECIPE, str(base / "run"), "replay=0.1"]) == 2
    assert "no files of the domain given" in capsys.readouterr().err
    other = ["adapt", RECIPE, str(base / "run"), str(base / "code" / "part0"), "--output", str(tmp_path)]
    assert cli.main([*other, *SMALL, "fim_rate=0", "--workers", "1", "--prepare"]) == 2
    assert "other files or another recipe need another --output" in capsys.readouterr().err
    few = [*other[:-1], str(tmp_path / "few"), *SMALL, "fim_rate=0", "--workers", "1", "--prepare"]
    assert cli.main([*few, "splits=99,1,0"]) == 2
    assert "splits 99,1,0 left no document for valid" in capsys.readouterr().err
    assert cli.main([*few, "splits=60,40,0"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "replay=2"]) == 2
    assert "`replay` = 2" in capsys.readouterr().err
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UserError, match="starts its own processes"):
        adapt(RECIPE, "base", ["file"])


def test_sources_that_the_base_took_by_budgets_are_replayed_in_proportion_to_these(base: Path) -> None:
    paths = [str(base / name) for name in ("text_train", "text_valid")]
    sizes = [(read_sidecar(path) or {})["tokens"] for path in paths]
    budgets: list[tuple[dict[str, float], list[float]]] = [
        ({"epochs": 2}, [2 * size for size in sizes]),
        ({"tokens": 99}, [99, 99]),
        ({"weight": 3}, [3, 3]),
        ({}, [1, 1]),
    ]
    for budget, weights in budgets:
        sources = [{"path": path, **budget} for path in paths]
        config = parse_config({"data": {"train": sources, "valid": sources[:1]}})
        found, guarded = general_blends(config, [], base, base, load_adapt_recipe(RECIPE)[0])
        assert [source["weight"] for source in found] == weights and guarded == [{"path": paths[0]}]


def test_replay_without_general_text_is_refused_before_anything_is_made(base: Path, tmp_path: Path) -> None:
    (base / "text_train.idx").rename(base / "gone.idx")
    try:
        with pytest.raises(RankError, match="name files with --general, or set replay=0"):
            run_distributed(_adapt, 1, base, tmp_path / "out")
    finally:
        (base / "gone.idx").rename(base / "text_train.idx")
    assert not (tmp_path / "out").exists()


def test_filling_in_the_middle_without_its_tokens_is_refused_before_anything_is_made(
    base: Path, tmp_path: Path
) -> None:
    (base / "run" / "tokenizer").rename(base / "kept")
    try:
        train_bpe([base / "text.jsonl"], 290, base / "run" / "tokenizer")
        with pytest.raises(RankError, match="tokens such as .* lacks: give fim_rate=0"):
            run_distributed(_adapt, 1, base, tmp_path / "out")
    finally:
        shutil.rmtree(base / "run" / "tokenizer")
        (base / "kept").rename(base / "run" / "tokenizer")
    assert not (tmp_path / "out").exists()


def test_a_base_that_predicts_no_next_tokens_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "tensors").mkdir(parents=True)
    dump_config(parse_config({"task": "mlm", "model": {"architecture": "bert"}}), base / "config.yaml")
    write_manifest(base, {})
    with pytest.raises(UserError, match="base predicts no next tokens"):
        main(RECIPE, str(base), ["file"], str(tmp_path / "out"))
