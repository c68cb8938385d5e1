"""Integrated gradients: how much of a prediction each token of the text accounts for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megalm.errors import UserError
from megalm.inspect.subject import Subject

FIRST_POINTS, MOST_POINTS = 32, 1024
"""Of the integral: as many as it takes for TOLERANCE, between these."""
TOLERANCE = 1e-3
"""Largest gap of completeness, as a share of the sum of the attributions' sizes."""
ROWS = 16  # points of the path in one forward pass


def integrated_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, points: int
) -> Tensor:
    """(x - x') x the mean gradient of F on the straight path from the baseline x' to x (arXiv:1703.01365, eq. 1), of x's shape.

    function: F, from a batch of inputs (B, ...) to B numbers. The integral is taken by Gauss and Legendre's rule with so many points, which
    for smooth functions needs far fewer than the paper's sum (eq. 3).
    """
    nodes, shares = np.polynomial.legendre.leggauss(points)
    column = (-1, *(1 for _ in x.shape))
    total = torch.zeros_like(x)
    for start in range(0, points, ROWS):
        rows = slice(start, start + ROWS)
        place, share = (
            torch.from_numpy(part[rows]).to(x).view(column) for part in ((nodes + 1) / 2, shares / 2)
        )
        with torch.enable_grad():
            path = (baseline + place * (x - baseline)).requires_grad_()
            (gradient,) = torch.autograd.grad(function(path).sum(), path)
        total += (share * gradient).sum(0)
    return (x - baseline) * total


@dataclass(frozen=True)
class Attribution:
    """Why the model predicts `target` (a token, or the number of a label) at `position` (None of a classifier).

    logprob: of the target, in nats; baseline_logprob: the same where every token's embedding is that of the token `baseline`. scores: of each
    token; their sum is the difference (completeness) but for `gap`. points: of the integral.
    """

    position: int | None
    target: int
    baseline: int
    logprob: float
    baseline_logprob: float
    scores: list[float]
    gap: float
    points: int


def explain(
    subject: Subject,
    ids: list[int],
    position: int | None = None,
    target: str | None = None,
    baseline: str | None = None,
) -> Attribution | None:
    """Integrated gradients of log p(target) with respect to the tokens' embeddings; None where an encoder's text hides nothing.

    position: by default a decoder's last token, whose prediction is what follows the text, and an encoder's first `[MASK]`. target: by default
    the likeliest token, or label. baseline: by default the token that ends a document, of an encoder `[MASK]`. Positions and token types are the same in
    the baseline. UserError where one of them is not the model's.
    """
    place = _position(subject, ids, position)
    if place is None and not subject.labels:
        return None
    tokens_1S = subject.tensor(ids)
    embed = subject.model.embedding.word_embeddings
    empty = _baseline(subject, baseline)
    with torch.no_grad():
        x_SH = embed(tokens_1S)[0]
        baseline_SH = embed(torch.full_like(tokens_1S, empty))[0]

    def log_probabilities(words_BSH: Tensor) -> Tensor:
        """(B, V), or (B, labels)."""
        hook = embed.register_forward_hook(lambda module, inputs, output: words_BSH)
        try:
            rows_BS = tokens_1S.expand(len(words_BSH), -1)
            if place is None:
                logits = subject.label_logits(rows_BS)
            else:
                logits = subject.logits(subject.hidden(rows_BS)[place : place + 1])[:, 0]
        finally:
            hook.remove()
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    with torch.no_grad():
        ends_2V = log_probabilities(torch.stack([x_SH, baseline_SH]))
    aim = _target(subject, target, ends_2V[0])
    logprob, baseline_logprob = ends_2V[:, aim].tolist()
    points = FIRST_POINTS
    while True:
        found_SH = integrated_gradients(lambda x: log_probabilities(x)[:, aim], x_SH, baseline_SH, points)
        scores_S = found_SH.double().sum(-1)
        gap = abs(float(scores_S.sum()) - (logprob - baseline_logprob))
        if gap <= TOLERANCE * float(scores_S.abs().sum()) or points >= MOST_POINTS:
            break
        points *= 2
    return Attribution(place, aim, empty, logprob, baseline_logprob, scores_S.tolist(), gap, points)


def _position(subject: Subject, ids: list[int], given: int | None) -> int | None:
    """The place in the text whose prediction is explained; None of a classifier, and where an encoder's text hides nothing."""
    if subject.labels:
        if given is not None:
            raise UserError(
                "--position is of models that predict tokens, and this one labels texts: leave it out"
            )
        return None
    if given is None:
        if subject.words is None:
            return len(ids) - 1
        mask = subject.words.mask_id
        return ids.index(mask) if mask in ids else None
    if not -len(ids) <= given < len(ids):
        raise UserError(f"--position {given}: the text has {len(ids)} tokens; give 0 to {len(ids) - 1}")
    return given % len(ids)


def _target(subject: Subject, given: str | None, logprob_V: Tensor) -> int:
    if given is None:
        return int(logprob_V.argmax())
    if not subject.labels:
        return subject.token(given, "--target")
    if given not in subject.labels:
        raise UserError(f"--target {given!r} is no label of the model's ({', '.join(subject.labels)})")
    return subject.labels.index(given)


def _baseline(subject: Subject, given: str | None) -> int:
    if given is not None:
        return subject.token(given, "--baseline")
    return subject.tokenizer.eod_id if subject.words is None else subject.words.mask_id
