"""Runs calibration text through a model layer by layer: what comes into its linear layers, what each layer makes of its input."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from megalm.compress.masks import Sparsity, wanda_mask
from megalm.compress.text import Text
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.generate.mode import decoding
from megalm.model.lora import linear_layers
from megalm.model.parameters import parameter_names


class _Caught(Exception):
    """The first layer was reached."""


Arguments = dict[str, Any]


class LayerWalk:
    """The decoder's layers one after another over all batches of a text, on one process."""

    def __init__(self, engine: Engine, text: Text) -> None:
        self.engine = engine
        self.layers: Sequence[nn.Module] = list(engine.model.decoder.layers)
        self.inputs: list[Arguments] = []
        """What the next layer is called with, a batch each."""
        for microbatches in text.batches(engine.layout):
            self.inputs += [self._catch(microbatch) for microbatch in microbatches]

    def _catch(self, microbatch: Any) -> Arguments:
        caught: list[Arguments] = []

        def catch(_: nn.Module, arguments: tuple[Any, ...], named: Arguments) -> None:
            assert not arguments
            caught.append(named)
            raise _Caught

        handle = self.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with decoding(self.engine.chunks):
                self.engine.model(microbatch.tokens_BS, microbatch.forward_state())
        except _Caught:
            pass
        finally:
            handle.remove()
        return caught[0]

    def run(self, layer: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """(Input, output) of the layer, (S, B, H), for each batch."""
        with decoding(self.engine.chunks):
            for arguments in self.inputs:
                output = layer(**arguments)
                yield arguments["hidden_states"], output[0] if isinstance(output, tuple) else output

    def advance(self, layer: nn.Module) -> None:
        """Let the layer's outputs be what the next one is called with."""
        outputs = [output for _, output in self.run(layer)]
        for arguments, output in zip(self.inputs, outputs, strict=True):
            arguments["hidden_states"] = output


def wanda_masks(engine: Engine, text: Text, sparsity: Sparsity) -> dict[str, Tensor]:
    """Masks of all linear layers by our names of their weights, which are pruned in `engine` on the way.

    As in the paper (section 3): a layer's scores come from what the layers below, pruned already, make of the text. Matrices
    of experts that no token came to are pruned by size. UserError where the text leads to numbers that are not finite.
    """
    names = parameter_names(engine.chunks, engine.layout)
    walk = LayerWalk(engine, text)
    masks = {}
    for layer in walk.layers:
        linear = [module for _, module in linear_layers(layer)]
        with _input_norms(linear) as norms:
            for _ in walk.run(layer):
                pass
        for module, squares in norms.items():
            name = names[module.weight]
            if not bool(squares.isfinite().all()):
                raise UserError(
                    f"the calibration text leads to numbers at {name} that are not finite: is the model whole?"
                )
            norm = squares.sqrt() if bool(squares.any()) else torch.ones_like(squares)
            mask = wanda_mask(module.weight.detach().float(), norm.float(), sparsity)
            with torch.no_grad():
                module.weight.mul_(mask)
            masks[name] = mask.cpu()
        walk.advance(layer)
    return masks


@contextmanager
def _input_norms(modules: Sequence[Any]) -> Iterator[dict[Any, Tensor]]:
    """Within it the squares of each module's inputs are summed over the tokens: (inputs), fp64."""
    sums = {module: torch.zeros(module.weight.shape[1], dtype=torch.float64) for module in modules}

    def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        squares = arguments[0].detach().double().square().flatten(0, -2).sum(0)
        sums[module] += squares.cpu()

    handles = [module.register_forward_pre_hook(add) for module in modules]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def block_influence(engine: Engine, text: Text) -> list[float]:
    """1 - mean over all tokens of the cosine of a layer's input and output, for each layer (ShortGPT, arXiv:2403.03853)."""
    walk, result = LayerWalk(engine, text), []
    for layer in walk.layers:
        result.append(_mean(walk, layer, lambda cosine_SB: (1 - cosine_SB).flatten()))
        walk.advance(layer)
    return result


def _mean(walk: LayerWalk, layer: nn.Module, of: Callable[[Tensor], Tensor]) -> float:
    parts = [of(_cosine(before, after)) for before, after in walk.run(layer)]
    return float(torch.cat(parts).mean())


def angular_distances(engine: Engine, text: Text, count: int) -> list[float]:
    """Mean angle, as a share of pi, that layers l to l + count - 1 turn each sample's last token by, for each l.

    The deeper layers of arXiv:2403.17887, section 3: arccos of the cosine of layer l's input and layer l + count's.
    """
    walk = LayerWalk(engine, text)
    states: list[list[Tensor]] = [[arguments["hidden_states"][-1] for arguments in walk.inputs]]
    for layer in walk.layers:
        walk.advance(layer)
        states.append([arguments["hidden_states"][-1] for arguments in walk.inputs])
    distances = []
    for first in range(len(states) - count):
        pairs = zip(states[first], states[first + count], strict=True)
        cosines = torch.cat([_cosine(before, after) for before, after in pairs])
        distances.append(float(cosines.clamp(-1, 1).arccos().mean()) / math.pi)
    return distances


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=-1)
