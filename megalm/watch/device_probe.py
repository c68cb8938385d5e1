"""How fast this rank's GPU is at the moment: the host does not wait for collectives there, so that steps tell nothing of it."""

import torch

SIZE = 2048
REPEATS = 5


class DeviceProbe:
    """Times one fixed product of matrices by CUDA events."""

    def __init__(self, device: torch.device) -> None:
        self.a_MK = torch.ones(SIZE, SIZE, device=device, dtype=torch.bfloat16)
        self.c_MN = torch.empty_like(self.a_MK)

    def seconds(self) -> float:
        """Of the fastest of a few products, on a device with nothing else to do: waits for what is queued."""
        torch.cuda.synchronize(self.a_MK.device)
        times = []
        for _ in range(REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            torch.mm(self.a_MK, self.a_MK, out=self.c_MN)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return min(times)
