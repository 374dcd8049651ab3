"""What stages share of a GPU: its memory, and functions that PyTorch compiles for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from rlip_model.gpu_memory import is_out_of_memory
from sgpipe.errors import ComputationError
from sgpipe.utils.numerics import gpu_numerics

Item = TypeVar("Item")
Result = TypeVar("Result")
_Shapes: TypeAlias = tuple[tuple[Any, ...], ...]

_WARM_UP_CALLS = 8
_MOST_SHAPES = 4
_LONGEST_REASON = 200
_COMPILING = Lock()  # of this process, in which PyTorch compiles one function at a time
GPU_THREADS = 2  # one starts the work of a batch, while the other waits for the last one


class MemoryFullError(ComputationError):
    """The memory of a GPU is full."""


def gpu_use(
    device: torch.device | None,
    *compiled: Compiled,
    dtype: torch.dtype | None = None,
    attention: str = "",
    graph_error: str = "",
    batch_error: str = "",
) -> dict[str, object]:
    """Return what a stage uses of a GPU, as plain values for a manifest; nothing on a CPU or a
    server.

    `memory`: the peak of this process, in bytes; `compilation`: seconds; `…_error`: why that did
    not work. The rest is what decides the last digits.
    """
    if device is None or device.type != "cuda":
        return {}
    use: dict[str, object] = {
        **gpu_numerics(device),
        "memory": torch.cuda.max_memory_reserved(device),
    }
    if dtype is not None:
        use["dtype"] = str(dtype).removeprefix("torch.")
    rare: dict[str, object] = {
        "attention": attention,
        "compilation": sum(function.seconds for function in compiled),
        "compile_error": next((function.failure for function in compiled if function.failure), ""),
        "graph_error": graph_error,
        "batch_error": batch_error,
    }
    return use | {name: value for name, value in rare.items() if value}


class GpuMemory:
    """The memory of a GPU that threads of this process share.

    After a batch did not fit, threads compute one after the other; one that does not fit alone is
    computed in halves, to which `batch_size` shrinks. `remedy`: what to do if an item does not fit.
    """

    def __init__(
        self, device: torch.device, remedy: str, threads: int, batch_size: int = 1
    ) -> None:
        self.batch_size = batch_size
        self._device = device
        self._remedy = remedy
        self._threads = threads
        self._places = BoundedSemaphore(threads)
        self._turn = Lock()
        self._is_scarce = False

    def compute(
        self, function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]
    ) -> list[Result]:
        """Return the result of each item of a batch.

        Raises:
            MemoryFullError: an item alone is too large.
        """
        if not self._is_scarce:
            with suppress(MemoryFullError), enough_memory(self._device, self._remedy), self._places:
                return function(items)
            self._is_scarce = True
            with self.alone():
                torch.cuda.empty_cache()
        with self.alone():
            return self._compute_alone(function, items)

    def _compute_alone(
        self, function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]
    ) -> list[Result]:
        can_be_halved = (MemoryFullError,) if len(items) > 1 else ()
        with suppress(*can_be_halved), enough_memory(self._device, self._remedy):
            return function(items)
        torch.cuda.empty_cache()
        half = len(items) // 2
        self.batch_size = min(self.batch_size, half)
        return self._compute_alone(function, items[:half]) + self._compute_alone(
            function, items[half:]
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._turn, ExitStack() as taken:
            for _ in range(self._threads):
                taken.enter_context(self._places)
            yield

    def __reduce__(self) -> tuple[type[GpuMemory], tuple[torch.device, str, int, int]]:
        """Another process has threads of its own."""
        return GpuMemory, (self._device, self._remedy, self._threads, self.batch_size)


@contextmanager
def enough_memory(device: torch.device, remedy: str) -> Iterator[None]:
    """Raises MemoryFullError, with the remedy, if the GPU's memory is full."""
    try:
        yield
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # not above, where `error` keeps what was there
    raise MemoryFullError(f"the memory of {device} is full; {remedy}")


class Compiled:
    """A function that PyTorch compiles, for a few shapes of its arguments. Threads may share it.

    While it compiles, for up to minutes, other threads call `function` as it is, and so does
    everything if that fails. Shapes are those of tensors, and tuples of numbers; each is compiled
    after `warm_up_calls`. It has no gradients. `seconds`: how long it has compiled; `failure`: why
    it cannot be compiled, in one line.
    """

    def __init__(
        self, function: Callable[..., Any], warm_up_calls: int = 0, backend: Any = "inductor"
    ) -> None:
        self._function = function
        self._warm_up_calls = warm_up_calls
        self._calls: Counter[_Shapes] = Counter()
        self._chosen: set[_Shapes] = set()  # those that are compiled
        self.seconds = 0.0
        self.failure = ""
        self._compiled = function
        try:
            self._compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
        except RuntimeError as reason:  # not on this Python or system
            self.failure = one_line(reason)

    def __call__(self, *arguments: Any) -> Any:
        shapes = _shapes(arguments)
        is_compiled = shapes in self._chosen
        if is_compiled and not self.failure and not _COMPILING.locked():
            return self._run(arguments)
        self._calls[shapes] += 1
        is_chosen = self._calls[shapes] > self._warm_up_calls and len(self._chosen) < _MOST_SHAPES
        if self.failure or is_compiled or not is_chosen or not _COMPILING.acquire(blocking=False):
            return self._function(*arguments)
        began = time.perf_counter()
        try:
            # a setting of this thread
            torch._inductor.config.compile_threads = torch.get_num_threads()
            return self._run(arguments)
        finally:
            self._chosen.add(shapes)
            self.seconds += time.perf_counter() - began
            _COMPILING.release()

    def _run(self, arguments: tuple[Any, ...]) -> Any:
        try:
            return self._compiled(*arguments)
        except refusals() as reason:
            self.failure = one_line(reason)
            return self._function(*arguments)


def _shapes(arguments: tuple[Any, ...]) -> _Shapes:
    """Return the shapes of tensors, and tuples, by which a function is compiled."""
    shapes: list[tuple[Any, ...]] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            shapes.append(argument.shape)
        elif isinstance(argument, tuple):
            shapes.append(argument)
    return tuple(shapes)


def compile_forward(*modules: nn.Module) -> Compiled:
    """Compile the forward pass of modules of one class for each shape that recurs; equal modules
    are compiled once.
    """
    compiled = Compiled(type(modules[0]).forward, _WARM_UP_CALLS * len(modules))
    for module in modules:
        module.forward = partial(compiled, module)
    return compiled


def refusals() -> tuple[type[Exception], ...]:
    """Return what PyTorch raises for what it cannot compile. No constant: importing its compiler
    takes seconds.
    """
    errors = torch._dynamo.exc
    return errors.TorchDynamoException, getattr(
        errors, "FailOnRecompileLimitHit", errors.TorchDynamoException
    )


def one_line(reason: Exception) -> str:
    """Return the start of a message that may have pages, as those of compilers."""
    return " ".join(str(reason).split())[:_LONGEST_REASON] or type(reason).__name__
