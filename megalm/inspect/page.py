"""Draws what inspection found as one HTML page that needs no other file."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

import megalm
from megalm.html.heat_map import heat_map
from megalm.html.page import render
from megalm.html.picture import strip

LONGEST = 96
"""Tokens of a text whose attention is drawn: of longer ones cells could not be told apart."""
_SHADES = 4  # of colour for a score, in either direction: the classes of base.html.jinja
_KEYS, _LEAST = 3, 0.005  # that the pointer is told of a query, and the share that they have

Found = dict[str, Any]


class Map(NamedTuple):
    """A head's attention as a picture, with what it does as numbers."""

    layer: int
    head: int
    picture: Markup | None
    figures: dict[str, float]


class Scored(NamedTuple):
    """A token with its attribution, the CSS class that colours it, and a bar."""

    token: str
    score: float
    style: str
    bar: Markup


class Cell(NamedTuple):
    """The likeliest token at a position behind a layer; told: those behind it."""

    token: str
    probability: float
    style: str
    told: str


def draw_page(result: Found) -> str:
    """The page of what `run.main` found; all that comes from model and texts is escaped."""
    return render(
        "megalm.inspect",
        "inspect.html.jinja",
        {
            "version": megalm.__version__,
            "checkpoint": result["checkpoint"],
            "step": result["step"],
            "labels": result["labels"],
            "neighbours": result["neighbours"],
            "texts": [_text(found) for found in result["texts"]],
            "longest": LONGEST,
            "shown": shown,
        },
    )


def shown(token: str) -> str:
    """A token's text with its white space to be seen."""
    if not token:
        return "(nothing)"
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _text(found: Found) -> Found:
    tokens = [shown(one["token"]) for one in found["tokens"]]
    why, lens = found["attribution"], found["lens"]
    return {
        "text": found["text"],
        "tokens": tokens,
        "maps": list(_maps(found, tokens)),
        "attribution": why,
        "scored": None if why is None else _scored(tokens, why["scores"]),
        "lens": None if lens is None else [[_cell(one) for one in layer] for layer in lens["top"]],
        "kl_bits": None if lens is None else [float(np.mean(layer)) for layer in lens["kl_bits"]],
        "entropy_bits": None if lens is None else [float(np.mean(layer)) for layer in lens["entropy_bits"]],
    }


def _maps(found: Found, tokens: Sequence[str]) -> list[Map]:
    return [
        Map(layer, head, _picture(np.array(weights), tokens, layer, head), found["heads"][layer][head])
        for layer, heads in enumerate(found["attention"])
        for head, weights in enumerate(heads)
    ]


def _picture(weights_SS: NDArray[np.float64], tokens: Sequence[str], layer: int, head: int) -> Markup | None:
    if len(tokens) > LONGEST:
        return None
    told = []
    for query, row_S in enumerate(weights_SS):
        best = [key for key in np.argsort(-row_S, kind="stable")[:_KEYS] if row_S[key] >= _LEAST]
        keys = ", ".join(f"{tokens[key]} ({key}) {row_S[key]:.0%}" for key in best)
        told.append(f"{tokens[query]} ({query}) looks at {keys}")
    title = f"Attention of layer {layer + 1}, head {head + 1}: a row for each query; the table below has its figures"
    return heat_map(weights_SS, told, title)


def _scored(tokens: Sequence[str], scores: Sequence[float]) -> list[Scored]:
    most = max(map(abs, scores)) or 1.0
    rows = []
    for token, score in zip(tokens, scores, strict=True):
        shade = round(abs(score) / most * _SHADES)
        # colours of base.html.jinja: `less` is blue, for what speaks for the prediction
        style = f"heat-{'less' if score > 0 else 'more'}-{shade}" if shade else "heat-same"
        bar = strip((abs(score) / most, "kept" if score > 0 else "removed"))
        rows.append(Scored(token, score, style, bar))
    return rows


def _cell(top: Sequence[Found]) -> Cell:
    first = top[0]
    shade = round(first["probability"] * _SHADES)
    told = ", ".join(f"{shown(one['token'])} {one['probability']:.1%}" for one in top)
    style = f"heat-less-{shade}" if shade else "heat-none"
    return Cell(shown(first["token"]), first["probability"], style, told)
