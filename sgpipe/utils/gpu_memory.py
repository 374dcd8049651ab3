"""GPU memory: shared by the threads of a process, and what a stage uses of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rlip_model.gpu_memory import is_out_of_memory
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.utils.compiling import Compiled

Item = TypeVar("Item")
Result = TypeVar("Result")


class MemoryFullError(UserError):
    """The memory of a GPU is full."""


GPU_THREADS = 2  # one starts the work of a batch, while the other waits for the last one


def gpu_use(device: torch.device | None, *compiled: Compiled[Any], attention: str = "") -> dict[str, Any]:
    """Return what a stage uses of a GPU, as plain values for a manifest. Nothing on a CPU or a server.

    `gpu`: its name; `memory`: the peak of this process, in bytes; `attention`: the kernel for deformable attention;
    `compilation`: seconds; `compile_error`: why compiling one of the functions failed.
    """
    if device is None or device.type != "cuda":
        return {}
    use = {"gpu": torch.cuda.get_device_name(device), "memory": torch.cuda.max_memory_reserved(device)}
    seconds = sum(each.seconds for each in compiled)
    error = next((each.failure for each in compiled if each.failure), "")
    more = {"attention": attention, "compilation": seconds, "compile_error": error}
    return use | {name: value for name, value in more.items() if value}


class GpuMemory:
    """The memory of a GPU that threads of this process share.

    After a batch did not fit, threads compute one after the other. One that does not fit alone is computed in halves,
    and `batch_size`, how many items to compute at once, shrinks to these. `remedy`: what to do if an item does not fit.
    """

    def __init__(self, device: torch.device, remedy: str, threads: int, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self._device, self._remedy, self._threads = device, remedy, threads
        self._places, self._turn = BoundedSemaphore(threads), Lock()
        self._is_scarce = False

    def compute(self, function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """Return the result of each item of a batch. Raises UserError: an item alone is too large."""
        if not self._is_scarce:
            with _unless_full(), self.shared():  # after it, what it holds is free
                return function(items)
            self._is_scarce = True
            with self.alone():
                torch.cuda.empty_cache()
        with self.alone():
            return self._compute_alone(function, items)

    def _compute_alone(self, function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        if len(items) == 1:
            with enough_memory(self._device, self._remedy):
                return function(items)
        with _unless_full():
            return function(items)
        torch.cuda.empty_cache()
        half = len(items) // 2
        self.batch_size = min(self.batch_size, half)
        return self._compute_alone(function, items[:half]) + self._compute_alone(function, items[half:])

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Beside the other threads."""
        with self._places:
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other thread computes."""
        with self._turn, ExitStack() as taken:
            for _ in range(self._threads):
                taken.enter_context(self._places)
            yield

    def __reduce__(self) -> tuple[type[GpuMemory], tuple[torch.device, str, int, int]]:
        """Another process has threads of its own."""
        return GpuMemory, (self._device, self._remedy, self._threads, self.batch_size)


@contextmanager
def enough_memory(device: torch.device, remedy: str) -> Iterator[None]:
    """Raises UserError, with the remedy, if the GPU's memory is full."""
    full = True
    with _unless_full():
        yield
        full = False
    if full:
        raise MemoryFullError(f"the memory of {device} is full; {remedy}")


@contextmanager
def _unless_full() -> Iterator[None]:
    """End the block, without an error, where the GPU's memory is full."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
