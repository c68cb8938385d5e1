"""Megatron-LM's older checkpoints: a file for each tensor-parallel rank, pipeline stage and expert-parallel rank."""

import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalm.config.model import ModelConfig
from megalm.convert.parameters import COLUMNS, HALVES, ROWS, decoder_parameters, fused_norm_name
from megalm.convert.stored import VOCABULARY
from megalm.convert.torch_files import load_safely
from megalm.errors import UserError

FILE = "model_optim_rng.pt"
_NAME = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?(?:_(\d{3}))?")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.experts\.(.*)\.(weight|bias)")


@dataclass
class _Part:
    """One part of the model as all tensor-parallel ranks hold it: `tensors[tp][ep]` by Megatron-LM's local names."""

    first_layer: int
    layers: int
    tensors: list[list[dict[str, Tensor]]]


class RankFiles:
    """The parameters of the whole model, each put together from the ranks' files, which are mapped, not read."""

    model: ModelConfig
    """Set before the first tensor is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.folder = files[0].parent.parent
        found: dict[tuple[int, int, int], Any] = {}
        for file in files:
            name = _NAME.fullmatch(file.parent.name)
            if name is None:
                raise UserError(f"{file.parent}: not the name of a rank (mp_rank_TT, mp_rank_TT_PPP)")
            tp, second, third = (int(number or 0) for number in name.groups())
            found[tp, second, third] = load_safely(file, "a rank's file of Megatron-LM")
        self.arguments = next(iter(found.values())).get("args")
        self.parts = self._arrange(found)

    def outline(self, name: str) -> Tensor:
        """A parameter by our name without numbers, on torch's meta device."""
        return self._join(name, meta=True)

    def read(self, name: str) -> Tensor:
        """A parameter by our name, without padded rows of the vocabulary."""
        return self._join(name, meta=False)

    def _arrange(self, found: dict[tuple[int, int, int], Any]) -> list[_Part]:
        """The parts of the model in the order of their layers: of an interleaved pipeline each stage holds several."""
        tps, stages, eps = ({key[axis] for key in found} for axis in range(3))
        if (
            len(stages) > 1
            and len(eps) == 1
            and getattr(self.arguments, "pipeline_model_parallel_size", 0) == 1
        ):
            # without pipeline stages the second number is the expert-parallel rank
            found = {(tp, 0, ep): content for (tp, ep, _), content in found.items()}
            stages, eps = eps, stages
        if len(found) != len(tps) * len(stages) * len(eps):
            raise UserError(f"{self.folder}: files of some ranks are missing; copy all mp_rank_* directories")
        first = found[0, 0, 0]
        chunks = sorted(
            (key for key in first if re.fullmatch(r"model\d*", key)), key=lambda k: int(k[5:] or 0)
        )
        if not chunks:
            raise UserError(f"{self.folder}: no model in mp_rank_00; use another checkpoint")
        parts: list[_Part] = []
        layers = 0
        for chunk in chunks:
            for stage in sorted(stages):
                tensors = [[found[tp, stage, ep][chunk] for ep in sorted(eps)] for tp in sorted(tps)]
                numbers = {int(m[1]) for key in tensors[0][0] if (m := _LAYER.match(key))}
                parts.append(_Part(layers, len(numbers), tensors))
                layers += len(numbers)
        return parts

    def _join(self, name: str, meta: bool) -> Tensor:
        part, local = self._place(name)
        ranks = part.tensors
        expert = _EXPERT.fullmatch(local)
        if expert is None:
            pieces = [self._get(by_expert[0], name, local) for by_expert in ranks]
        else:
            per_rank = self.model.moe.num_experts // len(ranks[0])
            owner, number = divmod(int(expert[2]), per_rank)
            spellings = (
                f"{expert[1]}.local_experts.{number}.{expert[3]}.{expert[4]}",
                f"{expert[1]}.{expert[3]}.{expert[4]}{number}",
            )
            pieces = [self._get(by_expert[owner], name, *spellings) for by_expert in ranks]
        whole = _together(name, [p.to("meta") if meta else p for p in pieces], self.model.gated)
        return whole[: self.model.vocab_size] if name in VOCABULARY else whole

    def _place(self, name: str) -> tuple[_Part, str]:
        """The part that holds a parameter, and the parameter's name in it."""
        layer = _LAYER.match(name)
        if layer is None:
            return (self.parts[0] if name.startswith("embedding.") else self.parts[-1]), name
        number = int(layer[1])
        for part in self.parts:
            if part.first_layer <= number < part.first_layer + part.layers:
                return part, f"decoder.layers.{number - part.first_layer}.{layer[2]}"
        raise UserError(f"{self.folder} has no layer {number}: its arguments describe another model")

    def _get(self, tensors: dict[str, Tensor], name: str, *spellings: str) -> Tensor:
        for spelling in spellings:
            for key in (spelling, fused_norm_name(spelling)):
                if isinstance(tensors.get(key), Tensor):
                    return tensors[key]
        raise UserError(f"{self.folder} has no tensor {name}: its arguments describe another model")


