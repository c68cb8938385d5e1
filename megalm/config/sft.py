"""The section `sft`: supervised fine-tuning on conversations."""

from pydantic import Field

from megalm.config.section import Section


class SftConfig(Section):
    """Task `sft`: how conversations become samples."""

    packing: bool = Field(
        True,
        description="Put as many whole conversations as fit into a sample, attention and positions within each; false: one a "
        "sample, the rest padding. What becomes of those longer than batch.seq_length: data.packing, `drop` or `truncate`.",
    )
