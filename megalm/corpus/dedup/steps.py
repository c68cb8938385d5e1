"""The steps `exact_duplicates` and `near_duplicates` of a recipe: which stages find and remove copies."""

import sys
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from megalm.corpus.dedup.catalog import Preference
from megalm.corpus.dedup.clusters import Cluster
from megalm.corpus.dedup.drop import DropCopies
from megalm.corpus.dedup.index import DESCRIPTION, FinishIndex, SaveIndex, check_indexes, own_index
from megalm.corpus.dedup.lsh import Bands, choose_bands, describe
from megalm.corpus.dedup.pairs import FindPairs, WriteKeys
from megalm.corpus.dedup.signatures import ExactKeys, KeyMaker, MinHashKeys
from megalm.corpus.dedup.verify import VerifyPairs, WriteShingles
from megalm.corpus.shards import ReadShards, WriteShards
from megalm.corpus.step import Collective, Stage


class CopySettings(Preference):
    """Options that exact and near-duplicate removal share."""

    index: list[Path] = Field(
        [],
        description="Directories made by `save_index` in earlier builds; copies of documents there are removed.",
    )
    save_index: Path | None = Field(
        None, description="A new directory for an index of the documents that stay, for later builds."
    )
    matches: Path | None = Field(
        None, description="A directory for lists (JSONL) of the copies, each with the document that stays."
    )
    mark: bool = Field(
        False,
        description="Keep the copies, with the id of the document that would stay as `duplicate_of` in their metadata.",
    )


class _Copies(Collective):
    """The stages of both: keys, pairs, (verification,) clusters, (index,) removal."""

    def files(self) -> list[Path]:
        """The descriptions of the indexes."""
        return [index / DESCRIPTION for index in self.settings.index]

    def _stages(
        self, maker: KeyMaker, verify: MinHashKeys | None, source: Path, work: Path, target: Path, tasks: int
    ) -> list[Stage]:
        settings, indexes = self.settings, [index.absolute() for index in self.settings.index]
        index, matches = (path and path.absolute() for path in (settings.save_index, settings.matches))
        check_indexes(indexes, maker.fingerprint(), verify is not None)
        ngram = verify.ngram if verify else None
        stages = [
            Stage("keys", tasks, [ReadShards(source), WriteKeys(work, maker, settings)]),
            Stage("pairs", tasks, [FindPairs(work, indexes, verify is not None)]),
        ]
        if verify:
            stages += [
                Stage("shingles", tasks, [ReadShards(source), WriteShingles(work, verify.ngram)]),
                Stage("verify", tasks, [VerifyPairs(work, indexes, settings.threshold)]),
            ]
        stages.append(Stage("clusters", 1, [Cluster(work, indexes, "verified" if verify else "pairs")]))
        if index:
            own_index(index, work)
            save = SaveIndex(work, index, ngram)
            finish = FinishIndex(work, index, maker.fingerprint(), ngram)
            stages += [
                Stage("index", tasks, [ReadShards(source), save] if ngram else [save]),
                Stage("finish_index", 1, [finish]),
            ]
        drop = DropCopies(self.name, work, indexes, settings.mark, matches)
        return [*stages, Stage("drop", tasks, [ReadShards(source), drop, WriteShards(target)])]


class ExactDuplicates(_Copies):
    """Removes all but one of the documents with the same text."""

    name = "exact_duplicates"

    class Settings(CopySettings):
        """Options of the step `exact_duplicates`."""

        normalize: bool = Field(
            True,
            description="Compare words alone: case, punctuation and white space make no difference. Off: every "
            "character counts.",
        )

    settings: Settings

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Keys, pairs, clusters, index, removal."""
        return self._stages(ExactKeys(self.settings.normalize), None, source, work, target, tasks)


class NearDuplicates(_Copies):
    """Removes all but one of the documents of each cluster of near-duplicates, found by MinHash-LSH.

    The Jaccard similarity meant is that of two documents' sets of word n-grams. Documents are in a cluster if a chain
    of pairs connects them.
    """

    name = "near_duplicates"

    class Settings(CopySettings):
        """Options of the step `near_duplicates`."""

        threshold: float = Field(
            0.8, gt=0, lt=1, description="The Jaccard similarity from which on documents count as copies."
        )
        recall: float = Field(
            0.9, gt=0, lt=1, description="The probability with which a pair at the threshold is to be found."
        )
        permutations: int = Field(
            128, ge=1, le=4096, description="The most hashes a signature may have: the cost in time and disk."
        )
        bands: int | None = Field(
            None, ge=1, description="Bands of the signature; by default chosen from threshold and recall."
        )
        rows: int | None = Field(None, ge=1, description="Hashes a band; given together with `bands`.")
        ngram: int = Field(5, ge=1, description="Words a shingle.")
        seed: int = Field(0, ge=0, description="Seed of the permutations.")
        verify: bool = Field(
            False,
            description="Compute the exact similarity of the pairs that MinHash finds, and leave out those below the "
            "threshold. Needs 8 bytes of disk for each word of the documents concerned.",
        )

        @model_validator(mode="before")
        @classmethod
        def _both(cls, values: Any) -> Any:
            if isinstance(values, dict) and (values.get("bands") is None) != (values.get("rows") is None):
                raise ValueError("give `bands` and `rows` together, or neither")
            return values

    settings: Settings

    def bands(self) -> Bands:
        """The bands given, or those that the threshold asks for."""
        settings = self.settings
        if settings.bands and settings.rows:
            return Bands(settings.bands, settings.rows)
        return choose_bands(settings.threshold, settings.recall, settings.permutations)

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Keys, pairs, verification, clusters, index, removal."""
        bands = self.bands()
        print(f"{self.name}: {describe(bands, self.settings.threshold)}", file=sys.stderr)
        maker = MinHashKeys(self.settings.ngram, bands, self.settings.seed)
        return self._stages(maker, maker if self.settings.verify else None, source, work, target, tasks)
