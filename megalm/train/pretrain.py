"""Task `pretrain`: predict the next token."""

from torch import Tensor, nn

from megalm.config.schema import Config, DataSource
from megalm.dataset.opening import open_text
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.stream import TokenStream
from megalm.engine.base import MicroBatch
from megalm.tokenizer.base import Tokenizer


def open_windows(
    config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> TokenStream | PackStream:
    """Open a blend as windows of text or packs of documents."""
    return open_text(config, sources, tokenizer.hash if tokenizer else None)


class NextTokenLoss:
    """Mean cross entropy over all counted tokens of the global batch (see `engine.base.Loss`)."""

    parts: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

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
