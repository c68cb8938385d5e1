"""Task `distill`: predict the next token as the labels say and as a larger model, the teacher, sees it."""

import functools

import torch
from torch import Tensor, nn

from megalm.config.schema import Config, DataSource
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.stream import TokenStream
from megalm.engine.base import MicroBatch
from megalm.errors import UserError
from megalm.model.distillation import Objective, TeacherLogits, TopKTeacher, linear_distillation
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout
from megalm.tokenizer.base import Tokenizer
from megalm.train.frozen import check_vocabulary, find_frozen, frozen_config
from megalm.train.pretrain import NextTokenLoss, open_windows
from megalm.train.student import check_student
from megalm.train.teacher import TEACHER, Teacher, load_teacher
from megalm.train.teacher_cache import CachedStream, fill_cache, open_cache


def open_samples(
    config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> TokenStream | PackStream | CachedStream:
    """Open a blend as task `pretrain` does, samples to be trained on with the teacher's cached logits where they have them.

    UserError where the teacher does not fit the run: its tokenizer, the layout, its positions.
    """
    settings = config.distill
    if settings.teacher is not None:
        teacher = find_frozen(settings.teacher, TEACHER)
        frozen_config(config, TEACHER, teacher, settings.teacher_dtype)
        check_vocabulary(config, tokenizer, TEACHER, teacher)
        check_student(config, teacher)
    stream = open_windows(config, sources, tokenizer)
    if settings.cache is None or sources is not config.data.train:
        return stream
    return CachedStream(stream, open_cache(config, stream.samples_in_budget))


def prepare(config: Config, layout: Layout, stream: object) -> Teacher | None:
    """The teacher, for the loop to ask before each step; none where its logits are cached, here at the latest. Collective."""
    if not isinstance(stream, CachedStream):
        return load_teacher(config, layout)
    missing = stream.cache.missing(layout)
    if missing:
        if config.distill.teacher is None:
            raise UserError(
                f"{config.distill.cache} lacks {len(missing)} of the files that this run needs, e.g. {missing[0]}: name the "
                "teacher in distill.teacher to have them written"
            )
        fill_cache(stream, missing, load_teacher(config, layout), config.batch.micro_batch_size)
    return None


class DistillationLoss(NextTokenLoss):
    """alpha x temperature^2 x divergence from the teacher + (1 - alpha) x cross entropy, means over all counted tokens.

    parts: the two summands, `labels` and `teacher`. A validation measures the cross entropy alone, in place of `labels`,
    so that it compares with any other training.
    """

    parts = ("labels", "teacher")

    def __init__(self, config: Config) -> None:
        settings = config.distill
        self.objective = Objective(
            settings.alpha, settings.temperature, settings.divergence, settings.jsd_beta
        )

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of counted tokens, or the sum of their weights, for each part."""
        return super().weight(microbatch).repeat(2)

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output are the sums themselves."""
        if not torch.is_grad_enabled():
            return super().forward(model, microbatch)
        state = microbatch.forward_state()
        state.head = functools.partial(self._sums, microbatch)
        return model(microbatch.tokens_BS, state)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Already sums, in a validation one of them."""
        return output if output.ndim else torch.stack([output, torch.zeros_like(output)])

    def _sums(self, microbatch: MicroBatch, model: GPT, hidden_states: Tensor) -> Tensor:
        total, summands = linear_distillation(
            model.whole_hidden(hidden_states).flatten(0, 1),
            model.real_output_weight(),
            microbatch.labels_BS.T.flatten(),
            microbatch.loss_mask_BS.T.flatten(),
            teacher_logits(microbatch, model),
            self.objective,
            model.first_column,
            model.pg_collection.tp,
            model.chunk_tokens,
        )
        # both are divided by the same weight, so that one gradient does for both
        return summands + torch.stack([total - total.detach(), torch.zeros_like(total)])


def teacher_logits(microbatch: MicroBatch, model: GPT) -> TeacherLogits:
    """What the teacher says of the microbatch's tokens, in the order (S, B), on the columns of `model`."""
    ids_BSK, logits_BSK = microbatch.teacher_ids_BSK, microbatch.teacher_logits_BSK
    if ids_BSK is not None and logits_BSK is not None:
        ids_TK, logits_TK = (part.transpose(0, 1).flatten(0, 1) for part in (ids_BSK, logits_BSK))
        return TopKTeacher(ids_TK, logits_TK, model.first_column, model.columns)
    if TEACHER not in microbatch.scores:
        raise UserError(
            "task `distill` runs within `megalm train` alone; set task=pretrain for the student by itself"
        )
    return microbatch.scores[TEACHER].logits()
