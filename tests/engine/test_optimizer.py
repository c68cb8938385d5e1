"""The update is AdamW's: with clipping, with decay of matrices alone, and skipped where numbers are not finite."""

import pytest
import torch
from torch import Tensor, nn

from megalm.config import Config
from megalm.engine.base import MicroBatch
from megalm.engine.megatron import MegatronEngine
from megalm.model.build import build_model
from megalm.parallel.layout import Layout, create_layout
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, tiny_batch, tiny_config, tiny_engine, tiny_microbatches, to_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"


def randomize(engine: MegatronEngine) -> None:
    """Nonzero values everywhere, biases too; the optimizer's own copies follow."""
    torch.manual_seed(engine.layout.tp_rank)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    engine.optimizer.reload_model_params()


def without_counted_tokens(microbatches: list[MicroBatch]) -> list[MicroBatch]:
    for microbatch in microbatches:
        microbatch.loss_mask_BS.zero_()
    return microbatches


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [(), (ZERO1,), (TP2, SP)], ids=["DP2", "DP2+ZeRO-1", "TP2+SP"])
@in_world(2)
def test_weight_decay_acts_on_matrices_alone(layout: tuple[str, ...], dtype: str) -> None:
    """Without gradients AdamW only decays: here to exactly one half."""
    engine = tiny_engine(
        tiny_config("gpt2-tiny", f"precision.dtype={dtype}", "optimizer.weight_decay=1.0", *layout)
    )
    randomize(engine)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    metrics = engine.step(
        without_counted_tokens(tiny_microbatches(0, engine.layout)), NextTokenLoss(), lr=0.5
    )
    assert (metrics.loss, metrics.grad_norm, metrics.weight, metrics.skipped) == (0.0, 0.0, 0.0, False)
    for name, parameter in engine.model.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert is_matrix == (parameter.dim() == 2), name
        expected = before[name] / 2 if is_matrix else before[name]
        assert torch.equal(parameter, expected), name


class PlainTrainer:
    """The same model trained by torch alone on one process."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.model = build_model(config, layout).train()
        fields = config.optimizer
        self.clip = fields.clip_grad
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": fields.weight_decay},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ],
            betas=(fields.adam_beta1, fields.adam_beta2),
            eps=fields.adam_eps,
            fused=False,
        )

    def step(self, microbatches: list[MicroBatch], lr: float | list[float]) -> tuple[float, float]:
        """(mean loss over counted tokens, gradient norm before clipping). lr: of all groups, or of each."""
        self.optimizer.zero_grad()
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, lr if isinstance(lr, list) else [lr] * len(groups), strict=True):
            group["lr"] = rate
        weight = sum(m.loss_mask_BS.sum() for m in microbatches)
        loss = sum(self._loss(m) for m in microbatches) / weight
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or float("inf"))
        self.optimizer.step()
        return float(loss.detach()), float(norm)

    def _loss(self, microbatch: MicroBatch) -> Tensor:
        logits = self.model(microbatch.tokens_BS).flatten(0, 1)
        losses = nn.functional.cross_entropy(logits, microbatch.labels_BS.flatten(), reduction="none")
        return (losses * microbatch.loss_mask_BS.flatten()).sum()


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@in_world(1)
def test_five_steps_equal_torchs_adamw(preset: str, clip: float) -> None:
    config = tiny_config(
        preset, f"optimizer.clip_grad={clip}", "optimizer.weight_decay=0.3", "optimizer.adam_beta2=0.97"
    )
    layout = create_layout(config.parallel)
    engine, plain = MegatronEngine(config, layout), PlainTrainer(config, layout)
    for step in range(5):
        microbatches, lr = tiny_microbatches(step, layout), LR * (step + 1)
        metrics = engine.step(microbatches, NextTokenLoss(), lr)
        loss, norm = plain.step(microbatches, lr)
        assert metrics.loss == pytest.approx(loss, rel=1e-12)
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-12)
        assert 0.5 < metrics.grad_norm < 100
    expected = dict(plain.model.named_parameters())
    for name, parameter in engine.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 8])
@in_world(1)
def test_the_split_into_microbatches_changes_nothing(micro_batch_size: int) -> None:
    found = []
    for size in (2, micro_batch_size):
        engine = tiny_engine(tiny_config("llama-tiny", f"batch.micro_batch_size={size}"))
        for step in range(3):
            microbatches = to_microbatches(tiny_batch(step), engine.layout, size)
            metrics = engine.step(microbatches, NextTokenLoss(), LR)
        found.append([metrics.loss, metrics.grad_norm])
    assert found[1] == pytest.approx(found[0], rel=1e-12)


def spoil(kind: str, engine: MegatronEngine, microbatches: list[MicroBatch], rank: int) -> None:
    """Make one number on one rank not finite for one step: a token's weight, or an element of a gradient."""
    if engine.layout.rank != rank:
        return
    if kind == "loss":
        microbatches[-1].loss_mask_BS[0, 0] = float("inf")
        return
    parameter = next(p for name, p in engine.model.named_parameters() if name.endswith("linear_fc2.weight"))

    def put(gradient: Tensor) -> Tensor:
        handle.remove()
        gradient = gradient.clone()
        gradient[3, 1] = float(kind)
        return gradient

    handle = parameter.register_hook(put)


