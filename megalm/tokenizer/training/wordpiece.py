"""WordPiece as BERT has it (Devlin et al. 2019): pieces after a word's first begin with ##."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models

from megalm.errors import UserError
from megalm.tasks import progress_bar
from megalm.tokenizer.load import CONFIG_NAME, VOCABULARY_NAME
from megalm.tokenizer.training.counting import WordCounts
from megalm.tokenizer.training.cutting import PRETOKENIZERS, Cutter, normalizer_of
from megalm.tokenizer.training.kinds import Files, Kind, Settings, Training, check_apart
from megalm.tokenizer.training.levels import tokenizer_file
from megalm.tokenizer.training.merges import BOUNDARY, MergeLearner
from megalm.tokenizer.wordpiece import CONTINUATION, UNKNOWN

SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")


def _cut(settings: Settings) -> Cutter:
    return Cutter(settings.pretokenizer, settings.normalizers)


def _check(settings: Settings) -> None:
    settings.room("a character", 1)
    check_apart(
        settings.special_tokens,
        lambda token: token.startswith(CONTINUATION) or len(Cutter("words").count([token])) == 1,
    )
    if len(settings.normalizers) != 1:
        raise UserError("WordPiece takes one normalizer, bert or bert-cased; name one of them")


def _fit(training: Training) -> Files:
    """Merge by counts of pairs; characters too rare for the coverage asked for are left to the unknown token."""
    settings = training.settings
    words = _Words.of(training.counts)
    alphabet = _alphabet(words, settings)
    words = words.of_characters(alphabet)
    base = [*sorted(alphabet), *(CONTINUATION + character for character in words.inner_characters())]
    room = settings.room(f"{len(base)} characters at the beginning of words and inside", len(base))
    tokens = [*settings.special_tokens, *base]
    learner = MergeLearner(
        _cells(words, {token: i for i, token in enumerate(tokens)}),
        words.counts,
        tokens,
        join=lambda left, right: left + right.removeprefix(CONTINUATION),
    )
    with progress_bar("merge", room, training.progress) as advance:
        learner.learn(room, settings.min_count, advance)
    vocabulary = {token: i for i, token in enumerate(learner.tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))  # type: ignore[call-arg]
    backend.normalizer = normalizer_of(settings.normalizers)
    backend.pre_tokenizer = PRETOKENIZERS["words"].backend()  # type: ignore[assignment]
    backend.decoder = decoders.WordPiece()  # type: ignore[assignment]
    config = {"do_lower_case": settings.normalizers == ("bert",)}
    return {
        VOCABULARY_NAME: "".join(f"{token}\n" for token in learner.tokens).encode(),
        CONFIG_NAME: (json.dumps(config, indent=2) + "\n").encode(),
        **tokenizer_file(backend, settings.special_tokens),
    }


@dataclass(frozen=True)
class _Words:
    """Words as one array of code points."""

    code_points: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    """Of each word, in characters."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, counts: WordCounts) -> "_Words":
        data = b"".join(counts.words)
        ends = np.cumsum(np.fromiter(map(len, counts.words), np.int64, len(counts.words)))
        begins_character = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
        characters = np.concatenate([[0], np.cumsum(begins_character)])[np.append(0, ends)]
        code_points = np.frombuffer(data.decode().encode("utf-32-le"), np.uint32)
        return cls(code_points, np.diff(characters), counts.counts)

    @property
    def begins(self) -> NDArray[np.int64]:
        """Where each word begins."""
        return np.cumsum(self.lengths) - self.lengths

    def inner_characters(self) -> list[str]:
        """The characters after the first of a word, each once, sorted."""
        return [chr(code_point) for code_point in np.unique(np.delete(self.code_points, self.begins))]

    def of_characters(self, alphabet: set[str]) -> "_Words":
        """The words without other characters than those of `alphabet`."""
        foreign = ~np.isin(self.code_points, np.array([*map(ord, alphabet)], np.uint32))
        kept = np.add.reduceat(foreign, self.begins, dtype=np.int64) == 0
        return _Words(self.code_points[np.repeat(kept, self.lengths)], self.lengths[kept], self.counts[kept])


def _alphabet(words: _Words, settings: Settings) -> set[str]:
    """The most frequent characters that make up the share of the text asked for, each frequent enough."""
    code_points, inverse = np.unique(words.code_points, return_inverse=True)
    occurrences = np.zeros(len(code_points), np.int64)
    np.add.at(occurrences, inverse, np.repeat(words.counts, words.lengths))
    total, covered = int(occurrences.sum()), 0
    alphabet = set()
    for i in np.argsort(-occurrences, kind="stable").tolist():
        if occurrences[i] < settings.min_count or covered >= settings.character_coverage * total:
            break
        alphabet.add(chr(code_points[i]))
        covered += int(occurrences[i])
    return alphabet


def _cells(words: _Words, ids: Mapping[str, int]) -> NDArray[np.int32]:
    """The array that a `MergeLearner` takes."""
    cells = np.full(len(words.code_points) + len(words.lengths) + 1, BOUNDARY, np.int32)
    places = np.arange(len(words.code_points)) + 1 + np.repeat(np.arange(len(words.lengths)), words.lengths)
    begins = np.zeros(len(words.code_points), bool)
    begins[words.begins] = True
    for marked, prefix in ((begins, ""), (~begins, CONTINUATION)):
        code_points, inverse = np.unique(words.code_points[marked], return_inverse=True)
        numbers = np.array([ids[prefix + chr(code_point)] for code_point in code_points], np.int32)
        cells[places[marked]] = numbers[inverse]
    return cells


WORDPIECE = Kind(
    cut=_cut,
    fit=_fit,
    check=_check,
    pretokenizers=("words",),
    normalizers=("bert", "bert-cased"),
    default_normalizers=("bert",),
    options=("min_count", "character_coverage"),
    special_tokens=SPECIAL_TOKENS,
    eod_token="[SEP]",
)
