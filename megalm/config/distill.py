"""The section `distill`: a small model learns what a trained one says of the same text."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class DistillConfig(Section):
    """Task `distill` (arXiv:1503.02531): alpha x T^2 x divergence from the teacher + (1 - alpha) x cross entropy."""

    teacher: str | None = Field(
        None,
        description="Run or checkpoint of the teacher (`megalm convert` makes one of others' models); its tokenizer must be "
        "the run's. Not needed where `cache` is complete.",
    )
    teacher_dtype: Literal["fp32", "bf16", "fp16", "fp64"] | None = Field(
        None, description="Format of the teacher's weights and activations; default: precision.dtype."
    )
    alpha: float = Field(0.5, ge=0, le=1, description="Share of the teacher; the rest is the labels'.")
    temperature: float = Field(
        2.0, gt=0, description="T: both models' logits are divided by it before they are compared."
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl",
        description="`forward_kl` KL(teacher || student), `reverse_kl` KL(student || teacher), `jsd` the generalised "
        "Jensen-Shannon divergence.",
    )
    jsd_beta: float = Field(
        0.5, gt=0, lt=1, description="`jsd`: the teacher's share in the mixture; near 0 like forward_kl."
    )
    cache: str | None = Field(
        None,
        description="Directory of the teacher's largest logits for each sample of the run: written before the first step "
        "where it is not complete, then read in place of the teacher.",
    )
    cache_top_k: int = Field(
        64, gt=0, description="Logits of a token in `cache`; the others count as nothing."
    )
    cache_dtype: Literal["fp16", "fp32"] = Field("fp16", description="Format of the logits in `cache`.")
    hidden_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the distance between hidden states of student and teacher; 0: they are not compared.",
    )
    hidden_loss: Literal["mse", "cosine"] = Field(
        "mse", description="That distance: mean squared difference, or 1 - cosine."
    )
    hidden_layers: list[list[int]] = Field(
        default_factory=list,
        description="Layers whose outputs are compared: pairs [student's, teacher's] of numbers from 0, e.g. [[0, 1], [1, 3]]; "
        "their mean counts. Both models must be of one width.",
    )
    init_from_teacher_layers: list[int] | None = Field(
        None,
        description="Start with these layers of the teacher (numbers from 0), its embedding, last norm and output matrix, "
        "e.g. [0, 2, 4]; but for model.num_layers the student has the teacher's shape.",
    )
