"""Training metrics: losses, learning rates, speed, waiting time, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlip_model.distributed import gather
from rlip_model.training.batches import TrainingBatch

Metrics = dict[str, float | int | str]


class StepMeter:
    """Accumulates metrics between two readings, over all processes.

    Args:
        total: steps of the whole run.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.waited = 0.0
        self.skipped = 0
        self._reset()

    def _reset(self) -> None:
        self.began, self.waited = time.perf_counter(), 0.0
        self.steps = self.images = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, parts: Sequence[TrainingBatch], losses: dict[str, Tensor], norm: Tensor) -> None:
        """Add one step of this process."""
        self.steps += 1
        self.images += sum(len(part) for part in parts)
        self.skipped += sum(part.skipped for part in parts)
        for name, value in {**losses, "gradient_norm": norm.detach()}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

    def read(self, epoch: int, step: int, optimizer: Optimizer) -> Metrics:
        """Read the metrics since the last reading, and reset. `epoch` of the last step counts from 0.

        Means of the losses; `lr_GROUP`, learning rates; `images_per_second`; `waited`, share of the time spent waiting
        for batches; `skipped`, unreadable images since the start; `memory`, peak memory of a process in bytes.
        """
        seconds = max(time.perf_counter() - self.began, 1e-9)
        own = {name: float(value) / self.steps for name, value in self.sums.items()}
        everyone = gather((own, self.images, self.waited / seconds, self.skipped, peak_memory()))
        means = {name: sum(each[0][name] for each in everyone) / len(everyone) for name in own}
        metrics: Metrics = {
            "event": "step",
            "epoch": epoch + 1,
            "step": step,
            "steps": self.total,
            **means,
            **{f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups if group["params"]},
            "images_per_second": sum(each[1] for each in everyone) / seconds,
            "waited": max(each[2] for each in everyone),
            "skipped": sum(each[3] for each in everyone),
            "memory": max(each[4] for each in everyone),
        }
        self._reset()
        return metrics


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU that this process computes on, otherwise of the process."""
    if torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
