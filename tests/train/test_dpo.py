"""Task `dpo`: it learns, its numbers are those of transformers' models, alike under every layout, cached or not, with adapters too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megalm.checkpoint import find_checkpoint
from megalm.config import Config
from megalm.convert.run import convert
from megalm.dataset import IndexedDataset
from megalm.errors import UserError
from megalm.testing import RankError
from tests.chats import build_chats, write_chats
from tests.preferences import make_pairs, preference_data, preference_run, validation
from tests.train.runs import PP2, TP2, ZERO1, events, step_lines, train_in_world

CP2 = "parallel.context_parallel_size=2"
SP = "parallel.sequence_parallel=true"
WHOLE = "batch.micro_batch_size=16"
RECORDS = make_pairs(160)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_data(tmp_path_factory.mktemp("pairs"), RECORDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    """A model that was tuned on all answers, good or bad."""
    directory = tmp_path_factory.mktemp("base")
    chats = [
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[which]}]
        for pair in RECORDS
        for which in ("chosen", "rejected")
    ]
    file = write_chats(directory / "chats.jsonl", chats)
    build_chats([file], pairs.parent / "tokenizer", directory / "chats")
    config = preference_run(
        "dpo", directory / "run", pairs, "task=sft", "run.load=null", "data.valid=[]", WHOLE
    )
    config = config.model_copy(deep=True)
    for name, value in (("path", f"{directory / 'chats'}_train"),):
        setattr(config.data.train[0], name, value)
    config.data.packing, config.train.eval_interval = "drop", 0
    train_in_world(1, config)
    return directory / "run"


def dpo_run(directory: Path, pairs: Path, base: Path, *overrides: str) -> Config:
    lower = ("optimizer.lr=5e-4", "optimizer.min_lr=5e-5")
    return preference_run("dpo", directory, pairs, f"run.load={base}", *lower, *overrides)


@pytest.mark.parametrize("loss", [("dpo",), ("ipo", "dpo.beta=0.5"), ("kto",)], ids=["dpo", "ipo", "kto"])
def test_better_answers_become_likelier(
    loss: tuple[str, ...], pairs: Path, base: Path, tmp_path: Path
) -> None:
    name, *more = loss
    start = (
        "train.eval_at_start=true",
        "train.steps=30",
        "train.eval_interval=30",
        "optimizer.lr=2e-3",
        WHOLE,
    )
    train_in_world(1, dpo_run(tmp_path, pairs, base, f"dpo.loss={name}", *start, *more))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    before, after = (line for line in lines if "valid_loss" in line)
    start_loss = {"dpo": np.log(2), "ipo": 1.0, "kto": 0.5}[name]
    assert before["valid_loss"] == pytest.approx(start_loss, rel=1e-5), "the model is the reference"
    assert before["valid_chosen_reward"] == pytest.approx(0, abs=1e-4)
    assert after["valid_accuracy"] > 0.75 > 0.6 > before["valid_accuracy"]
    assert after["valid_loss"] < 0.9 * before["valid_loss"]
    assert after["valid_chosen_reward"] > after["valid_rejected_reward"]
    assert "valid_perplexity" not in after
    if name != "kto":
        gap = after["valid_chosen_reward"] - after["valid_rejected_reward"]
        assert after["valid_margin"] == pytest.approx(gap, abs=1e-6)
    steps = [line for line in lines if "grad_norm" in line]
    assert steps[-1]["weight"] == (32 if name == "kto" else 16) and steps[-1]["accuracy"] > 0.8


def test_numbers_are_those_of_transformers_models(pairs: Path, base: Path, tmp_path: Path) -> None:
    exact = ("precision.dtype=fp64", "train.eval_at_start=true", "train.eval_interval=5", "train.steps=5")
    first = dpo_run(tmp_path / "first", pairs, base, *exact, "optimizer.lr=2e-3")
    train_in_world(1, first)
    # the model is that of the run, the reference its base
    logprobs = [held_out_logprobs(path, pairs, tmp_path / path.name) for path in (tmp_path / "first", base)]
    ratio_P2 = (logprobs[0] - logprobs[1]).reshape(-1, 2)
    margin_P = 0.1 * (ratio_P2[:, 0] - ratio_P2[:, 1])
    found = validation(tmp_path / "first")
    assert found["valid_loss"] == pytest.approx(np.mean(np.log1p(np.exp(-margin_P))), rel=1e-6)
    assert found["valid_accuracy"] == pytest.approx(np.mean(margin_P > 0))
    assert found["valid_chosen_reward"] == pytest.approx(0.1 * ratio_P2[:, 0].mean(), rel=1e-5)
    assert abs(margin_P).mean() > 0.01


def held_out_logprobs(run: Path, pairs: Path, folder: Path) -> np.ndarray:
    """Of each held-out answer, in order, by transformers' model of the run's last checkpoint."""
    convert(find_checkpoint(run), folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float64)
    dataset = IndexedDataset(f"{pairs}_valid")
    found = []
    for number in range(dataset.num_sequences):
        ids = torch.tensor(dataset[number].astype(np.int64))[None]
        assert dataset.loss_mask is not None
        start = int(dataset.sequence_pointers[number]) // dataset.dtype.itemsize
        marks = dataset.loss_mask.read(start, ids.shape[1])[1:]
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        of_labels = logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy()
        found.append(float((of_labels * marks).sum()))
    return np.array(found)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory, pairs: Path, base: Path) -> Path:
    """A model to which all answers are less likely than to `base`, also those to other prompts."""
    directory = tmp_path_factory.mktemp("weak")
    train_in_world(
        1,
        dpo_run(
            directory,
            pairs,
            base,
            "train.steps=2",
            "train.eval_interval=0",
            "optimizer.lr=5e-2",
            "optimizer.warmup_steps=0",
        ),
    )
    return directory


def against(weak: Path, loss: str) -> tuple[str, ...]:
    return (f"dpo.reference={weak}", "dpo.beta=0.01") if loss == "kto" else ()


EXACT = ("precision.dtype=fp64", "train.steps=5", "train.eval_interval=5", "optimizer.lr=2e-3")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "TP2": (TP2,),
    "TP2+SP": (TP2, SP),
    "PP2": (PP2,),
    "CP2": (CP2,),
    "DP2": (),
}


@pytest.fixture(scope="module")
def in_one_process(
    tmp_path_factory: pytest.TempPathFactory, pairs: Path, base: Path, weak: Path
) -> dict[str, Path]:
    found = {}
    for loss in ("dpo", "kto"):
        found[loss] = tmp_path_factory.mktemp(loss)
        train_in_world(1, dpo_run(found[loss], pairs, base, *EXACT, f"dpo.loss={loss}", *against(weak, loss)))
    return found


def assert_same_run(found: Path, expected: Path, bound: float) -> None:
    assert validation(found) == pytest.approx(validation(expected), rel=bound, abs=bound / 100)
    lines = [step_lines(path) for path in (found, expected)]
    assert len(lines[0]) == 5
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, rel=bound)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_learns_and_validates_the_same(
    layout: str, in_one_process: dict[str, Path], pairs: Path, base: Path, tmp_path: Path
) -> None:
    train_in_world(2, dpo_run(tmp_path, pairs, base, *EXACT, *LAYOUTS[layout]))
    assert_same_run(tmp_path, in_one_process["dpo"], 1e-8)


@pytest.mark.parametrize("layout", ["PP2", "CP2", "DP2"])
def test_the_baseline_of_kto_is_of_the_whole_batch_under_every_layout(
    layout: str, in_one_process: dict[str, Path], pairs: Path, base: Path, weak: Path, tmp_path: Path
) -> None:
    overrides = (*EXACT, "dpo.loss=kto", *against(weak, "kto"), *LAYOUTS[layout])
    train_in_world(2, dpo_run(tmp_path, pairs, base, *overrides))
    assert validation(in_one_process["kto"])["valid_baseline"] > 0
    assert_same_run(tmp_path, in_one_process["kto"], 1e-8)


@pytest.mark.parametrize("sharding", [(ZERO1,), ("engine=deepspeed", "parallel.zero_stage=2")])
def test_sharded_engines_learn_the_same(
    sharding: tuple[str, ...], pairs: Path, base: Path, tmp_path: Path
) -> None:
    fp32 = ("train.steps=5", "train.eval_interval=5", "optimizer.adam_eps=1e-5")
    for name, more in (("one", ()), ("two", sharding)):
        train_in_world(1 + (name == "two"), dpo_run(tmp_path / name, pairs, base, *fp32, *more))
    found, expected = validation(tmp_path / "two"), validation(tmp_path / "one")
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_cached_log_probabilities_give_the_same_run_and_need_no_reference(
    in_one_process: dict[str, Path], pairs: Path, base: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    written: list[dict[str, int]] = []
    for layout in ("DP2", "PP2"):
        overrides = (*EXACT, f"dpo.cache={cache}", *LAYOUTS[layout])
        train_in_world(2, dpo_run(tmp_path / layout, pairs, base, *overrides))
        assert_same_run(tmp_path / layout, in_one_process["dpo"], 1e-8)
        written.append({path.name: path.stat().st_mtime_ns for path in cache.iterdir()})
    assert len(written[0]) == 2, "training and validation"
    assert written[0] == written[1], "what is there is not written again"
    content = np.load(next(path for path in cache.iterdir() if "valid" in path.name))
    expected = held_out_logprobs(base, pairs, tmp_path).reshape(-1, 2)
    np.testing.assert_allclose(content, expected, rtol=1e-6)
    other = dpo_run(tmp_path / "other", pairs, base, *EXACT, f"dpo.cache={cache}", "batch.seq_length=64")
    train_in_world(1, other)
    assert len(list(cache.iterdir())) == 4, "other samples have files of their own"


def test_a_quantised_reference_has_a_cache_of_its_own(pairs: Path, base: Path, tmp_path: Path) -> None:
    from megalm.train.reference_cache import cache_files

    lora, cache = "lora.rank=4", f"dpo.cache={tmp_path}"
    quantised = lora, "lora.quantize_base=nf4", "lora.quantize_group_size=16"
    kinds = (
        (),
        (lora,),
        quantised,
        (*quantised, "lora.quantize_group_size=8"),
        (*quantised, f"dpo.reference={base}"),
    )
    runs = [dpo_run(tmp_path / "run", pairs, base, cache, *kind) for kind in kinds]
    whole, adapted, in_nf4, other_groups, named = (cache_files(run, run.data.train) for run in runs)
    assert whole == adapted == named
    assert len({str(files) for files in (whole, in_nf4, other_groups)}) == 3


def test_adapters_are_compared_with_the_model_without_them(pairs: Path, base: Path, tmp_path: Path) -> None:
    lora = (*EXACT, "lora.rank=4", "optimizer.lr=2e-2")
    train_in_world(2, dpo_run(tmp_path / "off", pairs, base, *lora, TP2))
    train_in_world(1, dpo_run(tmp_path / "named", pairs, base, *lora, f"dpo.reference={base}"))
    assert_same_run(tmp_path / "off", tmp_path / "named", 1e-8)
    assert validation(tmp_path / "off")["valid_margin"] > 0


def test_a_stopped_run_goes_on_to_the_same_end(
    in_one_process: dict[str, Path], pairs: Path, base: Path, tmp_path: Path
) -> None:
    config = dpo_run(tmp_path, pairs, base, *EXACT, "train.exit_after_steps=3")
    train_in_world(1, config)
    config.train.exit_after_steps = None
    train_in_world(1, config)
    assert_same_run(tmp_path, in_one_process["dpo"], 1e-10)
    assert any("going on from the checkpoint of step 3" in event for event in events(tmp_path))
    other = dpo_run(tmp_path, pairs, base, *EXACT, "dpo.beta=0.2")
    with pytest.raises(RankError, match=r"holds a run with dpo.beta 0.1, this one has 0.2"):
        train_in_world(1, other)


def test_without_a_reference_answers_alone_are_compared(pairs: Path, tmp_path: Path) -> None:
    free = preference_run("dpo", tmp_path, pairs, "dpo.reference_free=true", WHOLE)
    train_in_world(1, free)
    assert validation(tmp_path)["valid_accuracy"] > 0.8
    assert "task dpo without run.load: the model begins with random weights" in events(tmp_path)


def test_answers_with_verdicts_are_for_kto(base: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(pairs.parent / "tokenizer")
    records: list[dict[str, Any]] = [
        {"prompt": pair["prompt"], "completion": pair[which], "label": which == "chosen"}
        for number, pair in enumerate(RECORDS)
        for which in (["chosen", "rejected"] if number % 2 else ["chosen"])
    ]
    prefix = preference_data(tmp_path, records)
    run = ("train.steps=20", "train.eval_interval=20", "optimizer.lr=2e-3", "dpo.undesirable_weight=2", WHOLE)
    train_in_world(1, dpo_run(tmp_path / "kto", prefix, base, "dpo.loss=kto", *run))
    found = validation(tmp_path / "kto")
    assert found["valid_chosen_reward"] > found["valid_rejected_reward"] + 0.1 and found["valid_accuracy"] > 0
    with pytest.raises(RankError, match="dpo.loss `dpo` learns from pairs; .* holds verdicts"):
        train_in_world(1, dpo_run(tmp_path / "dpo", prefix, base))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "name the model to begin with in run.load"),
        (["dpo.reference_free=true", "dpo.cache=x"], "has no use for dpo.cache"),
        (["dpo.reference_free=true", "dpo.loss=kto"], "`kto` has a reference in its baseline"),
        (["run.load=x", "dpo.cache=x", "dpo.loss=kto"], "whose baseline needs the reference at each step"),
        (["run.load=x", "dpo.loss=ipo", "dpo.label_smoothing=0.1"], "is of dpo.loss `dpo`"),
        (["run.load=x", "dpo.desirable_weight=2"], "is of dpo.loss `kto`"),
        (["run.load=x", "data.packing=drop"], "samples of task `dpo` are whole answers"),
        (["run.load=x", "model.sequence_head.outputs=1"], "takes the place of the vocabulary's head"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], message: str, pairs: Path) -> None:
    with pytest.raises(UserError, match=message):
        preference_run("dpo", Path("run"), pairs, *overrides)


def test_a_reference_of_another_kind_is_refused_before_the_run(
    pairs: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(RankError, match="the reference: .*nowhere"):
        train_in_world(1, dpo_run(tmp_path, pairs, tmp_path / "nowhere"))
