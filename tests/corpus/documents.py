"""Documents and prose for tests of the corpus steps."""

import random

from datatrove.data import Document

from megalm.corpus.step import Step

WORDS = (
    "river mountain garden window morning letter teacher winter village silver bridge forest story market "
    "doctor evening music summer paper island captain river bread corner engine flower harbour kitchen"
).split()
LINKS = "the of and to in that with for was on".split()


def prose(seed: int, sentences: int = 40, per_line: int = 4) -> str:
    """Made-up English sentences, `per_line` a line, that hardly repeat themselves."""
    rng = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = [rng.choice(LINKS if place % 2 else WORDS) for place in range(rng.randint(7, 15))]
        made.append(" ".join([words[0].title(), *words[1:]]) + rng.choice([".", ".", ".", "?", "!"]))
    return "\n".join(" ".join(made[i : i + per_line]) for i in range(0, sentences, per_line))


def document(text: str, **metadata: object) -> Document:
    """A document with this text."""
    return Document(text=text, id="a", metadata=metadata)


def reason_of(step: Step, text: str, **metadata: object) -> str | None:
    """What the step says of a text."""
    return step.apply(document(text, **metadata))


def text_after(step: Step, text: str) -> str:
    """What the step makes of a text that it keeps."""
    changed = document(text)
    assert step.apply(changed) is None
    return changed.text
