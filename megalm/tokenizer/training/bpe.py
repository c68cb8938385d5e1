"""Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) from counted words."""

import numpy as np
from tokenizers import Tokenizer, decoders, models

from megalm.tasks import progress_bar
from megalm.tokenizer.json_pieces import BYTE_CHARACTERS
from megalm.tokenizer.training.cutting import PRETOKENIZERS, Cutter, normalizer_of
from megalm.tokenizer.training.kinds import BYTES, Files, Kind, Settings, Training, check_apart
from megalm.tokenizer.training.levels import tokenizer_file
from megalm.tokenizer.training.merges import MergeLearner, cells_of


def _cut(settings: Settings) -> Cutter:
    return Cutter(settings.pretokenizer, settings.normalizers)


def _check(settings: Settings) -> None:
    settings.room(f"{BYTES} bytes", BYTES)
    check_apart(settings.special_tokens, BYTE_CHARACTERS.__contains__)


def _fit(training: Training) -> Files:
    settings, counts = training.settings, training.counts
    specials = settings.special_tokens
    tokens = [*specials, *sorted(BYTE_CHARACTERS)]
    numbers = {token: i for i, token in enumerate(tokens)}
    ids = np.array([numbers[character] for character in BYTE_CHARACTERS], np.int32)
    learner = MergeLearner(
        cells_of(counts.words, ids), counts.counts, tokens, forbidden=specials, ties=settings.ties
    )
    room = settings.room(f"{BYTES} bytes", BYTES)
    with progress_bar("merge", room, training.progress) as advance:
        merges = learner.learn(room, settings.min_count, advance)
    spelled = [(learner.tokens[merge.left], learner.tokens[merge.right]) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(learner.tokens)}
    backend = Tokenizer(models.BPE(vocabulary, spelled))
    assert settings.pretokenizer is not None
    backend.pre_tokenizer = PRETOKENIZERS[settings.pretokenizer].backend()  # type: ignore[assignment]
    backend.normalizer = normalizer_of(settings.normalizers)
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer_file(backend, specials)


BPE = Kind(
    cut=_cut,
    fit=_fit,
    check=_check,
    pretokenizers=("gpt2", "gpt4", "gpt2-digits", "gpt4-digits"),
    normalizers=("nfc", "nfd", "nfkc", "nfkd", "lowercase", "strip-accents"),
    options=("min_count", "ties"),
)
