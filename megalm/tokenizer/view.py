"""A text's tokens to look at: coloured in the terminal, or as one HTML file."""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.vocabulary import is_hidden, is_text, readable, unknown_id

CellKind = Literal["text", "part", "special", "unknown", "gap"]
BACKGROUNDS = ("#bfdbfe", "#bbf7d0", "#fde68a", "#e9d5ff")
STYLES = {"special": "bold black on #fca5a5", "unknown": "bold white on #b91c1c", "gap": "dim"}
# Bytes that are no text by themselves: the last ones of a character, the first ones, and what is whole between them.
_RUNS = re.compile(
    "(?P<end>[\udc80-\udcbf]+)|(?P<begin>[\udcc0-\udcff][\udc80-\udcbf]*)|(?P<whole>[^\udc80-\udcff]+)"
)
NEWLINE = "⏎"
BOUNDARY = "│"


@dataclass(frozen=True)
class Cell:
    """One token as it is shown, or text that no token covers (no id).

    text: what it covers of the text; where it shares a character with its neighbours (`part`), its bytes, and with
    the last of them the character. data: what the token stands for by itself. spoken: whether it is trained on.
    """

    token_id: int | None
    kind: CellKind
    text: str
    data: bytes = b""
    spoken: bool = True


def cells(
    tokenizer: Tokenizer,
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    loss_mask: Sequence[int] | None = None,
) -> list[Cell]:
    """The tokens `ids` of `text`, at the characters `offsets`, in order, and between them what none of them covers."""
    special, unknown = set(tokenizer.special_tokens.values()), unknown_id(tokenizer)
    made: list[Cell] = []
    position = 0
    for number, (token_id, (start, stop)) in enumerate(zip(ids, offsets, strict=True)):
        if start > position:
            made.append(Cell(None, "gap", _visible(text[position:start], " \n")))
        spoken = loss_mask is None or bool(loss_mask[number])
        data = tokenizer.token_bytes(token_id)
        kind, shown = _kind(token_id, data, special, unknown), _visible(text[start:stop])
        if kind == "part":
            shown = _bytes_and_characters(data, text, offsets, number)
        elif kind == "text" and (start == stop or _shares(offsets, number)):
            # such as the space that some tokenizers put before a text, which takes the place of its first letter
            shown = _visible(data.decode()) or "∅"
        made.append(Cell(token_id, kind, shown, data, spoken))
        position = max(position, stop)
    if position < len(text):
        made.append(Cell(None, "gap", _visible(text[position:], " \n")))
    return made


def to_terminal(shown: Sequence[Cell], with_ids: bool = False, marks_spoken: bool = False) -> Text:
    """The tokens on alternating backgrounds; with `marks_spoken`, those that are not trained on without one."""
    text, colour = Text(), 0
    for cell in shown:
        background = BACKGROUNDS[colour % len(BACKGROUNDS)]
        style = STYLES.get(cell.kind, f"black on {background}")
        if marks_spoken and not cell.spoken:
            style = "bold dim" if cell.kind == "special" else "dim"
        label = f"‹{cell.token_id}›" if with_ids and cell.token_id is not None else ""
        end = "\n" if cell.text.endswith("\n") else ""
        # A line's end is outside the colour, which would otherwise run to the edge of the screen.
        for number, line in enumerate(cell.text.removesuffix(end).split("\n")):
            text.append("\n" if number else "").append(line, style=style)
        text.append(label, style="dim").append(end)
        colour += cell.token_id is not None
    return text


def to_plain(shown: Sequence[Cell], with_ids: bool = False, marks_spoken: bool = False) -> str:
    """The tokens with `│` between them, unknown ones as `‹?=text›`; with `marks_spoken`, those that are trained on in `[[ ]]`."""
    pieces: list[str] = []
    inside = bounded = False
    for cell in shown:
        token = cell.token_id is not None
        spoken = marks_spoken and token and cell.spoken
        if spoken != inside:
            pieces.append("[[" if spoken else "]]")
        elif token and bounded:
            pieces.append(BOUNDARY)
        end = "\n" if cell.text.endswith("\n") else ""
        text = cell.text.removesuffix(end)
        text = f"‹?={text}›" if cell.kind == "unknown" else text
        pieces += [text, f"‹{cell.token_id}›" if with_ids and token else "", end]
        inside, bounded = spoken, token and not end
    return "".join(pieces) + ("]]" if inside else "")


