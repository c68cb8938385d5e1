"""WordPiece as BERT has it (Devlin et al. 2019): pieces after a word's first begin with ##."""

import json
from collections import Counter

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
    words = [word.decode() for word in training.counts.words]
    alphabet = _alphabet(words, training.counts, settings)
    kept = [i for i, word in enumerate(words) if alphabet.issuperset(word)]
    words = [words[i] for i in kept]
    inside = {character for word in words for character in word[1:]}
    base = [*sorted(alphabet), *(CONTINUATION + character for character in sorted(inside))]
    room = settings.room(f"{len(base)} characters at the beginning of words and inside", len(base))
    tokens = [*settings.special_tokens, *base]
    learner = MergeLearner(
        _cells(words, tokens),
        training.counts.counts[kept],
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


def _alphabet(words: list[str], counts: WordCounts, settings: Settings) -> set[str]:
    """The most frequent characters that make up the share of the text asked for, each frequent enough."""
    occurrences: Counter[str] = Counter()
    for word, count in zip(words, counts.counts.tolist(), strict=True):
        for character in word:
            occurrences[character] += count
    total, covered = occurrences.total(), 0
    alphabet = set()
    for character, count in sorted(occurrences.items(), key=lambda entry: (-entry[1], entry[0])):
        if count < settings.min_count or covered >= settings.character_coverage * total:
            break
        alphabet.add(character)
        covered += count
    return alphabet


def _cells(words: list[str], tokens: list[str]) -> NDArray[np.int32]:
    """The array that a `MergeLearner` takes."""
    ids = {token: i for i, token in enumerate(tokens)}
    cells = [BOUNDARY]
    for word in words:
        cells.append(ids[word[0]])
        cells += [ids[CONTINUATION + character] for character in word[1:]]
        cells.append(BOUNDARY)
    return np.array(cells, np.int32)


WORDPIECE = Kind(
    cut=_cut,
    fit=_fit,
    check=_check,
    pretokenizers=("words",),
    normalizers=("bert", "bert-cased"),
    default_normalizers=("bert",),
    special_tokens=SPECIAL_TOKENS,
    eod_token="[SEP]",
)
