"""How much of the time a GPU computes, as NVML measures it."""

from __future__ import annotations

import importlib
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who computes on a CPU may not need it
    import torch

_SECONDS_BETWEEN_SAMPLES = 0.5


class GpuUtilization:
    """Samples the utilization of a GPU in a thread; use it in a `with` statement.

    A sample is the share of the last sixth of a second to second, depending on the GPU, in which a
    kernel ran, whoever started it and however few of the cores it used. It needs the package
    nvidia-ml-py. Otherwise, and on a CPU or no device, there are no samples.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self._samples: list[float] = []
        self._stop = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> GpuUtilization:
        if self.device is not None and self.device.type == "cuda":
            self._thread = Thread(target=self._sample, name="GPU utilization", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        import torch

        refusals = _refusals()
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            try:
                self._samples.append(torch.cuda.utilization(self.device) / 100)
            except refusals:
                return

    def read(self) -> float | None:
        """Return the mean since the last reading, from 0 to 1; None without a sample."""
        samples = self._samples
        self._samples = []
        return sum(samples) / len(samples) if samples else None


def _refusals() -> tuple[type[Exception], ...]:
    """Return what is raised without the package or a driver, and on GPUs that do not tell, such as
    parts of one (MIG).
    """
    errors = (ImportError, RuntimeError)
    try:
        return (*errors, importlib.import_module("pynvml").NVMLError)
    except ImportError:
        return errors
