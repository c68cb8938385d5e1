"""The step `decontaminate` of a recipe: what benchmarks ask must not be learnt from the corpus."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import orjson
from datatrove.data import Document
from pydantic import Field

from megalm import atomic
from megalm.config.section import Section
from megalm.corpus.decontaminate.benchmarks import Benchmark, read_items
from megalm.corpus.decontaminate.grams import BenchmarkGrams, Match, spans
from megalm.corpus.dedup.hashing import Words, hash_words
from megalm.corpus.step import Transform
from megalm.errors import UserError

CONTAMINATION = "contamination"
"""Metadata key: the items of benchmarks that a document holds, as NAME#NUMBER."""


class Decontaminate(Transform):
    """Removes, cuts or marks documents that share word n-grams with items of benchmarks.

    As for GPT-3 (Brown et al. 2020, appendix C): 13-grams of words in lower case without punctuation, with `cut` 200
    characters around a hit go too, and documents cut in more than ten places are removed.
    """

    name = "decontaminate"
    needs_text = True

    class Settings(Section):
        """Options of the step `decontaminate`."""

        benchmarks: list[Benchmark] = Field(min_length=1, description="The benchmarks to keep out.")
        ngram: int = Field(
            13, ge=2, description="Words a shared n-gram must have; 8 finds more, and more chance."
        )
        min_words: int = Field(
            8,
            ge=2,
            description="Texts of items with fewer than `ngram` words are looked for as a whole if they have so many; "
            "shorter ones are left out and counted.",
        )
        min_ngrams: int = Field(
            1, ge=1, description="How many different n-grams of one item (or all it has) make a hit."
        )
        max_items: int = Field(
            10,
            ge=1,
            description="N-grams of more items than this are phrases of a template and do not count.",
        )
        action: Literal["drop", "cut", "mark"] = Field(
            "drop",
            description="Remove the documents that are hit; or cut the hits out of them; or write the items into their "
            "metadata only.",
        )
        margin: int = Field(200, ge=0, description="With `cut`: characters cut before and after a hit.")
        min_piece: int = Field(200, ge=0, description="With `cut`: shorter pieces that remain are removed.")
        max_cuts: int = Field(10, ge=1, description="With `cut`: documents cut in more places are removed.")
        hits: Path | None = Field(
            None,
            description="A directory for lists (JSONL) of which item was found in which document, and where.",
        )

    settings: Settings

    def files(self) -> list[Path]:
        """The benchmarks' files."""
        return [benchmark.path for benchmark in self.settings.benchmarks]

    def verify(self) -> None:
        """The benchmarks must hold items."""
        for benchmark in self.settings.benchmarks:
            if not sum(1 for _ in read_items(benchmark)):
                raise UserError(f"benchmark {benchmark.path} holds no item; check the path")

    def start(self) -> None:
        """Read the benchmarks, once a process."""
        stamps = tuple(
            (path.stat().st_size, path.stat().st_mtime_ns) for path in self.files() if path.exists()
        )
        self._grams = _grams(self.settings.model_dump_json(exclude={"hits"}), stamps)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents that stay."""
        self._list: IO[bytes] | None = None
        with ExitStack() as stack:
            if self.settings.hits:
                path = self.settings.hits / f"{rank:05d}.jsonl"
                self._list = stack.enter_context(atomic.open_atomic(path))
            yield from super().run(data, rank, world_size)
        if rank == 0 and self._grams.not_searched:
            self.count("items not looked for (too short, or a template)", self._grams.not_searched)

    def change(self, document: Document) -> str | None:
        """A reason for a document that is hit and not to be saved by cutting."""
        words = hash_words([document.text])
        matches = self._hits(self._grams.matches(words.hashes), words)
        if not matches:
            return None
        labels = self._report(document, matches, words)
        document.metadata[CONTAMINATION] = labels
        if self.settings.action == "mark":
            self.count("documents marked")
            return None
        return self._cut(document, matches, words) if self.settings.action == "cut" else "decontaminate.hit"

    def _hits(self, matches: list[Match], words: Words) -> list[Match]:
        """The matches of items of which enough is there."""
        found: dict[int, set[bytes]] = defaultdict(set)
        for match in matches:
            found[match.item].add(words.hashes[match.begin : match.end].tobytes())
        return [match for match in matches if len(found[match.item]) >= self._needed(match)]

    def _needed(self, match: Match) -> int:
        whole = match.end - match.begin < self._grams.n
        return 1 if whole else min(self.settings.min_ngrams, int(self._grams.counts[match.item]))

    def _report(self, document: Document, matches: list[Match], words: Words) -> list[str]:
        """Count and list the items; their labels in order."""
        items = sorted({match.item for match in matches})
        for item in items:
            label = self._grams.labels[item]
            self.observe("items", label)
            if not self._list:
                continue
            own = [match for match in matches if match.item == item]
            begin, end = spans(own, words.starts, words.ends, 0, len(document.text))[0]
            line = {
                "document": document.id,
                "item": label,
                "ngrams": len(own),
                "begin": begin,
                "end": end,
                "text": document.text[begin:end],
                "action": self.settings.action,
            }
            self._list.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        for name in sorted({self._grams.labels[item].rpartition("#")[0] for item in items}):
            self.count(f"documents with items of {name}")
        return [self._grams.labels[item] for item in items]

    def _cut(self, document: Document, matches: list[Match], words: Words) -> str | None:
        """Leave the pieces between the hits, apart by an empty line."""
        text, settings = document.text, self.settings
        cuts = spans(matches, words.starts, words.ends, settings.margin, len(text))
        if len(cuts) > settings.max_cuts:
            return "decontaminate.too_many_hits"
        borders = [0, *(border for cut in cuts for border in cut), len(text)]
        pieces = [text[a:b].strip() for a, b in zip(borders[::2], borders[1::2], strict=True)]
        pieces = [piece for piece in pieces if piece and len(piece) >= settings.min_piece]
        if not pieces:
            return "decontaminate.nothing_left"
        document.text = "\n\n".join(pieces)
        self.count("hits cut out", len(cuts))
        return None


@lru_cache(maxsize=4)
def _grams(settings_json: str, stamps: tuple[tuple[int, int], ...]) -> BenchmarkGrams:
    settings = Decontaminate.Settings.model_validate_json(settings_json)
    items = (item for benchmark in settings.benchmarks for item in read_items(benchmark))
    return BenchmarkGrams(items, settings.ngram, settings.min_words, settings.max_items)
