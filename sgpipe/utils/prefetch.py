"""Compute results before they are requested, in their order: of items, in threads, or of a
generator, in one thread.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice, repeat, takewhile
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Started = TypeVar("Started")


def start_early(
    start: Callable[[Item], Started],
    items: Iterable[Item],
    limit: int,
    is_full: Callable[[Collection[Started]], bool] = lambda pending: False,
    cancel: Callable[[Started], object] = lambda started: None,
) -> Generator[Started, None, None]:
    """Yield what `start` returns for each item, such as a future, after it has been called for the
    next items too.

    `items` are read in the caller's thread.

    Args:
        limit: number of results that are computed or wait, at least 1; fewer are enough if these
            are `is_full`.
        cancel: called for what was not requested when the generator is closed.
    """
    pending: deque[Started] = deque()
    try:
        for item in items:
            pending.append(start(item))
            while pending and (len(pending) >= limit or is_full(pending)):
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for started in pending:
            cancel(started)


@contextmanager
def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    limit: int,
    size_of: Callable[[Item], int] = lambda item: 0,
    size_limit: int | None = None,
) -> Iterator[Iterator[Result]]:
    """Yield the results of each item, computed in threads; without threads, when they are
    requested.

    Items, limit: see `start_early`. An exception is raised where its result is requested; the end
    waits for no thread.

    Args:
        size_limit: as `limit`, of the sum of the sizes, which the last item may exceed.
    """
    if not threads:
        yield (function(item) for item in items)
        return
    pool = ThreadPoolExecutor(threads, "prefetch")

    def start(item: Item) -> tuple[Future[Result], int]:
        return pool.submit(function, item), size_of(item)

    def is_full(pending: Collection[tuple[Future[Result], int]]) -> bool:
        return size_limit is not None and sum(size for _, size in pending) >= size_limit

    try:
        yield (future.result() for future, _ in start_early(start, items, limit, is_full))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def prefetch_generator(
    results: Generator[Result, None, None], limit: int = 3
) -> Iterator[Iterator[Result]]:
    """Yield the results of a generator, which runs in a thread; an exception comes after the
    results before it.

    At the end, the generator is closed when its thread is done.

    Args:
        limit: number of results that are computed or wait.
    """
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        futures = start_early(
            lambda count: pool.submit(list, islice(results, count)), repeat(1), limit
        )
        yield chain.from_iterable(takewhile(bool, (future.result() for future in futures)))
    finally:
        pool.shutdown(cancel_futures=True)
        results.close()
