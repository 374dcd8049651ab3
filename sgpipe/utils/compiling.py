"""Functions that PyTorch compiles for a GPU, for the shapes that recur."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")
Backend: TypeAlias = str | Callable[..., Any]  # of `torch.compile`

_RECURS, _MOST_SHAPES = 8, 4
_COMPILING_CALLS = 2  # of a shape: where a number is not the same in the second call, PyTorch compiles again


class Compiled(Generic[Result]):
    """A function that is compiled once its arguments have had the same shapes several times, for a few shapes.

    Compiling takes up to minutes. Other shapes are computed as without it, and so is everything if it fails.

    Args:
        function: of tensors, whose shapes count, and of anything else. It must not need gradients.
        one_shape: compiled code serves one shape only, and knows all numbers; otherwise it serves any numbers.

    Attributes:
        seconds: how long it has compiled.
        failure: why it cannot be compiled, in one line.
    """

    def __init__(
        self, function: Callable[..., Result], *, one_shape: bool = False, backend: Backend = "inductor"
    ) -> None:
        self._function = function
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._shapes: set[tuple[torch.Size, ...]] = set()
        self._compiling = Lock()
        self.seconds, self.failure = 0.0, ""
        self._compiled = function
        try:
            self._compiled = torch.compile(function, dynamic=False if one_shape else None, backend=backend)
        except RuntimeError as reason:  # not on this Python or system
            self._fail(reason)

    def __call__(self, *arguments: Any) -> Result:
        shape = tuple(each.shape for each in arguments if isinstance(each, Tensor))
        self._calls[shape] += 1
        since = self._calls[shape] - _RECURS
        if since >= 0 and len(self._shapes) < _MOST_SHAPES:
            self._shapes.add(shape)
        if self.failure or since < 0 or shape not in self._shapes:
            return self._function(*arguments)
        if since >= _COMPILING_CALLS:
            return self._run(arguments)
        with self._compiling:
            began = time.perf_counter()
            try:
                return self._run(arguments)
            finally:
                self.seconds += time.perf_counter() - began

    def _run(self, arguments: tuple[Any, ...]) -> Result:
        try:
            return self._compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as reason:
            self._fail(reason)
            return self._function(*arguments)

    def _fail(self, reason: Exception) -> None:
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
        self.failure = " ".join(lines[:2])[:200] or type(reason).__name__


def compile_forward(module: nn.Module, backend: Backend = "inductor") -> Compiled[Any]:
    """Let PyTorch compile the forward pass of a module, separately for each shape that recurs."""
    compiled: Compiled[Any] = Compiled(module.forward, one_shape=True, backend=backend)
    module.forward = compiled
    return compiled
