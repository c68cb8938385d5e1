"""What engines say of each token of answers: log-probabilities, entropies, values."""

from collections.abc import Callable

from torch import Tensor

from megalm.engine.base import Engine, MicroBatch
from megalm.model.gpt import GPT
from megalm.model.token_logprobs import LogprobHead
from megalm.rlhf.actor_loss import values
from megalm.rlhf.answers import Answers, Floats, measure


def logprobs(engine: Engine, answers: Answers, micro_batch_size: int, temperature: float) -> Floats:
    """Log-probability of each label of the answers, and the entropy of its distribution, (2, N, S). Collective."""

    def make_head(microbatch: MicroBatch) -> Callable[[GPT, Tensor], Tensor]:
        return LogprobHead(microbatch.labels_BS, microbatch.loss_mask_BS, temperature)

    return measure(engine, answers, micro_batch_size, make_head)


def token_values(engine: Engine, answers: Answers, micro_batch_size: int) -> Floats:
    """What a model with a sequence head says at each token, (N, S). Collective."""
    return measure(engine, answers, micro_batch_size, lambda microbatch: values)
