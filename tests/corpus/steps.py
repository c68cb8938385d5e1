"""Steps that tests put into recipes: they note what ran, kill processes, and gather the whole corpus."""

import os
import signal
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from megalm.config.section import Section
from megalm.corpus.shards import ReadShards, WriteShards
from megalm.corpus.step import Collective, Filter, Stage, Transform

NAMES = {
    "note": "tests.corpus.steps:Note",
    "bomb": "tests.corpus.steps:Bomb",
    "hang": "tests.corpus.steps:Hang",
    "shout": "tests.corpus.steps:Shout",
    "sort": "tests.corpus.steps:Sort",
    "wide": "tests.corpus.steps:Wide",
}


class Note(Filter):
    """Keeps all, and writes a line into `file` for each task that begins."""

    name = "note"

    class Settings(Section):
        file: str

    settings: Settings

    def start(self):
        with open(self.settings.file, "a") as file:
            file.write("task\n")

    def check(self, document):
        return None


class Bomb(Filter):
    """Kills a process at the document `id`, once: the file `spent` says that it did."""

    name = "bomb"

    class Settings(Section):
        id: str
        spent: str
        parent: bool = False

    settings: Settings

    def check(self, document):
        if document.id == self.settings.id and not os.path.exists(self.settings.spent):
            Path(self.settings.spent).write_text("")
            os.kill(os.getppid() if self.settings.parent else os.getpid(), signal.SIGKILL)
            signal.pause()  # until the death of the parent ends this process
        return None


class Hang(Filter):
    """Waits for ever at the document `id`, once: the file `spent` says that it did."""

    name = "hang"

    class Settings(Section):
        id: str
        spent: str

    settings: Settings

    def check(self, document):
        if document.id == self.settings.id and not os.path.exists(self.settings.spent):
            Path(self.settings.spent).write_text("")
            signal.pause()
        return None


class Shout(Transform):
    """Makes texts upper case, and removes those with "zebra"."""

    name = "shout"

    def change(self, document):
        self.count("letters", len(document.text))
        document.text = document.text.upper()
        return "shout.zebra" if "ZEBRA" in document.text else None


class Sort(Collective):
    """Deals documents into one file a task by the length of their ids, then writes each file sorted by id."""

    name = "sort"

    def stages(self, source, work, target, tasks):
        return [
            Stage("deal", tasks, [ReadShards(source), Deal(work / "dealt", tasks)]),
            Stage("gather", tasks, [Gather(work / "dealt"), DropOdd(), WriteShards(target)]),
        ]


class Deal(PipelineStep):
    type, name = "test", "deal"

    def __init__(self, folder, buckets):
        super().__init__()
        self.folder, self.buckets = folder, buckets

    def run(self, data, rank=0, world_size=1):
        piles = [[] for _ in range(self.buckets)]
        for document in data:
            piles[len(document.id) % self.buckets].append(document)
        for number, pile in enumerate(piles):
            list(WriteShards(self.folder / f"{number:05d}").run(pile, rank))
        yield from ()


class Gather(PipelineStep):
    type, name = "test", "gather"

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def run(self, data=None, rank=0, world_size=1):
        yield from sorted(ReadShards(self.folder / f"{rank:05d}").run(), key=lambda document: document.id)


class DropOdd(Filter):
    """The counting step of the collective."""

    name = "sort.odd"

    def check(self, document):
        return "sort.odd" if document.id.endswith("1") else None


class Wide(Collective):
    """A stage of more tasks than a cluster lets an array have."""

    name = "wide"

    def stages(self, source, work, target, tasks):
        return [Stage("all", 2000, [ReadShards(source), WriteShards(target)])]
