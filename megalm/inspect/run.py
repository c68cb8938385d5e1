"""What `megalm inspect` tells of a model's inside: neighbours of tokens, and of each text attention, attribution and the logit lens."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from megalm import atomic
from megalm.checkpoint.directory import find_checkpoint, read_state
from megalm.generate.load import CLASSIFIER, open_model
from megalm.inspect.attribution import Attribution, explain
from megalm.inspect.lens import Lens, logit_lens
from megalm.inspect.neighbours import nearest
from megalm.inspect.page import draw_page
from megalm.inspect.request import InspectRequest
from megalm.inspect.subject import Subject
from megalm.inspect.trace import head_figures, trace

Result = dict[str, Any]


def main(request: InspectRequest, output: Path | None = None) -> Result:
    """Look into the model; returns `neighbours` of tokens and `texts`, and writes them as a page to `output`, if it is given.

    `neighbours`: of each token asked for and of those in the texts, by cosine of the input embeddings and of the output's (None where that is
    the same matrix, or there is none). `texts`: each one's `tokens`, `attention` (layer, head, query, key), `heads` (see `HeadFigures`), `attribution`
    (None: see `explain`) and `lens` (None of a classifier).
    """
    checkpoint = find_checkpoint(request.checkpoint, request.step)
    where = replace(request, checkpoint=str(checkpoint), step=None)
    engine, config, tokenizer = open_model(where, "gpt", "bert", CLASSIFIER)
    (model,) = engine.chunks
    subject = Subject(model, config, tokenizer, request.begin_token)
    encoded = [subject.encode(text) for text in request.texts]
    asked = [subject.token(spelling, "--token") for spelling in request.tokens]
    result: Result = {
        "checkpoint": str(checkpoint),
        "step": read_state(checkpoint)["step"],
        "labels": subject.labels,
        "neighbours": _neighbours(
            subject, [*asked, *(n for ids in encoded for n in ids)], request.neighbours
        ),
        "texts": [
            _text(subject, request, text, ids) for text, ids in zip(request.texts, encoded, strict=True)
        ],
    }
    if output is not None:
        atomic.write_text(output, draw_page(result))
    return result


def _neighbours(subject: Subject, tokens: list[int], count: int) -> list[Result]:
    distinct = list(dict.fromkeys(tokens))
    matrices = {"input": subject.input_embedding(), "output": subject.output_embedding()}
    found = {
        name: None if matrix is None else nearest(matrix, distinct, count)
        for name, matrix in matrices.items()
    }
    return [
        _token(subject, token)
        | {
            name: None if lists is None else [_token(subject, n) | {"cosine": c} for n, c in lists[place]]
            for name, lists in found.items()
        }
        for place, token in enumerate(distinct)
    ]


def _text(subject: Subject, request: InspectRequest, text: str, ids: list[int]) -> Result:
    seen = trace(subject, ids)
    why = explain(subject, ids, request.position, request.target, request.baseline)
    return {
        "text": text,
        "tokens": [_token(subject, number) for number in ids],
        "attention": [_numbers(weights_NSS) for weights_NSS in seen.attention],
        "heads": [[asdict(head) for head in head_figures(weights_NSS)] for weights_NSS in seen.attention],
        "attribution": None if why is None else _attribution(subject, why),
        "lens": None if subject.labels else _lens(subject, logit_lens(subject, seen.hidden, request.top)),
    }


def _attribution(subject: Subject, why: Attribution) -> Result:
    target = {"label": subject.labels[why.target]} if subject.labels else _token(subject, why.target)
    return asdict(why) | {"target": target, "baseline": _token(subject, why.baseline)}


def _lens(subject: Subject, lens: Lens) -> Result:
    top = [
        [
            [_token(subject, n) | {"probability": p} for n, p in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(*layer, strict=True)
        ]
        for layer in zip(lens.tokens_LSK.tolist(), _numbers(lens.probabilities_LSK), strict=True)
    ]
    return {
        "top": top,
        "entropy_bits": _numbers(lens.entropy_bits_LS),
        "kl_bits": _numbers(lens.kl_bits_LS),
    }


def _token(subject: Subject, number: int) -> Result:
    return {"id": number, "token": subject.spell(number)}


def _numbers(tensor: Tensor) -> Any:
    """Nested lists, with as many digits as there is a use for."""
    return np.round(tensor.double().cpu().numpy(), 6).tolist()
