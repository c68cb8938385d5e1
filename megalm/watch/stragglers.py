"""Names a rank that takes longer over its part of the steps than others with the same work."""

import socket
from collections import deque
from statistics import median

import torch.distributed as dist

from megalm.config.watch import WatchConfig
from megalm.parallel.layout import Layout
from megalm.watch import waits
from megalm.watch.device_probe import DeviceProbe
from megalm.watch.outliers import Outlier, slowest

WINDOWS = 2
"""So many comparisons in a row name a rank, and as many without it say that it is well again."""


class Stragglers:
    """Compares the ranks every `watch.interval` steps. All methods are collective over the world.

    A rank's own time of a step is the wall time less what it waited for others; of a window, the median. On CUDA, where the host
    runs ahead, it is that of a fixed product of matrices.
    """

    def __init__(self, settings: WatchConfig, layout: Layout) -> None:
        self.settings, self.layout = settings, layout
        self.is_on = settings.interval > 0 and layout.world_size > 1
        self.own: deque[float] = deque(maxlen=settings.interval or 1)
        self.slow: dict[int, str] = {}
        """Ranks that were named, with their machines."""
        self.suspects: deque[tuple[int | None, Outlier]] = deque(maxlen=WINDOWS)
        self.probe: DeviceProbe | None = None
        if self.is_on and layout.device.type == "cuda":
            self.probe = DeviceProbe(layout.device)
        if self.is_on:
            waits.install()

    def see(self, step: int, seconds: float, waited: float) -> tuple[dict[str, float], list[str]]:
        """Take note of a step; at the end of a window return figures for its line and what there is to tell."""
        if not self.is_on:
            return {}, []
        self.own.append(seconds - waited)
        if step % self.settings.interval:
            return {}, []
        own = self.probe.seconds() if self.probe else median(self.own)
        self.own.clear()
        found: list[tuple[float, int, str]] = [(0.0, 0, "")] * self.layout.world_size
        dist.all_gather_object(found, (own, self.layout.pp_rank, socket.gethostname()))
        times, stages, hosts = zip(*found, strict=True)
        worst = slowest(times, stages)
        figures = {
            "slowest_rank": float(worst.rank),
            "slowest_rank_ratio": worst.ratio,
            "slowest_rank_z": worst.z,
        }
        return figures, self._judge(worst, hosts[worst.rank])

    def _judge(self, worst: Outlier, host: str) -> list[str]:
        is_slow = worst.z >= self.settings.slow_z and worst.ratio >= self.settings.slow_ratio
        self.suspects.append((worst.rank if is_slow else None, worst))
        told = []
        named = {rank for rank, _ in self.suspects}
        if len(self.suspects) < WINDOWS:
            return []
        if is_slow and named == {worst.rank} and worst.rank not in self.slow:
            self.slow[worst.rank] = host
            told.append(
                f"rank {worst.rank} on {host} is slow: {worst.ratio:.2f} x the time of the others with the same work "
                f"(z {worst.z:.1f}), in {WINDOWS} comparisons in a row"
            )
        for rank in [rank for rank in self.slow if rank not in named]:
            told.append(f"rank {rank} on {self.slow.pop(rank)} is as fast as the others again")
        return told
