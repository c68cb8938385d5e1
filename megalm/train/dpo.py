"""Task `dpo`: which answers to prefer, learned from log-probabilities beside a reference's (DPO, IPO, KTO)."""

import torch
from torch import Tensor, nn

from megalm.config.preferences import DpoConfig
from megalm.config.schema import Config, DataSource
from megalm.dataset.preference_stream import EveryPreference, PreferenceStream
from megalm.engine.base import Engine, MicroBatch
from megalm.errors import UserError
from megalm.parallel.layout import Layout
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.load import load_tokenizer
from megalm.train.answer_logprobs import answer_logprobs, run_token_losses
from megalm.train.classify import has_class
from megalm.train.frozen import check_vocabulary, find_frozen, frozen_config
from megalm.train.preference_data import open_answers
from megalm.train.preference_losses import dpo, ipo, kto
from megalm.train.reference import BASELINE, REFERENCE, Reference, load_reference, reference_logprobs
from megalm.train.reference_cache import cache_files, fill_cache, missing_files
from megalm.train.reward import counted_pairs


def open_preferences(
    config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> PreferenceStream:
    """Open a blend of preferences in random order; UserError where the loss or the reference does not fit."""
    if not config.dpo.reference_free:
        checkpoint = find_frozen(str(config.dpo.reference or config.run.load), REFERENCE)
        frozen_config(config, REFERENCE, checkpoint, None)
        check_vocabulary(config, tokenizer, REFERENCE, checkpoint)
    return _open(PreferenceStream, config, sources, tokenizer)


def open_all_preferences(
    config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> PreferenceStream:
    """Open sources of preferences, each once."""
    return _open(EveryPreference, config, sources, tokenizer)


def _open(
    kind: type[PreferenceStream], config: Config, sources: list[DataSource], tokenizer: Tokenizer | None
) -> PreferenceStream:
    loss = config.dpo.loss
    stream = open_answers(kind, config, sources, tokenizer, loss == "kto", cache_files(config, sources))
    if stream.kind != "pairs" and (loss != "kto" or stream.kind == "ratings"):
        wanted = "pairs or answers with a label, true or false" if loss == "kto" else "pairs"
        raise UserError(f"dpo.loss `{loss}` learns from {wanted}; {sources[0].path} holds {stream.kind}")
    return stream


def prepare_reference(
    config: Config, layout: Layout, stream: PreferenceStream, engine: Engine
) -> Reference | None:
    """The reference, for the loop to ask before each step; none where nothing is compared with, or its log-probabilities are
    cached, here at the latest. Collective.
    """
    if config.dpo.reference_free:
        return None
    if config.dpo.cache is None:
        return load_reference(config, layout, engine)
    streams = [(stream, config.data.train)]
    if config.train.eval_interval:
        tokenizer = load_tokenizer(str(config.tokenizer.path))
        streams.append((open_all_preferences(config, config.data.valid, tokenizer), config.data.valid))
    files = [cache_files(config, sources) or [] for _, sources in streams]
    missing = [missing_files(part, layout) for part in files]
    if any(missing):
        reference = load_reference(config, layout, engine)
        for (one, _), part, wanted in zip(streams, files, missing, strict=True):
            fill_cache(one, part, wanted, reference, config.batch.micro_batch_size)
    return None


class PreferenceLoss:
    """Mean of the loss of `dpo.loss` over the pairs, or the answers, of the global batch (see `engine.base.Loss`).

    figures: an answer's reward is beta x log(model / reference). accuracy: of pairs whose chosen answer has the larger one;
    of answers by themselves, those whose reward lies on the right side of `kto`'s baseline.
    """

    parts: tuple[str, ...] = ()

    def __init__(self, settings: DpoConfig) -> None:
        self.settings = settings
        last = "baseline" if settings.loss == "kto" else "margin"
        self.figures: tuple[str, ...] = ("accuracy", "chosen_reward", "rejected_reward", last)

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Number of pairs; in `kto` of answers, of wanted and of unwanted ones."""
        if self.settings.loss != "kto":
            return counted_pairs(microbatch).sum().double().repeat(5)
        assert microbatch.classes_B is not None
        counted_B = has_class(microbatch)
        wanted_B = microbatch.classes_B == 1
        judged = counted_pairs(microbatch) if microbatch.rows_per_sample == 2 else counted_B
        counts = [counted_B, judged, counted_B & wanted_B, counted_B & ~wanted_B, counted_B]
        return torch.stack([part.sum().double() for part in counts])

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is -log p of each label (B, S)."""
        return run_token_losses(model, microbatch)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Sums of losses and of figures."""
        ratio_B = answer_logprobs(output, microbatch)
        if not self.settings.reference_free:
            ratio_B = ratio_B - reference_logprobs(microbatch).to(ratio_B.dtype)
        if self.settings.loss == "kto":
            return self._of_answers(ratio_B, microbatch)
        return self._of_pairs(ratio_B, microbatch)

    def _of_pairs(self, ratio_B: Tensor, microbatch: MicroBatch) -> Tensor:
        settings = self.settings
        if settings.loss == "ipo":
            assert microbatch.lengths_B is not None
            mean_P2 = (ratio_B / microbatch.lengths_B).view(-1, 2)
            loss_P = ipo(mean_P2[:, 0], mean_P2[:, 1], settings.beta)
        else:
            sum_P2 = ratio_B.view(-1, 2)
            loss_P = dpo(sum_P2[:, 0], sum_P2[:, 1], settings.beta, settings.label_smoothing)
        chosen_P, rejected_P = (settings.beta * ratio_B.detach()).view(-1, 2).unbind(1)
        figures = [loss_P, _right(chosen_P, rejected_P), chosen_P, rejected_P, chosen_P - rejected_P]
        counted_P = counted_pairs(microbatch).to(loss_P.dtype)
        return torch.stack([(each_P * counted_P).sum() for each_P in figures])

    def _of_answers(self, ratio_B: Tensor, microbatch: MicroBatch) -> Tensor:
        settings = self.settings
        assert microbatch.classes_B is not None
        if BASELINE not in microbatch.scores:
            raise UserError("dpo.loss `kto` runs within `megalm train` alone; plan or time dpo.loss=dpo")
        baseline = microbatch.scores[BASELINE].to(ratio_B.dtype)
        wanted_B = microbatch.classes_B == 1
        weights = settings.desirable_weight, settings.undesirable_weight
        loss_B = kto(ratio_B, wanted_B, baseline, settings.beta, *weights)
        reward_B = settings.beta * ratio_B.detach()
        if microbatch.rows_per_sample == 2:
            # each of the two answers stands for half of its pair
            right_B = 0.5 * _right(*reward_B.view(-1, 2).unbind(1)).repeat_interleave(2)
        else:
            right_B = ((ratio_B.detach() > baseline) == wanted_B).to(loss_B.dtype)
        kinds = [loss_B, right_B, reward_B * wanted_B, reward_B * ~wanted_B, baseline.expand_as(loss_B)]
        counted_B = has_class(microbatch).to(loss_B.dtype)
        return torch.stack([(each_B * counted_B).sum() for each_B in kinds])


def _right(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """1 for a pair whose chosen answer is ahead, a half where none is."""
    return (chosen_P > rejected_P).to(chosen_P.dtype) + 0.5 * (chosen_P == rejected_P)
