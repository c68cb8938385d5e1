"""Pruned weights are those that NumPy picks: by size, and by Wanda's scores on what a hooked model of Hugging Face's sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megalm.checkpoint import read_config
from megalm.compress.masks import Sparsity, magnitude_mask, wanda_mask
from megalm.compress.prune import prune_checkpoint
from megalm.compress.source import open_whole
from megalm.compress.text import Text, open_samples
from megalm.convert.run import convert
from megalm.errors import UserError
from megalm.model.quantized import is_linear_weight
from megalm.tokenizer import load_tokenizer
from tests.compress.models import LENGTH, calibration, hub_model, make_base

HALF, TWO_OF_FOUR = Sparsity.parse("0.5"), Sparsity.parse("2:4")


def samples(folder: Path) -> torch.Tensor:
    """The calibration text cut into rows by hand."""
    tokenizer = load_tokenizer(folder / "base" / "tokenizer")
    ids = [*tokenizer.encode((folder / "text.txt").read_text(encoding="utf-8")), tokenizer.eod_id]
    return torch.tensor(ids[: 12 * LENGTH]).view(12, LENGTH)


@torch.no_grad()
def input_norms(model: Any, layer: Any, rows: torch.Tensor) -> dict[Any, NDArray[np.float64]]:
    """Norm of each input of the layer's matrices over all tokens, from hooks on the whole model."""
    seen: dict[Any, list[NDArray[np.float64]]] = {}
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]

    def keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(module, []).append(inputs[0].double().numpy().reshape(-1, module.in_features))

    handles = [module.register_forward_pre_hook(keep) for module in linear]
    model(rows)
    for handle in handles:
        handle.remove()
    return {module: np.linalg.norm(np.concatenate(parts), axis=0) for module, parts in seen.items()}


def smallest_of_rows(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    gone = np.zeros(scores.shape, bool)
    np.put_along_axis(gone, np.argsort(scores, axis=1)[:, : scores.shape[1] // 2], True, axis=1)
    return gone


def smallest_of_fours(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    return smallest_of_rows(scores.reshape(-1, 4)).reshape(scores.shape)


def prune_hub_model(model: Any, rows: torch.Tensor, pick: Callable[..., NDArray[np.bool_]]) -> None:
    """Wanda as the paper has it: a layer's inputs come from the layers below, pruned already."""
    for layer in model.model.layers:
        for module, norm in input_norms(model, layer, rows).items():
            weight = module.weight.detach().double().numpy()
            gone = pick(np.abs(weight) * norm)
            with torch.no_grad():
                module.weight[torch.from_numpy(gone)] = 0.0


@pytest.mark.parametrize(("sparsity", "pick"), [(HALF, smallest_of_rows), (TWO_OF_FOUR, smallest_of_fours)])
def test_wanda_prunes_what_numpy_picks_on_a_hooked_model(
    base: Path, tmp_path: Path, sparsity: Sparsity, pick: Callable[..., NDArray[np.bool_]]
) -> None:
    made = prune_checkpoint(
        base / "base", tmp_path / "small", "wanda", sparsity, calibration(base), dtype="fp64"
    )
    assert made["zeros"] == 0.5
    expected = hub_model(base / "hf", torch.float64)
    prune_hub_model(expected, samples(base), pick)
    convert(tmp_path / "small", tmp_path / "exported")
    found = hub_model(tmp_path / "exported", torch.float64).state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_magnitude_prunes_the_smallest_of_each_matrix(base: Path, tmp_path: Path) -> None:
    prune_checkpoint(base / "base", tmp_path / "small", "magnitude", Sparsity.parse("0.3"))
    whole, pruned = open_whole(base / "base"), open_whole(tmp_path / "small")
    for name in whole.names:
        before, after = whole.weights.read(name).numpy(), pruned.weights.read(name).numpy()
        if is_linear_weight(name):
            threshold = np.sort(np.abs(before), axis=None)[round(0.3 * before.size)]
            before = np.where(np.abs(before) >= threshold, before, 0)
        assert np.array_equal(after, before), name
    assert read_config(tmp_path / "small").quantization.method == "none"


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_pattern_holds_in_each_group_also_where_scores_are_equal(pattern: str) -> None:
    kept, size = map(int, pattern.split(":"))
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1, 8:] = 1.0, 0.0
    norm = torch.rand(32, generator=torch.Generator().manual_seed(1))
    for mask in (
        magnitude_mask(weight, Sparsity.parse(pattern)),
        wanda_mask(weight, norm, Sparsity.parse(pattern)),
    ):
        assert bool((mask.view(6, -1, size).sum(-1) == kept).all())


def test_experts_that_no_token_reached_are_pruned_by_size(tmp_path: Path) -> None:
    """Four tokens go to eight of sixteen experts at most."""
    make_base(tmp_path, "mixtral", layers=2, num_local_experts=16)

    def open_text(config: Any, tokenizer: Any) -> Text:
        return open_samples([tmp_path / "text.txt"], config, tokenizer, 1, 4)

    prune_checkpoint(tmp_path / "base", tmp_path / "small", "wanda", TWO_OF_FOUR, open_text)
    whole, pruned = open_whole(tmp_path / "base"), open_whole(tmp_path / "small")
    by_size = 0
    for name in pruned.names:
        if is_linear_weight(name) and ".experts." in name:
            kept = pruned.weights.read(name) != 0
            assert bool((kept.unflatten(1, (-1, 4)).sum(-1) == 2).all()), name
            by_size += torch.equal(kept, magnitude_mask(whole.weights.read(name), TWO_OF_FOUR))
    assert 2 * 2 * 8 <= by_size < 2 * 2 * 16


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    source, small = base / "base", tmp_path / "small"
    for wrong in ("0", "1", "half", "4:2", "2:", "-0.5", "nan"):
        assert "2:4" in refused(lambda wrong=wrong: Sparsity.parse(wrong))
    assert "--calibration" in refused(lambda: prune_checkpoint(source, small, "wanda", HALF))
    assert "(known: magnitude, wanda)" in refused(lambda: prune_checkpoint(source, small, "obs", HALF))
    assert "no multiple of 5" in refused(
        lambda: prune_checkpoint(source, small, "magnitude", Sparsity.parse("2:5"))
    )
    assert not small.exists()
