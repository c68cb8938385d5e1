"""Logits of the next token of growing sequences, over pipeline stages, with or without the key/value cache."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.model.gpt import GPT
from megalm.model.state import ForwardState, KVCache
from megalm.parallel.layout import Layout


class NextToken:
    """Runs this rank's parts of the model; every rank of a copy of the model makes the same calls."""

    def __init__(
        self,
        chunks: Sequence[GPT],
        layout: Layout,
        slots: int,
        max_length: int,
        cache: bool,
        pass_tokens: int = 8192,
    ) -> None:
        """slots: sequences that may be open at a time. max_length: tokens of the longest one at its end.

        pass_tokens: with the cache, prompts are read in passes of at most so many tokens in all, which bounds the logits
        and activations that are held at a time.
        """
        self.chunks = chunks
        self.layout = layout
        self.pass_tokens = pass_tokens
        self.cache = KVCache(slots, max_length) if cache else None
        self.cached = [0] * slots

    def logits(self, sequences: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor | None:
        """Logits (B, V) after the last token of each sequence, None on all stages but the last.

        A sequence keeps its slot and only grows between calls. With the cache only the tokens that came since the last
        call are computed. Rows are padded at their right end: what padding writes into the cache lies past the row's
        last token and is overwritten before a query may look at it; the longest new part has to fit behind every row's old one.
        """
        starts = [self.cached[slot] for slot in slots]
        new = [list(sequence[start:]) for sequence, start in zip(sequences, starts, strict=True)]
        lengths = [len(tokens) for tokens in new]
        longest = max(lengths)
        device = self.layout.device
        tokens_BS = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in new], device=device)
        if self.cache is None:
            return self._last(self._run(tokens_BS, ForwardState()), lengths, 0)
        for slot, start, length in zip(slots, starts, lengths, strict=True):
            self.cached[slot] = start + length
        starts_B1, slots_B = torch.tensor(starts, device=device)[:, None], torch.tensor(slots, device=device)
        width = max(1, self.pass_tokens // len(slots))
        result_BV: Tensor | None = None
        for first in range(0, longest, width):
            part_BS = tokens_BS[:, first : first + width]
            state = ForwardState(
                positions_BS=starts_B1 + torch.arange(first, first + part_BS.shape[1], device=device),
                cache=self.cache,
                slots_B=slots_B,
                length=max(starts) + first + part_BS.shape[1],
            )
            part_BV = self._last(self._run(part_BS, state), lengths, first)
            if part_BV is not None:
                ends_here_B1 = torch.tensor([length > first for length in lengths], device=device)[:, None]
                result_BV = part_BV if result_BV is None else torch.where(ends_here_B1, part_BV, result_BV)
        return result_BV

    def _last(self, logits_BSV: Tensor | None, lengths: list[int], first: int) -> Tensor | None:
        """Each row's logits at its last token, or at its last one so far."""
        if logits_BSV is None:
            return None
        rows, width, _ = logits_BSV.shape
        last = [min(max(length - first, 1), width) - 1 for length in lengths]
        return logits_BSV[torch.arange(rows), torch.tensor(last)]

    def _run(self, tokens_BS: Tensor, state: ForwardState) -> Tensor | None:
        """One pass through all stages, in an interleaved pipeline once a chunk; logits (B, S, V) on the last."""
        layout, group = self.layout, self.layout.groups.pp
        before, after = (
            dist.get_global_rank(group, (layout.pp_rank + way) % layout.pp_size) for way in (-1, 1)
        )
        for chunk in self.chunks:
            if not chunk.pre_process:
                hidden_SBH = self._empty(tokens_BS)
                dist.recv(hidden_SBH, before, group=group)
                chunk.set_input_tensor(hidden_SBH)
            output = chunk(tokens_BS, state)
            if chunk.post_process:
                return output
            dist.send(output.contiguous(), after, group=group)
        return None

    def _empty(self, tokens_BS: Tensor) -> Tensor:
        """Room for the hidden states of another stage, (S, B, H)."""
        rows, length = tokens_BS.shape
        model = self.chunks[0].config
        return torch.empty(
            length, rows, model.hidden_size, dtype=model.params_dtype, device=self.layout.device
        )
