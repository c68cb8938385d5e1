"""Opens the blend that a configuration describes, as training reads it."""

from collections.abc import Sequence

from megalm.config.schema import Config, DataSource
from megalm.dataset.blend import Source
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.shares import Budget
from megalm.dataset.stream import TokenStream
from megalm.dataset.values import refuse_preferences


def blend_of(sources: Sequence[DataSource]) -> list[Source]:
    """Return the paths of `sources` with their weights or budgets."""
    blend: list[Source] = []
    for source in sources:
        if source.tokens is None and source.epochs is None:
            blend.append((source.path, 1.0 if source.weight is None else source.weight))
        else:
            blend.append((source.path, Budget(source.tokens, source.epochs)))
    return blend


def open_text(
    config: Config, sources: Sequence[DataSource], tokenizer_hash: str | None
) -> TokenStream | PackStream:
    """Open `sources` as windows of running text or as packs of documents; UserError as these do."""
    data, seq_length, seed = config.data, config.batch.seq_length, config.run.seed
    vocab_size = config.model.vocab_size
    if data.packing is not None:
        alone = not config.sft.packing
        stream: TokenStream | PackStream = PackStream(
            blend_of(sources), seq_length, seed, data.packing, tokenizer_hash, vocab_size, alone
        )
    else:
        stream = TokenStream(
            blend_of(sources), seq_length, seed, data.reset_at_document_end, tokenizer_hash, vocab_size
        )
    for dataset in stream.datasets:
        refuse_preferences(dataset, config.task)
    return stream