def run_with_a_spoilt_step(
    kind: str | None, rank: int, config: Config
) -> tuple[list, dict[str, Tensor], list[bool]]:
    """(losses and norms of the good steps, final weights, what was skipped); step 2 is spoilt or left out."""
    engine = tiny_engine(config)
    good, skipped = [], []
    for step in range(4):
        microbatches = tiny_microbatches(step, engine.layout)
        if step == 2:
            if kind is None:
                continue
            spoil(kind, engine, microbatches, rank)
            before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
            updates = engine.optimizer_state.updates
        metrics = engine.step(microbatches, NextTokenLoss(), LR)
        skipped.append(metrics.skipped)
        if step == 2:
            assert engine.optimizer_state.updates == updates
            for name, parameter in engine.model.named_parameters():
                assert torch.equal(parameter, before[name]), name
        else:
            good.append((metrics.loss, metrics.grad_norm))
    return good, {name: p.detach().clone() for name, p in engine.model.named_parameters()}, skipped


def check_spoilt_step(kind: str, rank: int, *overrides: str) -> None:
    """Every rank skips the step, and training goes on bit for bit as if it had not been."""
    config = tiny_config("llama-tiny", *overrides)
    expected, expected_weights, _ = run_with_a_spoilt_step(None, rank, config)
    good, weights, skipped = run_with_a_spoilt_step(kind, rank, config)
    assert skipped == [False, False, True, False]
    assert good == expected
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name]), name


@pytest.mark.parametrize("kind", ["loss", "nan", "inf"])
@pytest.mark.parametrize(
    "layout",
    [
        ("precision.dtype=fp32",),
        ("precision.dtype=fp32", ZERO1),
        ("precision.dtype=bf16", ZERO1),
        (TP2,),
        (PP2,),
    ],
    ids=["DP2", "DP2+ZeRO-1", "DP2+ZeRO-1-bf16", "TP2", "PP2"],
)
@in_world(2)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(layout: tuple[str, ...], kind: str) -> None:
    # only the last stage uses the weights of tokens; the first stage's gradients are the farther ones
    rank = 1 if kind == "loss" or PP2 not in layout else 0
    check_spoilt_step(kind, rank, *layout)


@in_world(4)
def test_a_step_that_is_not_finite_on_one_of_four_ranks_is_skipped_by_all() -> None:
    check_spoilt_step("nan", 1, TP2, PP2)


@in_world(2)
def test_weights_of_tied_embeddings_stay_the_same_bits_on_both_stages() -> None:
    for dtype in ("fp32", "bf16"):
        engine = tiny_engine(tiny_config("gpt2-tiny", PP2, f"precision.dtype={dtype}"))
        weight = engine.model.shared_embedding_or_output_weight()
        start = weight.detach().clone()
        for step in range(5):
            engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
        stages = [torch.empty_like(weight) for _ in range(2)]
        torch.distributed.all_gather(stages, weight.detach())
        assert torch.equal(stages[0], stages[1])
        assert not torch.equal(weight, start)
