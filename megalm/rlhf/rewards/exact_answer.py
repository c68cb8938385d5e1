"""Reward for the right answer."""

from collections.abc import Callable, Mapping
from typing import Any

from megalm.config.rewards import ExactAnswerConfig
from megalm.errors import UserError
from megalm.evaluate.final_answers import after_hashes, boxed, last_number, same_answer
from megalm.rlhf.rewards.base import Rule, Sample
from megalm.rlhf.rewards.patterns import Pattern


class ExactAnswer(Rule):
    """1 where the answer in the response is one that the record holds: as a number, or as a text in its plain form."""

    def __init__(self, config: ExactAnswerConfig) -> None:
        self.config = config
        extractors: dict[str, Callable[[str], str | None]] = {
            "last_number": last_number,
            "hashes": after_hashes,
            "boxed": boxed,
            "whole": str,
        }
        if config.pattern is not None:
            extractors["pattern"] = Pattern(config.pattern).last
        self.extract = extractors[config.extract]

    def check(self, record: Mapping[str, Any]) -> None:
        """See Reward."""
        self._references(record)

    def judge(self, sample: Sample) -> float:
        """See Rule."""
        found = self.extract(sample.response)
        references = self._references(sample.record)
        return float(found is not None and any(same_answer(found, right) for right in references))

    def _references(self, record: Mapping[str, Any]) -> list[str]:
        value = record.get(self.config.key)
        texts = [_text(one) for one in (value if isinstance(value, list) else [value])]
        if not texts or None in texts:
            raise UserError(
                f"reward `{self.config.title}`: the record has {value!r:.60} under '{self.config.key}', and a text or a "
                "number, or a list of them, is needed; name the key that holds the answer"
            )
        answers = [text for text in texts if text is not None]
        if self.config.extract_reference:
            answers = [self.extract(text) or text for text in answers]
        return answers


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) and str(value).strip() else None
