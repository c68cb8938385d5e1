"""Which share of the learning rate and which weight decay each parameter has: `optimizer.groups` and `layer_lr_decay`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from torch import nn

from megalm.config.schema import Config, OptimizerConfig
from megalm.model.parameters import check_patterns, depth, gather_names, matches, parameter_names
from megalm.parallel.layout import Layout


class Share(NamedTuple):
    """What parameters of one optimizer group have in common; the learning rate is the schedule's times `lr_scale`."""

    lr_scale: float
    weight_decay: float


def parameter_shares(chunks: Sequence[Any], config: Config, layout: Layout) -> dict[nn.Parameter, Share]:
    """The share of each trained parameter of this process.

    chunks: its parts of the model, before anything wraps them. Collective. UserError for a group that fits no parameter.
    """
    optimizer, num_layers = config.optimizer, config.model.num_layers
    if not optimizer.groups and optimizer.layer_lr_decay == 1:
        trained = [p for chunk in chunks for p in chunk.parameters() if p.requires_grad]
        return {parameter: Share(1.0, _usual_decay(parameter, optimizer)) for parameter in trained}
    names = {p: name for p, name in parameter_names(chunks, layout).items() if p.requires_grad}
    if not layout.without_memory:  # a rehearsal sees one stage of the pipeline
        everywhere = gather_names(names.values(), layout)
        for number, group in enumerate(optimizer.groups):
            check_patterns(f"optimizer.groups.{number}.match", group.match, everywhere)
    return {parameter: _share(parameter, name, optimizer, num_layers) for parameter, name in names.items()}


def _share(parameter: nn.Parameter, name: str, optimizer: OptimizerConfig, num_layers: int) -> Share:
    scale = optimizer.layer_lr_decay ** (num_layers + 1 - depth(name, num_layers))
    decay = _usual_decay(parameter, optimizer)
    for group in optimizer.groups:
        if matches(name, group.match):
            return Share(scale * group.lr_scale, decay if group.weight_decay is None else group.weight_decay)
    return Share(scale, decay)


def _usual_decay(parameter: nn.Parameter, optimizer: OptimizerConfig) -> float:
    """Matrices decay; norms and biases do not."""
    return optimizer.weight_decay if parameter.dim() > 1 else 0.0


def group_overrides(shares: dict[nn.Parameter, Share]) -> dict[ParamKey, Any]:
    """The shares in the form that Megatron-Core's `get_megatron_optimizer` takes; its groups then hold Share's fields."""
    return {
        ParamKey(
            predicate=ParamPredicate(str(share), lambda p, share=share: shares[p] == share)
        ): share._asdict()
        for share in set(shares.values())
    }


def torch_groups(shares: dict[nn.Parameter, Share]) -> list[dict[str, Any]]:
    """The shares as parameter groups of a torch optimizer, with Share's fields; none is empty."""
    return [
        {"params": [p for p, found in shares.items() if found == share], **share._asdict()}
        for share in sorted(set(shares.values()), reverse=True)
    ]


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Give each group of an optimizer its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def rates_by_name(config: Config, lr: float) -> dict[str, float]:
    """What is logged beside the schedule's `lr`: `lr_NAME` of each group, `lr_first_layer` under layer_lr_decay.

    A group's is that of matched parameters above the layers, which layer_lr_decay leaves alone.
    """
    optimizer = config.optimizer
    rates = {f"lr_{group.name}": lr * group.lr_scale for group in optimizer.groups}
    if optimizer.layer_lr_decay < 1:
        rates["lr_first_layer"] = lr * optimizer.layer_lr_decay**config.model.num_layers
    return rates
