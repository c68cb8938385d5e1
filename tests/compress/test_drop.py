"""Models without some layers equal Hugging Face's with these deleted; which ones go, NumPy says, too; the recipe trains them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from megalm.compress.drop import drop_layers
from megalm.config import load_config
from megalm.convert.run import convert
from megalm.errors import UserError
from megalm.testing import run_distributed
from tests.compress.models import calibration, hub_logits, hub_model, loss, make_base, our_logits
from tests.compress.test_prune import samples


def hub_states(folder: Path) -> list[Any]:
    """Hidden states (rows, S, H) before each layer and behind the last one, before the norm."""
    model, states = hub_model(folder / "hf", torch.float64), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].numpy()))
    model.model.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].numpy()))
    with torch.no_grad():
        model(samples(folder))
    return states


def cosine(left: Any, right: Any) -> Any:
    return (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)


def test_measures_are_those_of_numpy_on_a_hooked_model(base: Path, tmp_path: Path) -> None:
    states = hub_states(base)
    text = calibration(base)
    made = drop_layers(base / "base", tmp_path / "a", count=2, by="angular", open_text=text, dtype="fp64")
    expected = [
        float(np.arccos(cosine(states[first][:, -1], states[first + 2][:, -1])).mean() / np.pi)
        for first in range(3)
    ]
    assert made["angular_distance"] == pytest.approx(expected, rel=1e-7)
    first = int(np.argmin(expected))
    assert made["dropped"] == [first, first + 1]

    made = drop_layers(
        base / "base", tmp_path / "b", count=1, by="block_influence", open_text=text, dtype="fp64"
    )
    expected = [float((1 - cosine(states[layer], states[layer + 1])).mean()) for layer in range(4)]
    assert made["block_influence"] == pytest.approx(expected, rel=1e-7)
    assert made["dropped"] == [int(np.argmin(expected))]


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_logits_are_those_of_the_model_with_the_layers_deleted(tmp_path: Path, name: str) -> None:
    make_base(tmp_path, name)
    made = drop_layers(tmp_path / "base", tmp_path / "small", layers=[2, 0])
    assert made["kept"] == [1, 3]
    theirs = hub_model(tmp_path / "hf")
    decoder = theirs.transformer if name == "gpt2" else theirs.model
    held = "h" if name == "gpt2" else "layers"
    kept = [getattr(decoder, held)[number] for number in (1, 3)]
    setattr(decoder, held, torch.nn.ModuleList(kept))
    theirs.config.use_cache = False
    torch.testing.assert_close(our_logits(tmp_path / "small"), hub_logits(theirs), rtol=0, atol=2e-5)
    assert (
        convert(tmp_path / "small", tmp_path / "exported")["family"]
        == hub_model(tmp_path / "hf").config.model_type
    )


def test_layouts_compute_what_one_process_does(base: Path, tmp_path: Path) -> None:
    drop_layers(base / "base", tmp_path / "small", layers=[1, 2])
    (alone,) = run_distributed(loss, 1, tmp_path / "small", base, "fp64", 1, 1)
    for tp, pp in ((2, 1), (1, 2)):
        found = run_distributed(loss, 2, tmp_path / "small", base, "fp64", tp, pp)
        assert found == pytest.approx([alone, alone], rel=1e-12, abs=0)


def test_recipe_beside_the_weights_trains_them_with_the_whole_model_as_teacher(
    base: Path, tmp_path: Path
) -> None:
    from megalm.dataset.build import build_dataset
    from megalm.train.run import main as train

    small = tmp_path / "small"
    drop_layers(base / "base", small, layers=[1])
    tokenizer = small / "tokenizer"
    build_dataset([base / "text.txt"], tokenizer, tmp_path / "text", splits="1,0,0", sample_by="line")
    recipe = yaml.safe_load((small / "distill.yaml").read_text(encoding="utf-8"))
    assert recipe["distill"]["teacher"] == str(base / "base")
    settings = [
        "train.steps=12",
        f"data.train=[{{path: {tmp_path / 'text_train'}}}]",
        f"run.dir={tmp_path / 'run'}",
    ]
    settings += [
        f"data.valid=[{{path: {tmp_path / 'text_train'}}}]",
        "train.eval_interval=12",
        "train.eval_at_start=true",
    ]
    settings += [
        "batch.seq_length=24",
        "logging.tensorboard=false",
        "logging.plot=false",
        "logging.progress=false",
    ]
    config = load_config(small / "distill.yaml", [*settings, "optimizer.lr=3e-3", "optimizer.warmup_steps=0"])
    train(config)
    lines = map(yaml.safe_load, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    before, after = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert after < before - 0.1


def test_model_trained_in_a_pipeline_that_the_new_depth_does_not_fit_is_read(tmp_path: Path) -> None:
    from megalm.checkpoint import CheckpointWriter, read_config
    from tests.tiny import tiny_config, tiny_engine

    config = tiny_config("llama-tiny", "checkpoint.async_save=false")
    engine = tiny_engine(config)
    config.parallel.pipeline_model_parallel_size = 2
    CheckpointWriter(tmp_path / "run", config, engine).save(1, {"step": 1, "counters": engine.counters})
    drop_layers(tmp_path / "run", tmp_path / "small", layers=[0])
    assert read_config(tmp_path / "small").model.num_layers == 1


def test_what_cannot_be_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("0 to 3", {"layers": [4]}),
        ("these are all", {"layers": [0, 1, 2, 3]}),
        ("give 1 to 3", {"count": 4}),
        ("--calibration", {"count": 1}),
        ("block_influence", {"count": 1, "by": "block_influense"}),
    ]
    for said, options in cases:
        with pytest.raises(UserError, match=said) as error:
            drop_layers(base / "base", tmp_path / "small", **options)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "small").exists()
