"""Dynamic loss scaling: small fp16 gradients survive because the loss is multiplied by as much as the large ones bear."""

import math
from collections.abc import Mapping

from torch import Tensor

from megalm.config.schema import PrecisionConfig


class LossScale:
    """A power of two that halves where gradients overflow and doubles where they have not for a while (arXiv:1710.03740).

    Plain numbers on the host: every rank sees the same gradient norm, so all of them hold the same scale.
    """

    def __init__(self, precision: PrecisionConfig) -> None:
        self.value = precision.initial_loss_scale
        self._minimum = precision.min_loss_scale
        self._window = precision.loss_scale_window
        self._hysteresis = precision.hysteresis
        self._good_steps = 0
        self._overflows_left = self._hysteresis

    def scale(self, loss: Tensor) -> Tensor:
        """What to differentiate instead of the loss."""
        return loss * self.value

    def absorbs(self, loss: float, grad_norm: float) -> bool:
        """Take note of a step's figures; whether its gradients overflowed because of the scale, which falls in answer.

        A loss that is not finite is not the scale's doing, and neither is an overflow at the smallest scale.
        """
        if not math.isfinite(loss):
            return False
        overflow = not math.isfinite(grad_norm)
        can_fall = self.value > self._minimum
        self.update(overflow)
        return overflow and can_fall

    def update(self, overflow: bool) -> None:
        """Take note of a step whose gradients did or did not overflow."""
        if overflow:
            self._good_steps = 0
            self._overflows_left = max(self._overflows_left - 1, 0)
            if self._overflows_left == 0:
                self.value = max(self.value / 2, self._minimum)
            return
        self._good_steps += 1
        if self._good_steps == self._window:
            self._good_steps, self._overflows_left = 0, self._hysteresis
            self.value *= 2

    @property
    def counters(self) -> dict[str, float]:
        """What a checkpoint holds of it."""
        return {
            "loss_scale": self.value,
            "loss_scale_good_steps": self._good_steps,
            "loss_scale_overflows_left": self._overflows_left,
        }

    def load(self, counters: Mapping[str, float]) -> None:
        """Go on from a checkpoint's counters; those of a run in another format hold none, and change nothing."""
        if "loss_scale" in counters:
            self.value = float(counters["loss_scale"])
            self._good_steps = int(counters["loss_scale_good_steps"])
            self._overflows_left = int(counters["loss_scale_overflows_left"])
