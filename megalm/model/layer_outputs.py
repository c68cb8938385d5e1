"""Keeps what some layers of a decoder put out in a forward pass, for losses that look inside."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from megalm.model.state import ForwardState


@contextlib.contextmanager
def keep_layer_outputs(layers: Iterable[Any], state: ForwardState) -> Iterator[None]:
    """While the block runs, put the outputs of those of `layers` that `state.layer_outputs` asks for into it."""
    wanted = [layer for layer in layers if layer.layer_number - 1 in state.layer_outputs]
    handles = [layer.register_forward_hook(_keeper(state.layer_outputs)) for layer in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeper(outputs: dict[int, Tensor | None]) -> Any:
    def keep(layer: Any, inputs: Any, output: Any) -> None:
        # the library's layers return (hidden states, context)
        outputs[layer.layer_number - 1] = output[0] if isinstance(output, tuple) else output

    return keep
