"""What a step counts: documents in and out, reasons with samples, counters, histograms and tables; tallies of tasks add up."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from megalm.corpus.shards import mend

SAMPLES = 5
"""How many documents are kept as examples of a reason."""
SAMPLE_CHARACTERS = 1000
SAMPLE_KEYS = 20
SAMPLE_VALUE_CHARACTERS = 200

Sample = dict[str, Any]


class Tally:
    """Counts of one step over the documents of one task, or of several added up.

    Nothing in it but `seconds` depends on how documents were dealt out to tasks: samples are those whose id has the
    smallest hashes, which picks the same ones in any order.
    """

    def __init__(self, step: str):
        self.step = step
        self.documents_in = 0
        self.documents_out = 0
        self.characters_in = 0
        self.characters_out = 0
        self.seconds = 0.0
        self.removed: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        self.histograms: dict[str, Counter[str]] = {}
        self.tables: dict[str, Counter[str]] = {}
        self._samples: dict[str, list[tuple[str, Sample]]] = {}

    def remove(self, reason: str, id: str, text: str, metadata: dict[str, Any]) -> None:
        """Count a removed document and perhaps keep it as a sample of `reason`."""
        self.removed[reason] += 1
        self.sample(reason, id, text, metadata)

    def sample(self, reason: str, id: str, text: str, metadata: dict[str, Any]) -> None:
        """Perhaps keep a document as an example of `reason`."""
        key = hashlib.blake2b(id.encode("utf-8", "replace"), digest_size=8).hexdigest()
        kept = self._samples.setdefault(reason, [])
        if len(kept) == SAMPLES and key > kept[-1][0]:
            return
        sample = {
            "id": id,
            "text": text[:SAMPLE_CHARACTERS],
            "characters": len(text),
            "metadata": _short(metadata),
        }
        self._samples[reason] = _smallest([*kept, (key, mend(sample))])

    def observe(self, name: str, value: float | str) -> None:
        """Add `value` to the histogram `name`; numbers fall into bins of two significant digits."""
        bin = mend(value) if isinstance(value, str) else f"{value:.2g}"
        self.histograms.setdefault(name, Counter())[bin] += 1

    def table(self, name: str) -> Counter[str]:
        """The table `name`: counts that a step adds up for figures derived from them, such as documents by group."""
        return self.tables.setdefault(name, Counter())

    def add(self, other: "Tally") -> None:
        """Add what another task counted in the same step."""
        for name in ("documents_in", "documents_out", "characters_in", "characters_out", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.removed.update(other.removed)
        self.counters.update(other.counters)
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, Counter()).update(histogram)
        for name, table in other.tables.items():
            self.table(name).update(table)
        for reason, samples in other._samples.items():
            self._samples[reason] = _smallest([*self._samples.get(reason, []), *samples])

    def to_json(self) -> dict[str, Any]:
        """The tally as plain values, reasons and bins in order."""
        return {
            "step": self.step,
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "characters_in": self.characters_in,
            "characters_out": self.characters_out,
            "seconds": round(self.seconds, 3),
            "removed": dict(sorted(self.removed.items())),
            "counters": dict(sorted(self.counters.items())),
            "histograms": {
                name: dict(sorted(bins.items())) for name, bins in sorted(self.histograms.items())
            },
            "tables": {name: dict(sorted(table.items())) for name, table in sorted(self.tables.items())},
            "samples": {
                reason: [sample | {"key": key} for key, sample in samples]
                for reason, samples in sorted(self._samples.items())
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Tally":
        """The tally that `to_json` described."""
        tally = cls(data["step"])
        for name in ("documents_in", "documents_out", "characters_in", "characters_out", "seconds"):
            setattr(tally, name, data[name])
        tally.removed.update(data["removed"])
        tally.counters.update(data["counters"])
        tally.histograms = {name: Counter(bins) for name, bins in data["histograms"].items()}
        tally.tables = {name: Counter(table) for name, table in data["tables"].items()}
        for reason, samples in data["samples"].items():
            tally._samples[reason] = [
                (sample["key"], {name: value for name, value in sample.items() if name != "key"})
                for sample in samples
            ]
        return tally


def _short(metadata: dict[str, Any]) -> dict[str, Any]:
    """The first few entries that are plain values, long ones cut."""
    few = [(name, value) for name, value in metadata.items() if isinstance(value, str | int | float)]
    return {str(name)[:SAMPLE_VALUE_CHARACTERS]: _short_value(value) for name, value in few[:SAMPLE_KEYS]}


def _short_value(value: str | int | float) -> Any:
    plain = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)[:SAMPLE_VALUE_CHARACTERS]


def _smallest(samples: Iterable[tuple[str, Sample]]) -> list[tuple[str, Sample]]:
    return sorted(samples, key=lambda pair: (pair[0], pair[1]["text"], str(pair[1])))[:SAMPLES]
