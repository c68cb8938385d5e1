"""Distillation in the loop: live and cached teachers say the same, a cache is written once and belongs to its makers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megalm.checkpoint import find_checkpoint, read_config
from megalm.config import Config
from megalm.convert.source import open_source
from megalm.errors import UserError
from megalm.testing import RankError
from megalm.train import run
from megalm.train.callbacks.metrics import read_metrics
from tests.train.runs import (
    GLOBAL_BATCH,
    PP2,
    SEQUENCE,
    TP2,
    VOCABULARY,
    run_config,
    step_lines,
    train_in_world,
)

STEPS, FILES = 4, 2  # 4 steps and 9 to spare of 8 samples each lie in two files
SMALL = ("model.num_layers=1", "model.hidden_size=32", "model.ffn_hidden_size=64")
REFUSED = (UserError, RankError)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Trained under a layout that a model of fewer layers cannot have."""
    directory: Path = tmp_path_factory.mktemp("teacher")
    train_in_world(2, run_config(directory, data, "train.steps=6", PP2))
    return directory


def student(directory: Path, data: Path, teacher: Path | None, *overrides: str) -> Config:
    named = () if teacher is None else (f"distill.teacher={teacher}",)
    return run_config(directory, data, "task=distill", f"train.steps={STEPS}", *SMALL, *named, *overrides)


def whole_cache(folder: Path) -> tuple[str, ...]:
    return (f"distill.cache={folder}", f"distill.cache_top_k={VOCABULARY}", "distill.cache_dtype=fp32")


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in step_lines(directory)]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: Path) -> Path:
    """A run from a cache of all logits that it wrote itself, in `run`, and the cache beside it."""
    directory: Path = tmp_path_factory.mktemp("cached")
    train_in_world(1, student(directory / "run", data, teacher, *whole_cache(directory / "cache")))
    return directory


def test_all_logits_cached_train_like_the_teacher_itself(
    tmp_path: Path, data: Path, teacher: Path, cached: Path
) -> None:
    overrides = ("train.eval_interval=4", "train.eval_batches=1")
    train_in_world(1, student(tmp_path, data, teacher, *overrides))
    assert losses(tmp_path) == pytest.approx(losses(cached / "run"), rel=1e-6)
    # a validation is of the student alone: no more than random guessing, whatever the teacher's part in the loss
    (line,) = (line for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line)
    assert line["valid_loss"] < np.log(VOCABULARY)
    assert line["valid_perplexity"] == pytest.approx(np.exp(line["valid_loss"]))


def test_a_complete_cache_needs_no_teacher(tmp_path: Path, data: Path, cached: Path) -> None:
    train_in_world(1, student(tmp_path, data, None, *whole_cache(cached / "cache")))
    assert losses(tmp_path) == losses(cached / "run")


def test_a_longer_run_reads_the_files_of_a_shorter_one(
    tmp_path: Path, data: Path, teacher: Path, cached: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (cached / "cache").glob("*.npy")}
    longer = ("train.steps=14", "optimizer.schedule=constant", "train.max_rollbacks=0")
    train_in_world(1, student(tmp_path, data, None, *whole_cache(cached / "cache"), *longer))
    assert len(losses(tmp_path)) == 14
    assert {path: path.stat().st_mtime_ns for path in (cached / "cache").glob("*.npy")} == before


def test_a_cache_ends_with_the_budget_of_the_data(tmp_path: Path, data: Path, teacher: Path) -> None:
    budget = f"data.train=[{{path: {data / 'train'}, tokens: {STEPS * GLOBAL_BATCH * SEQUENCE}}}]"
    train_in_world(1, student(tmp_path / "run", data, teacher, *whole_cache(tmp_path / "cache"), budget))
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert len(np.load(file)) == STEPS * GLOBAL_BATCH


def test_what_is_missing_of_a_cache_is_written_alike_under_another_layout(
    tmp_path: Path, data: Path, teacher: Path, cached: Path
) -> None:
    before = {path.name: path.read_bytes() for path in (cached / "cache").iterdir()}
    assert len(before) == FILES + 1
    kept, lost = (cached / "cache" / f"samples_{number:08d}.npy" for number in range(FILES))
    stamp = kept.stat().st_mtime_ns
    for layout in ((TP2, "parallel.sequence_parallel=true"), ("parallel.context_parallel_size=2",)):
        lost.unlink()
        whole = whole_cache(cached / "cache")
        train_in_world(2, student(tmp_path / layout[0], data, teacher, *whole, *layout))
        assert kept.stat().st_mtime_ns == stamp
        assert_same_logits(np.load(lost), _loaded(before[lost.name]))
        assert losses(tmp_path / layout[0]) == pytest.approx(losses(cached / "run"), rel=1e-5)


def _loaded(content: bytes) -> Any:
    import io

    return np.load(io.BytesIO(content))


def assert_same_logits(found: Any, expected: Any) -> None:
    """In the order of the tokens: equal logits may come in any."""
    assert found.shape == expected.shape

    def by_token(content: Any) -> Any:
        return np.take_along_axis(content["logit"], np.argsort(content["id"], axis=-1), -1)

    np.testing.assert_allclose(by_token(found), by_token(expected), atol=2e-5)