def to_html(shown: Sequence[Cell], title: str, marks_spoken: bool = False) -> str:
    """One HTML page without scripts or other files: a token is a span, its title its id and bytes."""
    tokens = sum(cell.token_id is not None for cell in shown)
    counts = f"{tokens:,} tokens"
    if marks_spoken:
        counts += f", {sum(cell.spoken and cell.token_id is not None for cell in shown):,} of them trained on"
    body = "".join(_spans(shown, marks_spoken))
    return PAGE.format(
        title=html.escape(title), counts=counts, legend=_legend(shown, marks_spoken), body=body, style=STYLE
    )


def _spans(shown: Sequence[Cell], marks_spoken: bool) -> Iterator[str]:
    colour = 0
    for cell in shown:
        text = html.escape(cell.text)
        if cell.token_id is None:
            yield f'<span class="gap">{text}</span>'
            continue
        classes = [cell.kind, f"c{colour % len(BACKGROUNDS)}"]
        if marks_spoken and not cell.spoken:
            classes.append("silent")
        data = " ".join(f"{byte:02X}" for byte in cell.data)
        about = html.escape(f"id {cell.token_id} · {readable(cell.data)} · bytes {data}")
        yield f'<span class="{" ".join(classes)}" title="{about}">{text}</span>'
        colour += 1


def _legend(shown: Sequence[Cell], marks_spoken: bool) -> str:
    names = {
        "special": "special token",
        "unknown": "unknown to the tokenizer",
        "part": "part of a character: its bytes, and the character at the last part",
        "gap": "text that no token covers",
    }
    kinds = {cell.kind for cell in shown}
    entries = [f'<span class="{kind} c0">{name}</span>' for kind, name in names.items() if kind in kinds]
    if marks_spoken:
        entries.append(
            '<span class="text c0">trained on</span> <span class="text c0 silent">not trained on</span>'
        )
    return " ".join(entries)


def _kind(token_id: int, data: bytes, special: set[int], unknown: int | None) -> CellKind:
    if token_id == unknown:
        return "unknown"
    if token_id in special:
        return "special"
    return "text" if is_text(data) else "part"


def _shares(offsets: Sequence[tuple[int, int]], number: int) -> bool:
    """Whether a token and one beside it cover the same character."""
    start, stop = offsets[number]
    before = number > 0 and offsets[number - 1][1] > start and offsets[number - 1][0] < stop
    after = number + 1 < len(offsets) and offsets[number + 1][0] < stop and offsets[number + 1][1] > start
    return before or after


def _bytes_and_characters(data: bytes, text: str, offsets: Sequence[tuple[int, int]], number: int) -> str:
    """The whole characters of a token, the bytes of others, and with the last bytes of one the character."""
    start, stop = offsets[number]
    is_last = number + 1 == len(offsets) or offsets[number + 1][0] >= stop
    escaped = data.decode("utf-8", "surrogateescape")
    spelled = ""
    for run in _RUNS.finditer(escaped):
        codes = " ".join(f"{ord(byte) - 0xDC00:02X}" for byte in run[0])
        if run["whole"]:
            spelled += _visible(run[0])
        elif run["end"] and (is_last or run.end() < len(escaped)):
            spelled += f"‹{codes}={_visible(text[start])}›"
        else:
            spelled += f"‹{codes}›"
    return spelled


def _visible(text: str, but: str = "") -> str:
    """`text` with its white space to see (`but` some), lines still ending, and nothing that a terminal would obey."""
    return "".join(character if character in but else _visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character == "\n":
        return f"{NEWLINE}\n"
    if character in " \t\r":
        return {" ": "·", "\t": "⇥", "\r": "␍"}[character]
    return f"‹U+{ord(character):04X}›" if is_hidden(character) else character


STYLE = """
body { font: 16px/1.9 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #111; background: #fff }
pre { font: 15px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
h1 { font-size: 1.2em } .about { color: #444 } .legend span { margin-right: .6em }
pre span, .legend span { border-radius: 3px; padding: 1px 0 }
.c0 { background: #bfdbfe } .c1 { background: #bbf7d0 } .c2 { background: #fde68a } .c3 { background: #e9d5ff }
.special { background: #fca5a5; font-weight: bold } .unknown { background: #b91c1c; color: #fff; font-weight: bold }
.part { border-bottom: 2px dotted #111 } .gap { background: none; color: #777 }
.silent { background: none; color: #777 }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><p class="about">{counts}. Hold the pointer over a token for its id and bytes.</p>
<p class="legend">{legend}</p>
<pre>{body}</pre></body></html>
"""
