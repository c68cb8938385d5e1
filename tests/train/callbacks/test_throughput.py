"""Speed, MFU and memory follow their formulas."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megalm.config.schema import Config, ModelConfig, ParallelConfig
from megalm.engine.base import Metrics
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.callbacks.base import Run, StepRecord
from megalm.train.callbacks.throughput import Throughput


def steps(run, records):
    throughput = Throughput()
    throughput.on_start(run)
    for record in records:
        throughput.on_step(run, record)
    return records[-1].values


def test_rates_follow_from_tokens_and_seconds(make_run, record):
    values = steps(make_run(), [record(1, seconds=0.5)])
    assert values["tokens_per_second"] == 64 / 0.5
    assert values["step_seconds"] == 0.5


def test_model_flops_count_matrices_and_attention(make_run, record):
    run = make_run()
    hidden, ffn, layers, sequence, vocabulary = 32, 128, 2, 16, 100
    matrices = layers * (4 * hidden**2 + 3 * hidden * ffn) + vocabulary * hidden
    norms = (2 * layers + 1) * hidden
    per_token = 6 * (matrices + norms) + 12 * layers * sequence * hidden
    values = steps(run, [record(1, seconds=0.5)])
    assert values["tflops_per_device"] == pytest.approx(per_token * 64 / 0.5 / 1e12, rel=1e-12)
    assert values["mfu"] == pytest.approx(values["tflops_per_device"] / run.facts["device_tflops"], rel=1e-12)


def test_cpu_is_held_against_its_own_matmul(make_run, record):
    run = make_run()
    steps(run, [record(1)])
    assert run.facts["mfu_against"] == "measured matmul"
    assert str(run.facts["device"]).startswith("cpu")
    assert run.facts["device_tflops"] > 0


def test_rates_are_means_over_the_logging_interval(make_run, record):
    values = steps(
        make_run(interval=2), [record(1, seconds=100.0), record(2, seconds=1.0), record(3, seconds=3.0)]
    )
    assert values["tokens_per_second"] == 128 / 4.0
    assert values["step_seconds"] == 2.0


def test_skipped_step_counts_its_tokens(make_run, record):
    run = make_run(interval=2)
    skipped = [record(1, seconds=1.0), record(2, float("nan"), skipped=True, seconds=1.0)]
    assert steps(run, skipped)["tokens_per_second"] == 64.0


def test_memory_is_this_process_peak(make_run, record):
    run = make_run()
    ballast = torch.ones(2**26)  # 268 MB
    with_ballast = steps(run, [record(1)])["memory_gb"]
    del ballast
    assert 0.268 < with_ballast <= steps(run, [record(2)])["memory_gb"] < 1000


def two_ranks() -> tuple[dict, dict]:
    config = Config(model=ModelConfig(vocab_size=100))
    run = Run(config, create_layout(ParallelConfig()), Path("unused"))
    record = StepRecord(1, Metrics(2.0, 1.0, 64.0, False), lr=1e-3, tokens=64, seconds=0.5)
    steps(run, [record])
    return run.facts, record.values


def test_two_ranks_share_the_rate_of_the_world():
    (facts, values), (other_facts, _) = run_distributed(two_ranks, 2)
    per_token = ModelConfig(vocab_size=100).flops_per_token(1024)
    assert facts["device_tflops"] == other_facts["device_tflops"]
    assert values["tokens_per_second"] == 128.0
    assert values["tflops_per_device"] == pytest.approx(per_token * 128.0 / 2 / 1e12, rel=1e-12)
    assert values["mfu"] == pytest.approx(values["tflops_per_device"] / facts["device_tflops"], rel=1e-12)


def test_mfu_of_a_larger_world_is_not_larger(make_run, record):
    """The divisor is the world's rate: the same speed on twice the ranks is half the FLOPs a device."""
    run = make_run()
    one = steps(run, [record(1)])
    twice = replace(run, layout=replace(run.layout, world_size=2))
    two = steps(twice, [record(1)])
    assert two["tflops_per_device"] == one["tflops_per_device"] / 2
    assert two["mfu"] == pytest.approx(two["tflops_per_device"] / twice.facts["device_tflops"], rel=1e-12)
