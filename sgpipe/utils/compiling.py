"""Functions that PyTorch compiles for a GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")
Backend: TypeAlias = str | Callable[..., Any]  # of `torch.compile`
_Shapes: TypeAlias = tuple[tuple[Any, ...], ...]

_WARM_UP_CALLS, _MOST_SHAPES = 8, 4
_COMPILING_CALLS = 2  # of a shape: where a number is not the same in the second call, PyTorch compiles again
_LONGEST_REASON = 200
_COMPILING = Lock()  # of this process, in which PyTorch compiles one function at a time


class Compiled(Generic[Result]):
    """A function that PyTorch compiles, for a few shapes of its arguments. Threads may share it.

    Compiling takes up to minutes. Meanwhile other threads compute without it, and so does everything if it fails.

    `function` takes tensors, whose shapes count, tuples of numbers, which count too, and anything else; it must not
    need gradients. A shape is compiled after `warm_up_calls`. `seconds`: how long it has compiled; `failure`: why it
    cannot be compiled, in one line.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        *,
        warm_up_calls: int = 0,
        dynamic: bool | None = None,
        backend: Backend = "inductor",
    ) -> None:
        self._function, self._warm_up_calls = function, warm_up_calls
        self._calls: Counter[_Shapes] = Counter()
        self._left: dict[_Shapes, int] = {}  # calls that compile
        self.seconds, self.failure = 0.0, ""
        self._compiled = function
        try:
            self._compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
        except RuntimeError as reason:  # not on this Python or system
            self._fail(reason)

    def __call__(self, *arguments: Any) -> Result:
        shapes = tuple(
            each.shape if isinstance(each, Tensor) else each for each in arguments if isinstance(each, Tensor | tuple)
        )
        if self.failure or not self._is_chosen(shapes):
            return self._function(*arguments)
        if self._left[shapes] > 0:
            return self._compile(shapes, arguments)
        return self._function(*arguments) if _COMPILING.locked() else self._run(arguments)

    def _is_chosen(self, shapes: _Shapes) -> bool:
        if shapes not in self._left:
            self._calls[shapes] += 1
            if self._calls[shapes] > self._warm_up_calls and len(self._left) < _MOST_SHAPES:
                self._left[shapes] = _COMPILING_CALLS
        return shapes in self._left

    def _compile(self, shapes: _Shapes, arguments: tuple[Any, ...]) -> Result:
        if not _COMPILING.acquire(blocking=False):
            return self._function(*arguments)
        began = time.perf_counter()
        try:
            torch._inductor.config.compile_threads = torch.get_num_threads()  # a setting of this thread
            return self._run(arguments)
        finally:
            self._left[shapes] -= 1
            self.seconds += time.perf_counter() - began
            _COMPILING.release()

    def _run(self, arguments: tuple[Any, ...]) -> Result:
        try:
            return self._compiled(*arguments)
        except refusals() as reason:
            self._fail(reason)
            return self._function(*arguments)

    def _fail(self, reason: Exception) -> None:
        self.failure = one_line(reason)


def compile_forward(*modules: nn.Module, backend: Backend = "inductor") -> Compiled[Any]:
    """Let PyTorch compile the forward pass of modules of one class, separately for each shape that recurs.

    Equal modules with other parameters, such as the layers of a network, are compiled once.
    """
    compiled: Compiled[Any] = Compiled(
        type(modules[0]).forward, warm_up_calls=_WARM_UP_CALLS * len(modules), dynamic=False, backend=backend
    )
    for module in modules:
        module.forward = partial(compiled, module)
    return compiled


def refusals() -> tuple[type[Exception], ...]:
    """Return what PyTorch raises for what it cannot compile.

    Not a constant, as importing its compiler takes seconds.
    """
    errors = torch._dynamo.exc
    return errors.TorchDynamoException, getattr(errors, "FailOnRecompileLimitHit", errors.TorchDynamoException)


def one_line(reason: Exception) -> str:
    """Return the start of a message that may have pages, as those of compilers."""
    return " ".join(str(reason).split())[:_LONGEST_REASON] or type(reason).__name__
