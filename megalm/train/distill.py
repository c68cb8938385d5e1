"""Task `distill`: predict the next token as the labels say and as a larger model, the teacher, sees it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megalm.config.pipeline import layers_per_chunk
from megalm.config.schema import Config, DataSource
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.stream import TokenStream
from megalm.engine.base import Engine, MicroBatch
from megalm.errors import UserError
from megalm.model.distillation import Objective, TeacherLogits, TopKTeacher, linear_distillation
from megalm.model.gpt import GPT
from megalm.model.hidden_matching import hidden_distance
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
    """Open the training's blend as task `pretrain` does, with the teacher's logits where the run has them in a cache.

    UserError where the teacher does not fit the run: its tokenizer, the layout, its positions.
    """
    settings = config.distill
    if settings.teacher is not None:
        teacher = find_frozen(settings.teacher, TEACHER)
        check_hidden_layers(config, frozen_config(config, TEACHER, teacher, settings.teacher_dtype))
        check_vocabulary(config, tokenizer, TEACHER, teacher)
        check_student(config, teacher)
    stream = open_windows(config, sources, tokenizer)
    if settings.cache is None:
        return stream
    return CachedStream(stream, open_cache(config, stream.samples_in_budget))


def prepare(config: Config, layout: Layout, stream: object, engine: Engine) -> Teacher | None:
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


def check_hidden_layers(student: Config, teacher: Config) -> None:
    """UserError where pairs of layers to be compared differ in width, or do not both lie beside the loss."""
    settings = student.distill
    if not settings.hidden_loss_weight:
        return
    widths = student.model.hidden_size, teacher.model.hidden_size
    if widths[0] != widths[1]:
        raise UserError(
            f"distill.hidden_loss_weight compares hidden states of one width: the student's are {widths[0]} wide, the "
            f"teacher's {widths[1]}; set it to 0, or model.hidden_size={widths[1]}"
        )
    for place, config, role in ((0, student, "student"), (1, teacher, "teacher")):
        layers = config.model.num_layers
        first = layers - layers_per_chunk(config)[-1]
        for pair in settings.hidden_layers:
            if not first <= pair[place] < layers:
                raise UserError(
                    f"distill.hidden_layers: layer {pair[place]} of the {role} is to be compared, but the part of the pipeline "
                    f"that computes the loss holds its layers {first} to {layers - 1}: name these, or lower PP"
                )


class DistillationLoss(NextTokenLoss):
    """alpha x temperature^2 x divergence from the teacher + (1 - alpha) x cross entropy, means over all counted tokens.

    parts: the two summands, `labels` and `teacher`, and `hidden`, the distance of hidden states, where it is asked for. A
    validation measures the cross entropy alone, in place of `labels`, so that it compares with any other training.
    """

    def __init__(self, config: Config) -> None:
        settings = config.distill
        self.settings = settings
        self.parts = ("labels", "teacher", "hidden") if settings.hidden_loss_weight else ("labels", "teacher")
        self.layers = settings.hidden_layers if settings.hidden_loss_weight else []
        self.objective = Objective(
            settings.alpha, settings.temperature, settings.divergence, settings.jsd_beta
        )

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of counted tokens, or the sum of their weights, for each part."""
        return super().weight(microbatch).repeat(len(self.parts))

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output are the sums themselves."""
        if not torch.is_grad_enabled():
            return super().forward(model, microbatch)
        state = microbatch.forward_state()
        state.layer_outputs = dict.fromkeys(student for student, _ in self.layers)
        state.head = functools.partial(self._sums, microbatch, state.layer_outputs)
        return model(microbatch.tokens_BS, state)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Already sums, in a validation one of them."""
        return output if output.ndim else F.pad(output[None], (0, len(self.parts) - 1))

    def _sums(
        self,
        microbatch: MicroBatch,
        layer_outputs: dict[int, Tensor | None],
        model: GPT,
        hidden_states: Tensor,
    ) -> Tensor:
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
        sums = summands + F.pad((total - total.detach())[None], (0, 1))
        if not self.layers:
            return sums
        theirs = microbatch.scores[TEACHER].layer_outputs
        distances = []
        for student, teacher in self.layers:
            mine = layer_outputs[student]
            assert mine is not None
            distances.append(
                hidden_distance(
                    mine, theirs[teacher], microbatch.loss_mask_BS, self.settings.hidden_loss, model
                )
            )
        hidden = self.settings.hidden_loss_weight * torch.stack(distances).mean()
        return torch.cat([sums, hidden[None].to(sums.dtype)])


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
