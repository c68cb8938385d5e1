"""Opens preference data for the tasks that learn from them."""

from collections.abc import Sequence
from pathlib import Path

from megalm.config.schema import Config, DataSource
from megalm.dataset.answer_rows import AnswerRows
from megalm.dataset.opening import blend_of
from megalm.dataset.preference_stream import PreferenceStream
from megalm.tokenizer.base import Tokenizer
from megalm.train.sft import template_of


def open_answers(
    kind: type[PreferenceStream],
    config: Config,
    sources: list[DataSource],
    tokenizer: Tokenizer | None,
    mismatched: bool = False,
    reference: Sequence[Path] | None = None,
) -> PreferenceStream:
    """Open a blend as `PreferenceStream` or `EveryPreference`; UserError as these, without a tokenizer, and for data of other chat
    templates than each other's or the tokenizer's.
    """
    rows = AnswerRows.of(config, tokenizer)
    assert tokenizer is not None
    template_of(config)
    return kind(
        blend_of(sources),
        config.run.seed,
        rows,
        getattr(config, config.task).too_long,
        tokenizer.hash,
        config.model.vocab_size,
        mismatched,
        reference,
    )
