"""Time in which the watch itself did not run does not count."""

from megalm.watch.clock import AwakeClock


def test_a_long_pause_counts_as_three_ticks() -> None:
    times = iter([0.0, 5.0, 10.0, 4000.0, 4005.0])
    clock = AwakeClock(5.0, lambda: next(times))
    assert [clock.read() for _ in range(4)] == [5.0, 10.0, 25.0, 30.0]