def _together(name: str, pieces: list[Tensor], gated: bool) -> Tensor:
    """The whole of the tensor-parallel ranks' pieces."""
    if name.endswith(HALVES) and gated:
        halves = zip(*(piece.chunk(2) for piece in pieces), strict=True)
        return torch.cat([torch.cat(half) for half in halves])
    if name.endswith((*ROWS, *HALVES)):
        return torch.cat(pieces)
    if name.endswith(COLUMNS):
        return torch.cat(pieces, dim=1)
    return pieces[0].clone()


def write_ranks(
    folder: Path,
    args: Namespace,
    model: ModelConfig,
    read: Callable[[str], Tensor],
    tensor_ranks: int,
    stages: int,
    fused_norms: bool,
) -> None:
    """Write a rank's file after another into `folder`; one rank's share of the model is in memory at a time.

    read: gives a parameter by our name, padded. fused_norms: norms are named as Transformer Engine's layers do, under
    the matrix behind them. The model must be one that can be cut so.
    """
    per_stage = model.num_layers // stages
    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = tensor_ranks, stages
    for rank in range(tensor_ranks):
        for stage in range(stages):
            state = {
                local_name(name, stage * per_stage, fused_norms, model): _share(
                    name, read(name), rank, tensor_ranks, model.gated
                )
                for name in decoder_parameters(model)
                if stage in _stages_of(name, per_stage, stages)
            }
            if model.tie_embeddings and 0 < stage == stages - 1:
                embedding = "embedding.word_embeddings.weight"
                state["output_layer.weight"] = _share(embedding, read(embedding), rank, tensor_ranks, False)
            path = folder / (f"mp_rank_{rank:02d}_{stage:03d}" if stages > 1 else f"mp_rank_{rank:02d}")
            path.mkdir(parents=True)
            content = {"args": args, "checkpoint_version": 3.0, "iteration": 0, "model": state}
            torch.save(content, path / FILE)


def _stages_of(name: str, per_stage: int, stages: int) -> tuple[int, ...]:
    layer = _LAYER.match(name)
    if layer is not None:
        return (int(layer[1]) // per_stage,)
    return (0,) if name.startswith("embedding.") else (stages - 1,)


def local_name(name: str, first_layer: int, fused_norms: bool, model: ModelConfig) -> str:
    """What a parameter of ours is called on the stage that begins with layer `first_layer`."""
    layer = _LAYER.match(name)
    if layer is None:
        return name
    rest = layer[2]
    if fused_norms:
        rest = fused_norm_name(rest, mlp=not model.moe.is_moe_layer(int(layer[1])))
    rest = re.sub(r"experts\.(\d+)\.experts\.", r"experts.local_experts.\1.", rest)
    return f"decoder.layers.{int(layer[1]) - first_layer}.{rest}"


def _share(name: str, whole: Tensor, rank: int, ranks: int, gated: bool) -> Tensor:
    """What one tensor-parallel rank holds of a parameter."""
    if name.endswith(HALVES) and gated:
        return torch.cat([half.chunk(ranks)[rank] for half in whole.chunk(2)])
    if name.endswith((*ROWS, *HALVES)):
        return whole.chunk(ranks)[rank].clone()
    if name.endswith(COLUMNS):
        return whole.chunk(ranks, dim=1)[rank].clone()
    return whole
