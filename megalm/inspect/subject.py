"""A loaded model as its inspection sees it: tokens go in, layers lie between, what comes out, whatever the architecture."""

import numpy as np
import torch
from torch import Tensor

from megalm.config import Config
from megalm.dataset.framing import NO_CLASS, Framing
from megalm.errors import UserError
from megalm.generate.decode import context_length
from megalm.model.build import Model
from megalm.model.state import ForwardState
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.wordpiece import masking_vocabulary

MASK = "[MASK]"
"""In an encoder's text: the hidden token."""


class Subject:
    """A whole model in one process, that is not trained any more. labels: a classifier's, empty for a model that predicts tokens."""

    def __init__(self, model: Model, config: Config, tokenizer: Tokenizer, begin: str | None = None) -> None:
        """begin: special token that a decoder's plain texts begin with."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.is_encoder = config.model.architecture == "bert"
        self.block = model.encoder if self.is_encoder else model.decoder
        self.words = masking_vocabulary(tokenizer) if self.is_encoder else None
        has_head = bool(config.model.sequence_head.outputs)
        self.labels = config.classify.labels if has_head else []
        self.framing = Framing.of(config, tokenizer) if self.is_encoder or has_head else None
        has_table = config.model.position_embedding in ("learned", "sinusoidal")
        no_table = config.batch.seq_length if self.framing else context_length(config)
        self.length = config.model.max_sequence_length if has_table else no_table
        self.device = next(model.parameters()).device
        self.begin = [] if begin is None else [self._begin(begin)]

    def _begin(self, token: str) -> int:
        if self.framing is not None:
            raise UserError(
                "--begin-token is of models that continue texts, and this one frames them: leave it out"
            )
        return self.token(token, "--begin-token")

    def encode(self, text: str) -> list[int]:
        """The ids that the model sees of a text: an encoder's and a classifier's with the tokens around it. UserError if too many or none.

        An encoder's text may hold `[MASK]`.
        """
        parts = text.split(MASK) if self.words else [text]
        if self.framing is not None:
            parts = [part.strip() for part in parts]
        ids = list(self.begin)
        for number, part in enumerate(parts):
            if number and self.words:
                ids.append(self.words.mask_id)
            ids += self.tokenizer.encode(part)
        if self.framing is not None:
            ids = [*self.framing.begin, *ids, self.framing.end]
        if not ids:
            raise UserError("--text is empty: give a text of one token at least")
        if len(ids) > self.length:
            raise UserError(
                f"--text {text[:30]!r}... has {len(ids)} tokens, and the model takes {self.length}: shorten it"
            )
        return ids

    def token(self, spelling: str, option: str) -> int:
        """The id of a text that is one token, or of a token that is spelled so; UserError, naming the option, for all else."""
        ids = self.tokenizer.encode(spelling)
        if len(ids) == 1:
            return ids[0]
        found = self.tokenizer.token_id(spelling)
        if found is None:
            pieces = ", ".join(repr(self.spell(number)) for number in ids)
            raise UserError(
                f"{option} {spelling!r} is {len(ids)} tokens of the model's ({pieces}): name one token"
            )
        return found

    def spell(self, token_id: int) -> str:
        """What a token stands for in a text; bytes that are no UTF-8 by themselves as `\\xNN`."""
        if token_id >= self.tokenizer.vocab_size:
            return f"<unused {token_id}>"
        return self.tokenizer.token_bytes(token_id).decode("utf-8", "backslashreplace")

    def hidden(self, tokens_BS: Tensor) -> Tensor:
        """The last hidden states (S, B, H), behind the final norm where there is one."""
        if self.is_encoder:
            return self.model(tokens_BS, heads=False)
        return self.model(tokens_BS, ForwardState(head=lambda model, hidden_SBH: hidden_SBH))

    def logits(self, hidden_SBH: Tensor) -> Tensor:
        """The output head: logits (B, S, V) of last hidden states, over the tokens that the tokenizer has."""
        return self.model.logits(hidden_SBH)[..., : self.tokenizer.vocab_size]

    def label_logits(self, tokens_BS: Tensor) -> Tensor:
        """A classifier's outputs (B, labels) for rows of framed tokens of one length."""
        assert self.framing is not None
        row = [np.zeros(tokens_BS.shape[1], np.int64)]
        mask_1S = torch.from_numpy(self.framing.rows([row], [NO_CLASS], tokens_BS.shape[1]).loss_mask_BS)
        return self.model(
            tokens_BS, ForwardState(), loss_mask=mask_1S.to(self.device).expand(tokens_BS.shape)
        )

    def tensor(self, ids: list[int]) -> Tensor:
        """A batch of one row (1, S)."""
        return torch.tensor([ids], device=self.device)

    def input_embedding(self) -> Tensor:
        """The embedding's rows of the tokens that the tokenizer has, (V, H)."""
        return self.model.embedding.word_embeddings.weight[: self.tokenizer.vocab_size]

    def output_embedding(self) -> Tensor | None:
        """The output matrix's rows of the same tokens (V, H); None where it is the embedding's, or there is none."""
        if self.labels or self.model.share_embeddings_and_output_weights:
            return None
        return self.model.output_weight()[: self.tokenizer.vocab_size]
