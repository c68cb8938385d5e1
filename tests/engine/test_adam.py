"""Kernels of the optimizer make the same updates and leave the same checkpoints."""

from typing import Any

import pytest
import torch

from megalm.engine import adam
from megalm.engine.adam import distrib_optimizer, megatron_optimizer
from megalm.engine.megatron import MegatronEngine
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

ZERO1 = "parallel.zero_stage=1"


class GroupCountingAdam(torch.optim.Optimizer):
    """AdamW by its formula (arXiv:1711.05101) that keeps its books as NVIDIA apex's: one count a group, moments a parameter."""

    def __init__(
        self, params: Any, lr: float, weight_decay: float, betas: Any, eps: float, adam_w_mode: bool
    ) -> None:
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), count = group["betas"], group["step"]
            for p in group["params"]:
                state = self.state[p]
                assert set(state) == {"exp_avg", "exp_avg_sq"}
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)
                root = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt() + group["eps"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcdiv_(state["exp_avg"] / (1 - beta1**count), root, value=-group["lr"])


def use_group_counting_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(kernel: str) -> dict[str, Any]:
        if kernel != "apex":
            monkeypatch.setattr(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", True)
            return {"fused": True, "foreach": False}
        monkeypatch.setattr(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", False)
        monkeypatch.setattr(megatron_optimizer, "Adam", GroupCountingAdam)
        monkeypatch.setattr(distrib_optimizer, "Adam", GroupCountingAdam)
        return {"step": 0}

    monkeypatch.setattr("megalm.engine.megatron.choose_adam", choose)


def steps(engine: MegatronEngine, numbers: range) -> list[tuple[float, float]]:
    results = [engine.step(tiny_microbatches(n, engine.layout), NextTokenLoss(), LR) for n in numbers]
    return [(result.loss, result.grad_norm) for result in results]


def moved(source: MegatronEngine, target: MegatronEngine) -> None:
    """Hand the state of one engine over to the other, as a checkpoint does."""
    state = source.state()
    stored = {shard.key: shard.dtype for shard in state.values()}
    assert stored.keys() >= {shard.key for shard in target.empty_state(stored, True).values()}
    target.load({place: shard.data for place, shard in state.items()})
    target.counters = source.counters


@pytest.mark.parametrize("kernel", ["torch", "foreach"])
@in_world(1)
def test_kernels_of_torch_make_the_same_updates(kernel: str) -> None:
    expected = steps(tiny_engine(tiny_config("gpt2-tiny")), range(5))
    found = steps(tiny_engine(tiny_config("gpt2-tiny", f"optimizer.kernel={kernel}")), range(5))
    assert torch.tensor(found) == pytest.approx(torch.tensor(expected), rel=1e-12)


@pytest.mark.parametrize(("before", "after"), [("torch", "apex"), ("apex", "torch"), ("apex", "apex")])
@pytest.mark.parametrize("layout", [(), (ZERO1, "precision.dtype=bf16")], ids=["fp64", "bf16+ZeRO-1"])
@in_world(1)
def test_a_run_goes_on_with_another_kernel(before: str, after: str, layout: tuple[str, ...]) -> None:
    """apex itself needs a GPU (tests/gpu); here its way of counting, on the formula."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_group_counting_adam(monkeypatch)

        def build(kernel: str) -> MegatronEngine:
            config = tiny_config("gpt2-tiny", *layout)
            config.optimizer.kernel = kernel
            return tiny_engine(config)

        expected = steps(build("torch"), range(6))
        first, second = build(before), build(after)
        found = steps(first, range(3))
        assert first.counters["updates"] == 3
        steps(second, range(1))  # an engine that has gone elsewhere
        moved(first, second)
        assert second.counters == first.counters
        found += steps(second, range(3, 6))
        assert second.counters["updates"] == 6
    assert torch.tensor(found) == pytest.approx(torch.tensor(expected), rel=2e-3 if layout else 1e-11)


@in_world(1)
def test_the_library_is_told_which_adam_to_build() -> None:
    assert adam.choose_adam("auto") == adam.choose_adam("torch") == {"fused": True, "foreach": False}
    assert adam.choose_adam("foreach") == {"fused": False, "foreach": True}
    engine = tiny_engine(tiny_config("gpt2-tiny", "optimizer.kernel=foreach"))
    assert all(group["foreach"] and not group["fused"] for group in engine.optimizer.param_groups)
