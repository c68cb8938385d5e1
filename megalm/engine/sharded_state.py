"""Weights and optimizer as shards of full tensors: copied out to save them, written in one by one to load them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

from megalm.engine.optimizer_state import MASTER, OptimizerState, replicas
from megalm.errors import UserError
from megalm.model.build import Model
from megalm.model.init import canonical_name, shards_in
from megalm.model.lora import is_adapter
from megalm.model.quantized import PARTS, QuantizedWeight
from megalm.model.sequence_head import is_head
from megalm.parallel.layout import Layout

Shard: TypeAlias = Any  # ShardedTensor or, of a gated matrix, ShardedTensorFactory: the library is untyped


class ShardedState:
    """What a checkpoint holds of an engine, by place: `model.NAME` and `optimizer.PART.NAME` of each parameter.

    A place's full tensor has the library's key of the weight, behind `optimizer.PART.` where it is not the weight itself.
    The device never holds a second copy of more than one tensor. chunks: this process's parts of the model; with several,
    NAME begins with the part's number. optimizer: None for a model that is not trained. holes: some of its weights are
    frozen and have none of the optimizer's tensors, so that those are stored a layer and an expert each.
    """

    def __init__(
        self, chunks: Sequence[Model], layout: Layout, optimizer: OptimizerState | None, holes: bool = False
    ) -> None:
        self.chunks = chunks
        self.holes = holes
        self.groups = layout.groups
        self.optimizer = optimizer

    def copy(self) -> dict[str, Shard]:
        """Copies on the CPU of the tensors that this rank writes. Collective over the data-parallel ranks."""
        templates, parameters = self._templates(), self._parameters()
        result: dict[str, Shard] = {}
        adapted = any(map(is_adapter, parameters))
        for name, owner in self._owners(templates).items():
            parameter, template = parameters[name], templates[name]
            if adapted and not is_adapter(name):
                continue  # as it came from the checkpoint that is adapted
            weight = self._gather_weight(parameter, owner)
            if weight is not None:
                result[f"model.{name}"] = _owned(template, template.key, weight)
            if self.holes:
                template = alone(template)
            for part in self._parts(parameter):
                whole = self.optimizer.gather(parameter, part, owner) if self.optimizer else None
                if whole is not None:
                    key = f"optimizer.{part}.{template.key}"
                    result[f"optimizer.{part}.{name}"] = _owned(template, key, whole)
        return result

    def empty(self, stored: Mapping[str, torch.dtype], with_optimizer: bool) -> dict[str, Shard]:
        """What to read of a checkpoint, as tensors without memory (on torch's meta device), whole on every rank.

        stored: its tensors' names and formats. Raises UserError if one is missing; of a model with adapters a checkpoint may
        hold these alone, or all the others, and without the optimizer the sequence head may be missing. fp32 masters count
        as weights: they are read even without the optimizer, and into the weights themselves where those have more than 16
        bits. Weights that are quantised here come from the checkpoint's weights, whatever the run's format.
        """
        templates = self._templates()
        result: dict[str, Shard] = {}
        for name, parameter in self._wanted(stored, templates).items():
            template, parts = templates[name], self._parts(parameter)
            key = template.key
            if is_head(key) and key not in stored and not with_optimizer:
                continue  # a head for another task than the stored model's stays as it was drawn
            master = _stored_part(template, MASTER, stored)
            wanted = {f"model.{name}": (template, key)}
            if master[1] not in stored:
                parts = tuple(part for part in parts if part != MASTER)
            elif parameter.dtype not in (torch.bfloat16, torch.float16) and not parameter.is_meta:
                wanted = {f"model.{name}": master}
            if not with_optimizer:
                parts = tuple(part for part in parts if part == MASTER)
            wanted |= {f"optimizer.{part}.{name}": _stored_part(template, part, stored) for part in parts}
            for place, (shard, key) in wanted.items():
                if key not in stored:
                    raise UserError(
                        f"the checkpoint has no tensor {key}: it belongs to another kind of model"
                    )
                data = torch.empty_like(template.data, dtype=stored[key], device="meta")
                result[place] = _filled(shard, key, data)
        return result

    def _wanted(self, stored: Mapping[str, torch.dtype], templates: Mapping[str, Shard]) -> dict[str, Any]:
        """The parameters to read: all, or one kind where there are adapters and the checkpoint holds one kind."""
        parameters = self._parameters()
        if not any(map(is_adapter, parameters)):
            return parameters
        holds_adapters = any(map(is_adapter, stored))
        return {
            name: parameter for name, parameter in parameters.items() if is_adapter(name) == holds_adapters
        }

    @torch.no_grad()
    def load(self, portion: Mapping[str, Tensor]) -> None:
        """Take over tensors read into places of `empty`, in its order: weights become masters until masters come."""
        parameters = self._parameters()
        for place in sorted(portion):  # model.* before optimizer.*
            kind, _, name = place.partition(".")
            if kind == "model":
                parameter, part = parameters[name], MASTER
                self._write_weight(parameter, portion[place])
            else:
                part, _, name = name.partition(".")
                parameter = parameters[name]
            if self.optimizer and part in self._parts(parameter):
                self.optimizer.write(parameter, part, portion[place])

    @torch.no_grad()
    def weights_changed(self) -> None:
        """Let the optimizer go on from the weights as they are now."""
        for parameter in self._parameters().values():
            if self.optimizer and MASTER in self._parts(parameter):
                self.optimizer.write(parameter, MASTER, parameter.detach())

    def _gather_weight(self, parameter: nn.Parameter, owner: int) -> Tensor | None:
        """A copy on the CPU on data-parallel rank `owner`, None on the others. Collective."""
        return (
            parameter.detach().to("cpu", copy=True)
            if owner == replicas(parameter, self.groups).rank()
            else None
        )

    def _write_weight(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Take a whole tensor over, the same on every data-parallel rank. Collective."""
        getattr(parameter, "quantized", parameter).copy_(whole)

    def _parts(self, parameter: Tensor) -> tuple[str, ...]:
        return self.optimizer.names if self.optimizer and parameter.requires_grad else ()

    def _owners(self, templates: Mapping[str, Shard]) -> dict[str, int]:
        """Which of its replicas writes each parameter: the one with the fewest bytes so far, so that all write alike.

        Experts that are shared out have other replicas and are counted apart. Copies that another tensor-parallel rank or
        pipeline stage writes are left out.
        """
        written: dict[dist.ProcessGroup, list[int]] = {}
        owners = {}
        for name, parameter in self._parameters().items():
            tied_copy, tensor_replica, _ = templates[name].replica_id
            if tied_copy or tensor_replica:
                continue
            group = replicas(parameter, self.groups)
            bytes_by_rank = written.setdefault(group, [0] * group.size())
            owners[name] = bytes_by_rank.index(min(bytes_by_rank))
            precise = torch.promote_types(parameter.dtype, torch.float32)
            width = parameter.itemsize + len(self._parts(parameter)) * precise.itemsize
            bytes_by_rank[owners[name]] += templates[name].data.numel() * width
        return owners

    def _parameters(self) -> dict[str, Any]:
        """All that this process holds, by names that no two of its chunks share; of stored codes these, not the weight."""
        model: nn.Module = self.chunks[0] if len(self.chunks) == 1 else nn.ModuleList(self.chunks)
        held: dict[str, Any] = dict(model.named_parameters())
        for name, module in model.named_modules():
            if isinstance(module, QuantizedWeight) and module.form.stored:
                assert (
                    module.scales_and_zeros is None
                )  # its codes are in a kernel's order, not in a checkpoint's
                del held[f"{name.removesuffix('quantized')}weight"]
                parts = {part: getattr(module, part) for part in PARTS}
                held |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
        return held

    def _templates(self) -> dict[str, Shard]:
        """Each parameter's place in the full tensor."""
        names = {_address(parameter): name for name, parameter in self._parameters().items()}
        metadata = {"dp_cp_group": self.groups.dp_cp}
        sharded = [chunk.sharded_state_dict(metadata=metadata) for chunk in self.chunks]
        return {
            names[_address(value.data)]: value
            for value in nested_values(sharded)
            if isinstance(value, ShardedTensor | ShardedTensorFactory)
        }


def alone(template: Shard) -> Shard:
    """The place of a parameter in a tensor of its layer and expert alone, by our own name of it."""
    first = next(shards_in({"template": template}))
    if isinstance(template, ShardedTensor):
        return replace(_without_lead(template), key=canonical_name(first))

    def build_alone(*arguments: Any) -> list[ShardedTensor]:
        return [_without_lead(part) for part in template.build_fn(*arguments)]

    return replace(template, key=canonical_name(first), build_fn=build_alone)


def _without_lead(shard: ShardedTensor) -> ShardedTensor:
    lead = shard.prepend_axis_num
    axes = {
        name: getattr(shard, name)[lead:] for name in ("global_shape", "global_offset", "axis_fragmentations")
    }
    return replace(shard, prepend_axis_num=0, **axes)


def _stored_part(template: Shard, part: str, stored: Mapping[str, Any]) -> tuple[Shard, str]:
    """Where a checkpoint holds a part of the optimizer's state of a parameter, and under which key."""
    for shard in (alone(template), template):
        if (key := f"optimizer.{part}.{shard.key}") in stored:
            break
    return shard, key


def _address(tensor: Tensor) -> int:
    """Tells tensors apart, also such without memory."""
    return id(tensor) if tensor.is_meta else tensor.data_ptr()


def _filled(template: Shard, key: str, data: Tensor) -> Shard:
    extra = {"dtype": data.dtype} if isinstance(template, ShardedTensor) else {}
    return replace(template, key=key, data=data, **extra)


def _owned(template: Shard, key: str, data: Tensor) -> Shard:
    """A shard that this data-parallel rank writes."""
    tied_copy, tensor_replica, _ = template.replica_id
    shard = replace(_filled(template, key, data), replica_id=(tied_copy, tensor_replica, 0))
    if isinstance(shard, ShardedTensorFactory):
        shard.build_fn = _with_own_memory(shard.build_fn)
    return shard


def _with_own_memory(build: Callable[..., Any]) -> Callable[..., Any]:
    """Let the halves of a gated matrix not be views of it: the library's writer copies views, all of them at once."""

    def build_apart(*arguments: Any) -> Any:
        halves = build(*arguments)
        for half in nested_values(halves):
            half.data = half.data.clone()
        return halves

    return build_apart
