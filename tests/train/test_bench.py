"""A benchmark measures the steps that training takes, leaves nothing behind, and says where the time went."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.autograd import DeviceType

from megalm.testing import run_distributed
from megalm.train.time_use import DATA, FORWARD, STEP, time_use
from tests.train.runs import GLOBAL_BATCH, SEQUENCE, TP2, run_config, write_tokens

BACKWARD = "autograd::engine::evaluate_function: MmBackward0"


def _bench(config: Any, trace: Path | None = None) -> dict[str, Any]:
    from unittest import mock

    from megalm.train import bench

    with mock.patch.object(bench, "world_flops_per_second", lambda *_: (2e12, "measured matmul")):
        return bench.main(config, steps=3, warmup=1, trace=trace)


def test_benchmark_reports_figures_that_hang_together_and_touches_no_run(tmp_path):
    config = run_config(tmp_path / "run", write_tokens(tmp_path), "data.prefetch=0")
    (result,) = run_distributed(_bench, 1, config, tmp_path / "out" / "trace.json")
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "out" / "trace.json").stat().st_size > 0
    assert result["data"] == "data.train"
    assert result["tokens_per_second"] * result["step_seconds"] == pytest.approx(GLOBAL_BATCH * SEQUENCE)
    flops = config.model.flops_per_token(SEQUENCE) * result["tokens_per_second"]
    assert result["tflops_per_device"] == pytest.approx(flops / 1e12)
    assert result["mfu"] == pytest.approx(flops / 2e12)
    assert 0 < result["data_wait_seconds"] < result["step_seconds_min"] <= result["step_seconds_max"]
    assert len(result["peak_memory_bytes"]) == 1 and result["peak_memory_bytes"][0] > 2**26
    for kind in ("phases", "operators"):
        assert sum(result[kind].values()) == pytest.approx(result["profiled_step_seconds"], rel=1e-6)
    assert all(result["phases"][name] > 0 for name in ("data", "forward", "backward", "optimizer"))
    assert result["operators"]["matmul"] > 0


def test_benchmark_without_data_takes_random_tokens_on_every_rank(tmp_path):
    config = run_config(tmp_path / "run", tmp_path, TP2)
    config.data.train = []
    results = run_distributed(_bench, 2, config)
    assert results[0]["data"] == "random tokens"
    assert len(results[0]["peak_memory_bytes"]) == 2
    assert results[0]["peak_memory_bytes"] == results[1]["peak_memory_bytes"]
    assert results[0]["operators"]["communication"] > 0
    assert results[0]["layout"].startswith("TP2")


def _random_tokens(config: Any) -> tuple[int, list[np.ndarray]]:
    from megalm.parallel.layout import create_layout
    from megalm.train.bench import RandomTokens

    layout = create_layout(config.parallel)
    source = RandomTokens(config, layout)
    steps = [np.concatenate([m.tokens_BS.numpy() for m in source.next()]) for _ in range(2)]
    return layout.dp_rank, steps


def test_random_tokens_are_the_same_samples_under_every_layout(tmp_path):
    config = run_config(tmp_path / "run", tmp_path)
    ((_, whole),) = run_distributed(_random_tokens, 1, config)
    ranks = [steps for _, steps in run_distributed(_random_tokens, 2, config)]
    for step in range(2):
        parts = [rank[step].reshape(-1, config.batch.micro_batch_size, SEQUENCE) for rank in ranks]
        assert np.array_equal(np.stack(parts, 1).reshape(-1, SEQUENCE), whole[step])
    assert not np.array_equal(whole[0], whole[1])


def event(name: str, begin: float, end: float, thread: int = 1, **more: Any) -> SimpleNamespace:
    """What torch's profiler gives, as far as it is looked at; microseconds."""
    interval = SimpleNamespace(start=begin, end=end)
    fields = {"kernels": [], "cpu_parent": None} | more
    return SimpleNamespace(
        name=name, time_range=interval, thread=thread, device_type=DeviceType.CPU, **fields
    )


def test_time_on_the_cpu_goes_to_the_innermost_event_and_its_phase():
    events = [
        event(STEP, 0, 1000),
        event(DATA, 0, 100),
        event(FORWARD, 100, 400),
        event("aten::linear", 100, 300),
        event("aten::addmm", 110, 300),
        event(BACKWARD, 400, 700),
        event("aten::mm", 410, 600),
        event("aten::mul", 600, 650),
        event("c10d::allreduce_", 700, 720),
        event("gloo:all_reduce", 700, 800, thread=2),
        event("aten::_foreach_mul_", 800, 850),
        event("Optimizer.step#AdamW.step", 850, 980),
        event("aten::_fused_adamw_", 860, 970),
    ]
    use = time_use(events, cuda=False)
    micro = pytest.approx
    assert {name: 1e6 * s for name, s in use.phases.items()} == {
        "data": micro(100),
        "forward": micro(300),
        "backward": micro(300),
        "reduction": micro(100),
        "optimizer": micro(200),
        "other": micro(0, abs=1e-6),
    }
    assert {name: 1e6 * s for name, s in use.operators.items()} == {
        "matmul": micro(390),  # aten::linear around addmm too
        "outside operators": micro(300),
        "optimizer": micro(160),
        "communication": micro(100),
        "norm and elementwise": micro(50),
    }
    assert use.seconds == pytest.approx(1e-3)
    assert 1e6 * use.top["aten::addmm"] == micro(190)


def test_time_on_cuda_is_that_of_kernels_under_the_operator_that_launched_them():
    def kernel(name: str, duration: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, duration=duration)

    forward = event(FORWARD, 0, 20)
    backward = event(BACKWARD, 20, 40, thread=2)
    events = [
        event(STEP, 0, 1000),
        forward,
        event("aten::mm", 1, 5, kernels=[kernel("nvjet_tst", 300)], cpu_parent=forward),
        backward,
        event("aten::mm", 21, 25, thread=2, kernels=[kernel("nvjet_tst", 400)], cpu_parent=backward),
        event("c10d::allreduce_", 50, 60, kernels=[kernel("ncclDevKernel_AllReduce", 100)]),
    ]
    use = time_use(events, cuda=True)
    assert {name: round(1e6 * s) for name, s in use.phases.items() if s} == {
        "forward": 300,
        "backward": 400,
        "reduction": 100,
        "other": 200,
    }
    assert {name: round(1e6 * s) for name, s in use.operators.items()} == {
        "matmul": 700,
        "outside operators": 200,
        "communication": 100,
    }
