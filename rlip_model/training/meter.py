"""Training metrics: losses, learning rates, speed, waiting time, utilization, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlip_model.distributed import gather
from rlip_model.training.batches import TrainingBatch

Metrics = dict[str, float | int | str]

_REDUCTIONS: Mapping[str, Callable[[Sequence[Any]], float | str]] = {
    "gpu_memory": max,
    "gpu_utilization": fmean,
    "compilation": max,
    "compile_error": itemgetter(0),
}


class _Reading(NamedTuple):
    """The metrics of a process; see `StepMeter.read`."""

    losses: Mapping[str, float]
    images: int
    waited: float
    skipped: int
    memory: int
    extra: Mapping[str, float | str]


class StepMeter:
    """Accumulates metrics between two readings, over all processes.

    Args:
        total: steps of the whole run.
        utilization: see `GpuUtilization.read`.
        extra_metrics: of this process, by the names in `_REDUCTIONS`; read with the others.
    """

    def __init__(
        self,
        total: int,
        utilization: Callable[[], float | None] = lambda: None,
        extra_metrics: Callable[[], Mapping[str, float | str]] = dict,
    ) -> None:
        self.total = total
        self.utilization = utilization
        self.extra_metrics = extra_metrics
        self.waited = 0.0
        self.skipped = 0
        self._reset()

    def _reset(self) -> None:
        self.began = time.perf_counter()
        self.waited = 0.0
        self.steps = self.images = 0
        self.sums: dict[str, Tensor] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count."""
        began = time.perf_counter()
        yield
        self.utilization()  # drops the samples of the block
        self.began += time.perf_counter() - began

    def add(self, parts: Sequence[TrainingBatch], losses: dict[str, Tensor], norm: Tensor) -> None:
        """Add one step of this process."""
        self.steps += 1
        self.images += sum(len(part) for part in parts)
        self.skipped += sum(part.skipped for part in parts)
        for name, value in {**losses, "gradient_norm": norm.detach()}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

    def read(self, epoch: int, step: int, optimizer: Optimizer) -> Metrics:
        """Read the metrics since the last reading, and reset. `epoch` of the last step counts from
        0.

        Means of the losses; `lr_GROUP`, learning rates; `images_per_second`; `waited`, share of the
        time spent waiting for batches; `skipped`, unreadable images since the start; `memory`, peak
        memory of a process in bytes. On GPUs, `gpu_memory`, the peak that a process took from its
        GPU, and `gpu_utilization`, their mean, if it is known.
        """
        seconds = max(time.perf_counter() - self.began, 1e-9)
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        reading = _Reading(
            means, self.images, self.waited / seconds, self.skipped, peak_memory(), self._extra()
        )
        readings = gather(reading)
        metrics: Metrics = {"event": "step", "epoch": epoch + 1, "step": step, "steps": self.total}
        for name in means:
            metrics[name] = sum(process.losses[name] for process in readings) / len(readings)
        for group in optimizer.param_groups:
            if group["params"]:
                metrics[f"lr_{group['name']}"] = group["lr"]
        metrics["images_per_second"] = sum(process.images for process in readings) / seconds
        metrics["waited"] = max(process.waited for process in readings)
        metrics["skipped"] = sum(process.skipped for process in readings)
        metrics["memory"] = max(process.memory for process in readings)
        self._reset()
        return metrics | _combined([process.extra for process in readings])

    def _extra(self) -> dict[str, float | str]:
        utilization = self.utilization()
        metrics = dict(self.extra_metrics())
        if torch.cuda.is_initialized():
            metrics["gpu_memory"] = _peak(torch.cuda.max_memory_reserved)
            if utilization is not None:
                metrics["gpu_utilization"] = utilization
        return metrics


def _combined(metrics: Sequence[Mapping[str, float | str]]) -> Metrics:
    """Return the extra metrics of all processes, of those that have them."""
    combined: Metrics = {}
    for name, reduction in _REDUCTIONS.items():
        values = [process[name] for process in metrics if name in process]
        if values:
            combined[name] = reduction(values)
    return combined


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU that this process computes on, otherwise of the process."""
    if torch.cuda.is_initialized():
        return _peak(torch.cuda.max_memory_allocated)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak(of_device: Callable[[int], int]) -> int:
    return max(map(of_device, range(torch.cuda.device_count())))
