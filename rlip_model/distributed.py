"""Collective operations of distributed training. Every function also works in a single process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

_is_off: ContextVar[bool] = ContextVar("collectives_off", default=False)
_counts_nothing: ContextVar[bool] = ContextVar("counts_nothing", default=False)


@contextmanager
def without_collectives() -> Iterator[None]:
    """Turn off all collective operations of this module, for work that the processes do not do in
    lockstep.
    """
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


@contextmanager
def counting_nothing() -> Iterator[None]:
    """Compute finite means without counting the items of this process: a stand-in for an empty
    batch, to be zeroed.
    """
    token = _counts_nothing.set(True)
    try:
        yield
    finally:
        _counts_nothing.reset(token)


def _collectives() -> ModuleType | None:
    """Return torch.distributed, or None in a single process, which need not import PyTorch for
    this.
    """
    if _is_off.get() or "torch" not in sys.modules:
        return None
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed
    return None


def rank() -> int:
    """Return the number of this process, from 0."""
    collectives = _collectives()
    return collectives.get_rank() if collectives else 0


def world_size() -> int:
    """Return the number of processes."""
    collectives = _collectives()
    return collectives.get_world_size() if collectives else 1


def global_mean(
    summed: Tensor, count: Tensor, min_total: float = 1.0, total: Tensor | None = None
) -> Tensor:
    """Return the sum over the items of this process, divided by the mean number of items per
    process.

    Gradients are averaged over the processes. The average of this value is the mean over all items,
    the same as in a single process that has them all.

    Args:
        count: the number of items of this process; its gradient is not followed.
        min_total: lower bound of the total number of items that is divided by.
        total: the number of items of all processes in all parts of a step, if it is known. Then the
            sum of this value over the parts is the mean.
    """
    stand_in = _counts_nothing.get()
    if total is None:
        total = global_sum(count.new_zeros(count.shape) if stand_in else count)
    if stand_in:
        min_total = max(min_total, 1.0)
    return summed * world_size() / total.clamp(min=min_total)


def global_sum(values: Tensor) -> Tensor:
    """Return the sum over all processes, without gradient."""
    total = values.detach().clone()
    collectives = _collectives()
    if collectives:
        collectives.all_reduce(total)
    return total


def gather(value: Value) -> list[Value]:
    """Collect the values of all processes, by rank."""
    collectives = _collectives()
    if collectives is None:
        return [value]
    values = [value] * world_size()
    collectives.all_gather_object(values, value)
    return values
