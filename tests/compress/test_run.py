"""`megalm compress` measures what Hugging Face measures, writes a row for each method, and says in one line what is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megalm.checkpoint import read_config
from megalm.cli import main
from megalm.compress.measure import measure, stored_bytes
from megalm.compress.methods import parse_method
from megalm.compress.quantize import quantize_checkpoint
from megalm.compress.run import CompressRequest
from megalm.compress.run import main as compress
from megalm.compress.text import open_samples
from megalm.dataset.build import build_dataset
from megalm.errors import UserError
from megalm.parallel.layout import create_layout
from megalm.tokenizer import load_tokenizer
from tests.compress.models import LENGTH, calibration, hub_model, our_engine
from tests.compress.test_prune import samples


def hub_perplexity(folder: Path, base: Path) -> float:
    """Of the first twelve rows of the text, each token but the first of all predicted."""
    tokenizer = load_tokenizer(base / "base" / "tokenizer")
    ids = tokenizer.encode((base / "text.txt").read_text(encoding="utf-8"))
    labels = torch.tensor(ids[1 : 12 * LENGTH + 1]).view(12, LENGTH)
    with torch.no_grad():
        logits = hub_model(folder)(samples(base)).logits
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_figures_are_hugging_faces_perplexity_and_the_bytes_of_the_tensors(
    base: Path, tmp_path: Path
) -> None:
    source, held_out = base / "base", [base / "text.txt"]
    request = CompressRequest(
        source=str(source),
        calibration=held_out,
        calibration_samples=4,
        held_out=held_out,
        held_out_samples=12,
        length=LENGTH,
        plot=tmp_path / "picture.png",
    )
    methods = ["bf16", "int4:16", "wanda:2:4", "drop:1"]
    report = compress(request, [(parse_method(text), tmp_path / text.replace(":", "-")) for text in methods])
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["source", *methods]
    for name, row in rows.items():
        assert row["stored_bytes"] == stored_bytes(Path(row["checkpoint"]))
        assert row["memory_bytes"] == row["stored_bytes"], name  # nothing is padded, or made whole
        assert row["tokens_per_second"] > 0
        ratio = row["perplexity"] / rows["source"]["perplexity"]
        assert row["perplexity_change"] == pytest.approx(ratio - 1)
    assert rows["source"]["perplexity"] == pytest.approx(hub_perplexity(base / "hf", base), rel=1e-5)
    assert rows["bf16"]["perplexity"] == pytest.approx(rows["source"]["perplexity"], rel=1e-2)
    assert rows["bf16"]["dtype"] == "bf16" and rows["int4:16"]["dtype"] == "fp32"
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(report)) == report


def test_token_files_are_read_as_the_model_was_trained_on_them(base: Path, tmp_path: Path) -> None:
    tokenizer_path = base / "base" / "tokenizer"
    build_dataset([base / "text.txt"], tokenizer_path, tmp_path / "text", splits="1,0,0", sample_by="line")
    config, tokenizer = read_config(base / "base"), load_tokenizer(tokenizer_path)
    layout = create_layout(config.parallel)
    config.data.reset_at_document_end = True
    text = open_samples([tmp_path / "text_train"], config, tokenizer, 5, LENGTH)
    (batch,) = next(text.batches(layout))
    assert batch.tokens_BS.shape == (5, LENGTH) and batch.segments_BS is not None
    assert int(batch.segments_BS.max()) > 0
    (batch,) = next(calibration(base, 5)(config, tokenizer).batches(layout))
    assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
    assert torch.equal(batch.tokens_BS, samples(base)[:5])


def test_quantised_checkpoints_are_generated_from_like_others(
    base: Path, tmp_path: Path, capsys: Any
) -> None:
    quantize_checkpoint(base / "base", tmp_path / "small", "int8")
    texts = []
    for checkpoint in (base / "base", tmp_path / "small"):
        arguments = ["--prompt", "the end", "--greedy", "--max-new-tokens", "4", "--json"]
        assert main(["generate", str(checkpoint), *arguments]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        texts.append(result["tokens"])
    assert len(texts[1]) == 4
    engine = our_engine(tmp_path / "small")
    held = {name for name, _ in engine.model.named_buffers()}
    assert "decoder.layers.0.mlp.linear_fc1.quantized.codes" in held


def test_encoders_are_measured_as_far_as_they_go(tmp_path: Path) -> None:
    from megalm.checkpoint import CheckpointWriter
    from tests.tiny import tiny_config, tiny_engine

    config = tiny_config("bert-tiny", "checkpoint.async_save=false")
    engine = tiny_engine(config)
    CheckpointWriter(tmp_path / "run", config, engine).save(1, {"step": 1, "counters": engine.counters})
    found = measure(tmp_path / "run", "fp32", None)
    assert found.stored_bytes > 0 and found.tokens_per_second is None and found.perplexity is None


def test_command_prints_a_table_and_where_the_checkpoint_lies(
    base: Path, tmp_path: Path, capsys: Any
) -> None:
    small = tmp_path / "small"
    assert main(["compress", "quantize", str(base / "base"), str(small), "--method", "int4"]) == 0
    out = capsys.readouterr().out
    assert "int4" in out and "tokens/s" in out and f"{small}  method int4  group_size 32" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", "BASE", "NEW", "--method", "int7"], "unknown"),
        (["quantize", "BASE", "NEW", "--dtype", "fp12"], "--dtype is 'fp12'"),
        (["quantize", "NOWHERE", "NEW"], "no such run or checkpoint"),
        (["quantize", "BASE", "BASE"], "exists; choose another path"),
        (["quantize", "RUN", "AMONG"], "lies among the checkpoints of the run"),
        (["compare", "RUN", "AMONG", "--method", "int8"], "lies among the checkpoints of the run"),
        (["quantize", "BASE", "NEW", "--held-out", "NOWHERE"], "does not exist"),
        (["quantize", "BASE", "NEW", "--held-out", "SHORT"], "give more text"),
        (["quantize", "BASE", "NEW", "--held-out", "TEXT", "--length", "100000"], "context of"),
        (["prune", "BASE", "NEW", "--calibration", "TEXT", "--length", "100000"], "context of"),
        (["quantize", "BASE", "NEW", "--held-out", "data/books.bin"], "name their prefix, data/books"),
        (["drop-layers", "BASE", "NEW", "--layers", "0", "--by", "turns"], "measure 'turns' is unknown"),
        (["quantize", "BASE", "NEW", "--plot", "picture.bmp"], ".png"),
        (["prune", "BASE", "NEW", "--sparsity", "2"], "'2' is neither a share"),
        (["prune", "BASE", "NEW"], "--calibration"),
        (["drop-layers", "BASE", "NEW"], "give either --layers"),
        (["drop-layers", "BASE", "NEW", "--layers", "a,b"], "no list of numbers"),
        (["compare", "BASE", "NEW"], "name what to compare"),
        (["compare", "BASE", "NEW", "--method", "int8", "--method", "dropp:2"], "unknown"),
        (["compare", "BASE", "NEW", "--method", "drop:x"], "no whole number"),
        (["compare", "BASE", "NEW", "--method", "int8", "--calibration-samples", "0"], "at least 1"),
        (["compare", "BASE", "NEW", "--method", "int8", "--method", "wanda:0.5"], "--calibration"),
    ],
)
def test_mistakes_are_told_in_one_line(
    base: Path, tmp_path: Path, capsys: Any, arguments: list[str], said: str
) -> None:
    paths = {
        "BASE": base / "base",
        "NEW": tmp_path / "new",
        "NOWHERE": tmp_path / "x",
        "TEXT": base / "text.txt",
        "SHORT": tmp_path / "short.txt",
        "RUN": tmp_path / "run",
        "AMONG": tmp_path / "run" / "checkpoints" / "int8",
    }
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_00000001").symlink_to(base / "base")
    paths["SHORT"].write_text("the end", encoding="utf-8")
    assert main(["compress", *(str(paths.get(argument, argument)) for argument in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and error.startswith("megalm: error: ") and said in error
    assert not (tmp_path / "new").exists() and not paths["AMONG"].exists()


def test_comparison_that_fails_on_the_way_leaves_no_checkpoint_that_bars_the_next(
    base: Path, tmp_path: Path
) -> None:
    methods = [(parse_method(text), tmp_path / text) for text in ("bf16", "int8:50")]
    with pytest.raises(UserError, match="group_size 50"):
        compress(CompressRequest(source=str(base / "base")), methods)
    assert list(tmp_path.iterdir()) == []
