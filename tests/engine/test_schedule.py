"""Learning-rate schedules equal their closed forms and the implementations of torch and transformers."""

import itertools
import math

import pytest
import torch
from transformers import get_scheduler

from megalm.config.schema import OptimizerConfig
from megalm.engine.schedule import learning_rate

LR, STEPS, WARMUP = 2e-3, 60, 10


def curve(steps: int = STEPS, total: int = STEPS, **fields) -> list[float]:
    """Learning rates of steps 1 ... `steps`."""
    config = OptimizerConfig(**{"lr": LR, "min_lr": 0.0, "warmup_steps": WARMUP, **fields})
    return [learning_rate(config, step, total) for step in range(1, steps + 1)]


def library_curve(scheduler_of) -> list[float]:
    """Learning rates a library's scheduler has after 1 ... STEPS of its steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize(
    ("name", "theirs", "arguments"),
    [
        ("cosine", "cosine", {}),
        ("linear", "linear", {}),
        ("inverse_sqrt", "inverse_sqrt", {}),
        ("constant", "constant_with_warmup", {}),
        ("wsd", "warmup_stable_decay", {"num_decay_steps": 15, "decay_type": "linear"}),
    ],
)
def test_schedule_equals_transformers(name: str, theirs: str, arguments: dict) -> None:
    expected = library_curve(
        lambda optimizer: get_scheduler(
            theirs,
            optimizer,
            num_warmup_steps=WARMUP,
            num_training_steps=STEPS,
            scheduler_specific_kwargs=arguments,
        )
    )
    found = curve(schedule=name, decay_steps=arguments.get("num_decay_steps"))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_cosine_with_a_floor_equals_torch() -> None:
    floor = 1e-4
    expected = library_curve(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=floor))
    assert curve(schedule="cosine", warmup_steps=0, min_lr=floor) == pytest.approx(expected, rel=1e-9)


def test_linear_with_a_floor_equals_torch() -> None:
    floor = LR / 8
    expected = library_curve(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, floor / LR, total_iters=STEPS)
    )
    assert curve(schedule="linear", warmup_steps=0, min_lr=floor) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant", "inverse_sqrt"])
def test_warm_up_is_linear_from_zero_and_ends_at_the_peak(name: str) -> None:
    rates = curve(schedule=name)
    assert rates[:WARMUP] == pytest.approx([LR * step / WARMUP for step in range(1, WARMUP + 1)])
    assert max(rates) == pytest.approx(LR)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "inverse_sqrt"])
def test_rate_never_rises_after_warm_up_nor_falls_below_the_floor(name: str) -> None:
    floor = LR / 3
    rates = curve(steps=3 * STEPS, schedule=name, min_lr=floor)
    after = rates[WARMUP - 1 :]
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))
    assert min(after) == pytest.approx(floor)
    assert rates[-1] == pytest.approx(floor)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_may_end_before_the_run(name: str) -> None:
    floor = LR / 10
    rates = curve(schedule=name, min_lr=floor, decay_steps=40)
    assert rates[39:] == pytest.approx([floor] * (STEPS - 39))
    assert rates[38] > floor
    middle = rates[24]  # half-way from step 10 to step 40
    assert middle == pytest.approx(floor + (LR - floor) / 2)


def test_wsd_is_flat_and_decays_over_the_last_tenth_by_default() -> None:
    rates = curve(schedule="wsd", min_lr=LR / 4)
    assert rates[WARMUP - 1 : 54] == [LR] * 45
    assert rates[54:] == pytest.approx([LR * (1 - 0.75 * k / 6) for k in range(1, 7)])


def test_cosine_is_half_way_down_half_way_through() -> None:
    config = OptimizerConfig(lr=1.0, min_lr=0.0, schedule="cosine")
    assert learning_rate(config, 50, 100) == pytest.approx(0.5)
    assert learning_rate(config, 25, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
