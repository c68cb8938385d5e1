"""SentencePiece's unigram model (Kudo 2018) and BPE, trained by the library on counted words."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from megalm.errors import UserError
from megalm.tokenizer.load import SENTENCEPIECE_NAME
from megalm.tokenizer.training.counting import WordCounts
from megalm.tokenizer.training.kinds import BYTES, Files, Kind, Settings, Training
from megalm.tokenizer.training.seeds import frequent_substrings

PROCESS = "megalm.tokenizer.training.sentencepiece_process"
SETTINGS_NAME, WORDS_NAME, SEEDS_NAME, PROBLEM_NAME = "settings.json", "words.tsv", "seeds.tsv", "problem"
LONGEST_PIECE = 16
LEAST_COVERAGE = 0.98
SEEDS = 1_000_000
SPACE = "\u2581"
UNKNOWN = "<unk>"
TAB = "\x01"
"""Stands for a tab, which ends a word in the library's file, while it trains: a control character that texts lack."""
LONGEST_WORD = 4192
"""Bytes; longer words are left out, as the library leaves out longer lines."""
THREADS = 16
"""Sums of the unigram model depend on how many there are, so it is not the number of workers."""
RULES = {
    (): "identity",
    ("nfkc",): "nfkc",
    ("nfkc", "lowercase"): "nfkc_cf",
    ("nmt-nfkc",): "nmt_nfkc",
    ("nmt-nfkc", "lowercase"): "nmt_nfkc_cf",
}
"""The library's names of what texts go through first."""
_LINE_END = regex.compile(r"[\r\n]+")
# A space begins a word; more of them stay before it. A zero never lies within a piece.
_WORD = regex.compile(f"{SPACE}*[^{SPACE}\n\0]+|{SPACE}+")


@dataclass(frozen=True)
class SentencePieceCutter:
    """Normalizes texts line by line and cuts them at spaces, as the library does in training."""

    rule: str

    def count(self, texts: Iterable[str]) -> Mapping[bytes, int]:
        """How often each word occurs in `texts`, spaces written as in pieces, a space before each line."""
        words: Counter[str] = Counter()
        for text in texts:
            lines = [line for line in _LINE_END.split(text) if line]
            if lines:
                words.update(_WORD.findall("\n".join(normalizer(self.rule).normalize(lines))))
        return {word.encode(): count for word, count in words.items()}


@lru_cache(maxsize=1)
def normalizer(rule: str) -> Any:
    """The library's normalizer; with the rule "identity" every space survives, else runs of them become one."""
    from sentencepiece import SentencePieceNormalizer

    return SentencePieceNormalizer(
        rule_name=rule,
        add_dummy_prefix=True,
        escape_whitespaces=True,
        remove_extra_whitespaces=rule != "identity",
    )


def _check(settings: Settings) -> None:
    if settings.normalizers not in RULES:
        known = ", ".join(" then ".join(names) for names in RULES if names)
        raise UserError(
            f"SentencePiece cannot normalize by {' then '.join(settings.normalizers)}; choose none or {known}"
        )
    if settings.character_coverage < LEAST_COVERAGE:
        raise UserError(
            f"character_coverage is {settings.character_coverage:g}; SentencePiece takes {LEAST_COVERAGE} to 1"
        )
    settings.room("a character and the bytes", 1 + BYTES * settings.byte_fallback)


def _fit(training: Training) -> Files:
    """Let the library train in a process of its own, which Ctrl-C ends at once."""
    settings, folder = training.settings, training.folder
    _write_words(training.counts.at_least(settings.min_count), folder, with_seeds=settings.kind == "unigram")
    (folder / SETTINGS_NAME).write_text(json.dumps(asdict(settings)))
    command = [sys.executable, "-m", PROCESS, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # in a session of its own it does not hear Ctrl-C, and ends without a word
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    problem = folder / PROBLEM_NAME
    if problem.exists():
        raise UserError(
            f"sentencepiece cannot train this: {problem.read_text().strip()} (vocab_size {settings.vocab_size}, "
            f"character_coverage {settings.character_coverage:g}); change these or give more text"
        )
    if code:
        raise RuntimeError(f"the training of sentencepiece ended with code {code}")
    return {SENTENCEPIECE_NAME: (folder / SENTENCEPIECE_NAME).read_bytes()}


def _write_words(counts: WordCounts, folder: Path, with_seeds: bool) -> None:
    """Write what the library reads: words with counts, and the pieces that a unigram model begins with.

    Of counted words the library would find these itself, but by how many words each is in, not how often it occurs.
    """
    short = [i for i, word in enumerate(counts.words) if len(word) <= LONGEST_WORD]
    if not short:
        raise UserError(
            f"the text has no word of {LONGEST_WORD} bytes or less; give one with spaces or line ends"
        )
    words = [counts.words[i].decode().replace("\t", TAB) for i in short]
    with open(folder / WORDS_NAME, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(
            f"{word}\t{count}\n" for word, count in zip(words, counts.counts[short].tolist(), strict=True)
        )
    if with_seeds:
        with open(folder / SEEDS_NAME, "w", encoding="utf-8", newline="\n") as file:
            seeds = frequent_substrings(words, counts.counts[short], LONGEST_PIECE, SEEDS)
            file.writelines(f"{piece}\t{count}\n" for piece, count in seeds)


def _kind() -> Kind:
    return Kind(
        cut=lambda settings: SentencePieceCutter(RULES[settings.normalizers]),
        fit=_fit,
        check=_check,
        pretokenizers=("whitespace", "digits"),
        normalizers=sorted({name for names in RULES for name in names}),
        options=("min_count", "character_coverage", "byte_fallback"),
        special_tokens=("<|endoftext|>", UNKNOWN),
    )


UNIGRAM = _kind()
SENTENCEPIECE_BPE = _kind()
