"""The divisor of MFU over several ranks."""

from megalm.config.schema import ParallelConfig
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.callbacks import device_rate


def best_of_two_ranks() -> float:
    layout = create_layout(ParallelConfig())
    figures = iter([900.0, 1.0, 3.0, 2.0])
    return device_rate.best_of_world(layout, lambda: next(figures) * 10**layout.rank)


def test_rates_of_ranks_measured_together_are_summed_and_the_warm_up_left_out():
    assert run_distributed(best_of_two_ranks, 2) == [33.0, 33.0]
