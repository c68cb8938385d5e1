"""Task `pretrain`: predict the next token."""

from torch import Tensor, nn

from megalm.engine.base import MicroBatch


class NextTokenLoss:
    """Mean cross entropy over all counted tokens of the global batch (see `engine.base.Loss`)."""

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of counted tokens, or the sum of their weights."""
        return microbatch.loss_mask_BS.sum()

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is the summed loss itself."""
        return model(
            microbatch.tokens_BS,
            microbatch.forward_state(),
            labels=microbatch.labels_BS,
            loss_mask=microbatch.loss_mask_BS,
        )

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Already a sum."""
        return output
