"""Training processes that work together, if there are several; every function works without them, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, distributed

Value = TypeVar("Value")


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def without_collectives() -> Iterator[None]:
    """Within it, this process does not wait for the others; for work that they don't do at the same time."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_distributed() -> bool:
    return not _alone.get() and distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if is_distributed() else 1


def global_mean(summed: Tensor, count: Tensor, least: float = 1.0) -> Tensor:
    """A sum over this process's items, divided by the mean number of items of all processes.

    Averaged over the processes, as their gradients are, it is the mean over all items, as one process that has
    them all would compute it.

    Args:
        count: of this process's items; its gradient is not followed.
        least: smallest number of items, of all processes together, to divide by.
    """
    total = count.detach().clone()
    if is_distributed():
        distributed.all_reduce(total)
    return summed * world_size() / total.clamp(min=least)


def gather(value: Value) -> list[Value]:
    """The value of every process, by rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values
