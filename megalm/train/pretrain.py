"""Task `pretrain`: predict the next token."""

from torch import Tensor, nn

from megalm.config.schema import Config, DataSource
from megalm.dataset.stream import TokenStream
from megalm.engine.base import MicroBatch
from megalm.tokenizer.base import Tokenizer


def open_windows(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> TokenStream:
    """Open a blend as windows of text."""
    return TokenStream(
        [(source.path, source.weight) for source in sources],
        config.batch.seq_length,
        config.run.seed,
        reset_at_document_end=config.data.reset_at_document_end,
        expected_tokenizer_hash=tokenizer.hash if tokenizer else None,
        vocab_size=config.model.vocab_size,
    )


class NextTokenLoss:
    """Mean cross entropy over all counted tokens of the global batch (see `engine.base.Loss`)."""

    parts: tuple[str, ...] = ()

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
