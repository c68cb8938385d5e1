"""Log-probabilities of answers: sums over their tokens, whatever ranks hold the vocabulary and the sequence."""

from torch import Tensor, nn

from megalm.engine.base import MicroBatch
from megalm.model.shared import SumOverRanks


def run_token_losses(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    """Run the model's stage: on the last one -log p of each label, (B, S)."""
    return model(microbatch.tokens_BS, microbatch.forward_state(), labels=microbatch.labels_BS)


def answer_logprobs(losses_BS: Tensor, microbatch: MicroBatch) -> Tensor:
    """log p(answer | prompt), (B), of what `run_token_losses` gave; the same on all ranks that share the sequences."""
    sum_B = -(losses_BS * microbatch.loss_mask_BS).sum(1)
    if microbatch.context is None:
        return sum_B
    return SumOverRanks.apply(sum_B, microbatch.context.group)
