"""Compute results in threads before they are requested, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, most: int
) -> Iterator[Iterator[Result]]:
    """The results of each item, computed in threads; without threads, when they are requested.

    Args:
        items: read in the caller's thread.
        most: number of results that are computed or wait.
    """
    if not threads:
        yield map(function, items)
        return
    pool = ThreadPoolExecutor(threads, "prefetch")
    try:
        yield _in_order(function, iter(items), pool, most)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    function: Callable[[Item], Result], items: Iterator[Item], pool: ThreadPoolExecutor, most: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    while True:
        pending.extend(pool.submit(function, item) for item in islice(items, most - len(pending)))
        if not pending:
            return
        yield pending.popleft().result()
