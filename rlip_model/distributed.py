"""Collective operations of distributed training. Every function also works in a single process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


_is_off: ContextVar[bool] = ContextVar("collectives_off", default=False)
_counts_nothing: ContextVar[bool] = ContextVar("counts_nothing", default=False)


@contextmanager
def without_collectives() -> Iterator[None]:
    """Turn off all collective operations of this module, for work that the processes do not do in lockstep."""
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


@contextmanager
def counting_nothing() -> Iterator[None]:
    """Compute finite means without counting the items of this process: a stand-in for an empty batch, to be zeroed."""
    token = _counts_nothing.set(True)
    try:
        yield
    finally:
        _counts_nothing.reset(token)


def is_distributed() -> bool:
    """Whether there are several processes and collective operations are on."""
    return not _is_off.get() and distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if is_distributed() else 1


def global_mean(summed: Tensor, count: Tensor, least: float = 1.0, total: Tensor | None = None) -> Tensor:
    """The sum over the items of this process, divided by the mean number of items per process.

    Gradients are averaged over the processes. The average of this value is the mean over all items, the same as in a
    single process that has them all.

    Args:
        count: the number of items of this process; its gradient is not followed.
        least: lower bound of the total number of items that is divided by.
        total: the number of items of all processes in all parts of a step, if it is known. Then the sum of this value
            over the parts is the mean.
    """
    stand_in = _counts_nothing.get()
    if total is None:
        total = global_sum(torch.zeros_like(count) if stand_in else count)
    least = max(least, 1.0) if stand_in else least
    return summed * world_size() / total.clamp(min=least)


def global_sum(values: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    total = values.detach().clone()
    if is_distributed():
        distributed.all_reduce(total)
    return total


def gather(value: Value) -> list[Value]:
    """Collect the values of all processes, by rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values
