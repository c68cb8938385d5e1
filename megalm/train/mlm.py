"""Task `mlm`: predict masked tokens from both sides and, with a sentence head, tell how two segments belong together."""

import torch
from torch import Tensor, nn

from megalm.config.schema import Config, DataSource
from megalm.dataset.opening import blend_of
from megalm.dataset.pairs import MaskingSettings, PairStream
from megalm.engine.base import MicroBatch
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.wordpiece import masking_vocabulary


def open_pairs(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> PairStream:
    """Open a blend as samples with hidden tokens; UserError without a tokenizer that has BERT's special tokens."""
    if tokenizer is None:
        raise UserError("task `mlm` needs to know [CLS], [SEP], [MASK] and [PAD]: set tokenizer.path")
    settings = MaskingSettings(
        config.mlm.mask_probability,
        config.mlm.whole_word,
        config.mlm.sentence_objective if config.model.sentence_head else None,
        config.mlm.short_sequence_probability,
    )
    vocabulary = masking_vocabulary(tokenizer)
    return PairStream(
        blend_of(sources), config.batch.seq_length, config.run.seed, vocabulary, settings, tokenizer.hash
    )


def mlm_loss(config: Config) -> "MaskedLanguageLoss":
    """The loss of the heads that the model has."""
    sentence = (config.mlm.sentence_objective,) if config.model.sentence_head else ()
    return MaskedLanguageLoss(("mlm", *sentence))


class MaskedLanguageLoss:
    """Mean cross entropy of the masked tokens of the global batch plus that of its pairs (BERT, arXiv:1810.04805, A.2).

    Each part is divided by its own global weight, so that the loss of a batch is the same however it is cut
    (see `engine.base.Loss`). parts: their names, ("mlm",) for a model without sentence head.
    """

    figures: tuple[str, ...] = ()

    def __init__(self, parts: tuple[str, ...] = ("mlm", "sop")) -> None:
        self.parts = parts

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of masked tokens and of pairs that have a class; shape (parts)."""
        weights = [microbatch.loss_mask_BS.sum()]
        if len(self.parts) > 1:
            assert microbatch.classes_B is not None
            weights.append((microbatch.classes_B >= 0).sum().to(weights[0].dtype))
        return torch.stack(weights)

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is the vector of summed losses itself."""
        return model(
            microbatch.tokens_BS,
            microbatch.forward_state(),
            microbatch.token_types_BS,
            labels=microbatch.labels_BS,
            loss_mask=microbatch.loss_mask_BS,
            sentence_labels=microbatch.classes_B,
        )

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Already sums."""
        return output