def test_a_cache_refuses_what_it_was_not_made_of(
    tmp_path: Path, data: Path, teacher: Path, cached: Path
) -> None:
    whole = whole_cache(cached / "cache")
    cases = {
        "teacher": student(tmp_path, data, cached / "run", *whole, "model.vocab_size=509"),
        "seed": student(tmp_path, data, teacher, *whole, "run.seed=9"),
        "top_k": student(tmp_path, data, teacher, *whole, "distill.cache_top_k=7"),
        "dtype": student(tmp_path, data, teacher, *whole, "distill.cache_dtype=fp16"),
        "seq_length": student(tmp_path, data, teacher, *whole, "batch.seq_length=16"),
        "packing": student(tmp_path, data, teacher, *whole, "data.packing=cut"),
        "reset_at_document_end": student(tmp_path, data, teacher, *whole, "data.reset_at_document_end=true"),
        "shares": student(
            tmp_path, data, teacher, *whole, f"data.train=[{{path: {data / 'train'}, epochs: 9}}]"
        ),
        "data": student(tmp_path, data, teacher, *whole, f"data.train=[{{path: {data / 'valid'}}}]"),
        "teacher_dtype": student(tmp_path, data, teacher, *whole, "distill.teacher_dtype=fp64"),
    }
    for name, config in cases.items():
        with pytest.raises(UserError, match=f"made with {name} "):
            run.main(config)
    empty = student(tmp_path, data, None, f"distill.cache={tmp_path / 'none'}")
    with pytest.raises(REFUSED, match="lacks 2 of the files"):
        train_in_world(1, empty)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, data: Path, teacher: Path) -> None:
    train_in_world(1, student(tmp_path, data, teacher, "train.exit_after_steps=1"))
    with pytest.raises(REFUSED, match=r"distill\.alpha 0\.5, this one has 0\.9"):
        train_in_world(1, student(tmp_path, data, teacher, "distill.alpha=0.9"))
    train_in_world(1, student(tmp_path, data, teacher))
    assert len(losses(tmp_path)) == STEPS


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path, data: Path, teacher: Path) -> None:
    def refused(match: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=match):
            run.main(student(tmp_path, data, teacher, *overrides))

    refused("has a vocabulary of 509, this model of 512: set model.vocab_size=509", "model.vocab_size=512")
    refused(
        "the teacher .* under this run's layout: .*num_layers 2 is not a multiple",
        "parallel.pipeline_model_parallel_size=3",
        "model.num_layers=3",
    )
    refused("the teacher: .*no such run", f"distill.teacher={tmp_path / 'none'}")


def test_a_student_begins_as_layers_of_its_teacher(tmp_path: Path, data: Path, teacher: Path) -> None:
    begin = ("task=distill", f"distill.teacher={teacher}", "train.steps=0", "model.num_layers=1")
    train_in_world(2, run_config(tmp_path, data, *begin, "distill.init_from_teacher_layers=[1]", TP2))
    mine, theirs = (open_source(find_checkpoint(path)) for path in (tmp_path, teacher))
    for name, source in {
        "decoder.layers.0.self_attention.linear_qkv.weight": "decoder.layers.1.self_attention.linear_qkv.weight",
        "decoder.layers.0.mlp.linear_fc1.weight": "decoder.layers.1.mlp.linear_fc1.weight",
        "embedding.word_embeddings.weight": "embedding.word_embeddings.weight",
        "decoder.final_layernorm.weight": "decoder.final_layernorm.weight",
    }.items():
        assert mine.read(name).equal(theirs.read(source)), name
    assert read_config(find_checkpoint(tmp_path)).model.num_layers == 1
    assert not (tmp_path / "teacher_layers").exists()
    other = run_config(
        tmp_path / "other", data, *begin, "distill.init_from_teacher_layers=[0]", "model.hidden_size=32"
    )
    with pytest.raises(UserError, match="model.hidden_size is 32, the teacher's 64"):
        run.main(other)


def test_hidden_states_that_cannot_be_compared_are_refused(tmp_path: Path, data: Path, teacher: Path) -> None:
    hidden = ("distill.hidden_loss_weight=1", "distill.hidden_layers=[[0,0]]")
    with pytest.raises(UserError, match="the student's are 32 wide, the teacher's 64"):
        run.main(student(tmp_path, data, teacher, *hidden))
    wide = ("model.hidden_size=64", "model.num_layers=2", "parallel.pipeline_model_parallel_size=2")
    with pytest.raises(UserError, match="layer 0 of the student .* holds its layers 1 to 1"):
        run.main(student(tmp_path, data, teacher, *hidden, *wide))
    with pytest.raises(UserError, match="layer 7 of the teacher .* holds its layers 0 to 1"):
        run.main(student(tmp_path, data, teacher, *hidden, wide[0], "distill.hidden_layers=[[0,7]]"))


def test_another_tokenizer_is_refused(tmp_path: Path, data: Path, teacher: Path) -> None:
    from megalm.tokenizer import train_tokenizer
    from megalm.train.frozen import check_vocabulary

    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight\n" * 20)
    config = student(tmp_path / "run", data, teacher)
    own = find_checkpoint(teacher)
    tokenizers = [
        train_tokenizer([text], tmp_path / kind, kind=kind, vocab_size=size)
        for kind, size in (("byte", None), ("bpe", 270))
    ]
    (teacher / "tokenizer").symlink_to(tmp_path / "byte")
    try:
        check_vocabulary(config, tokenizers[0], "teacher", own)
        with pytest.raises(UserError, match="both must be one"):
            check_vocabulary(config, tokenizers[1], "teacher", own)
    finally:
        (teacher / "tokenizer").unlink()
