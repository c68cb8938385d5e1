"""Shows on stderr how far a stage is, in documents and tasks, from what its tasks write down."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from megalm.corpus.tasks import read_progress

_SECONDS = 0.5


@contextlib.contextmanager
def stage_progress(
    title: str, folder: Path, tasks: int, documents: int | None, shown: bool
) -> Iterator[None]:
    """Keep a bar over the documents of a stage (where their number is known) while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} documents"),
        TextColumn("{task.fields[done]}/{task.fields[tasks]} tasks"),
        TimeElapsedColumn(),
    )
    # The file is named because tasks of this process redirect sys.stderr.
    with Progress(*columns, console=Console(file=sys.stderr), disable=not shown) as progress:
        bar = progress.add_task(title, total=documents, done=0, tasks=tasks)

        def update() -> None:
            done = len(list((folder / "logs" / "completions").glob("*")))
            progress.update(bar, completed=read_progress(folder / "progress"), done=done)

        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_SECONDS):
                update()

        thread = threading.Thread(target=follow, daemon=True)
        if shown:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if shown:
                thread.join()
                update()
