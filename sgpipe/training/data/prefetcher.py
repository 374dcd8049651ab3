"""Run a generator in a thread, ahead of its consumer."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import Generic, TypeVar

Result = TypeVar("Result")


class _End:
    """The last entry of the queue: the generator has ended or failed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Prefetcher(Generic[Result]):
    """The results of a generator in order, then its error, if any; use it in a `with` statement.

    Args:
        results: runs, and is closed, in a thread.
        room: number of results computed before they are requested.

    Attributes:
        waited: seconds that the consumer has waited for results.
    """

    def __init__(self, results: Generator[Result, None, None], room: int = 2) -> None:
        self.waited = 0.0
        self._results = results
        self._queue: SimpleQueue[Result | _End] = SimpleQueue()
        self._room = Semaphore(room)
        self._closed = Event()
        self._thread = Thread(target=self._work, name="prefetcher", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with closing(self._results):
                while self._room.acquire() and not self._closed.is_set():
                    self._queue.put(next(self._results))
        except StopIteration:
            self._queue.put(_End())
        # Not swallowed but passed on: it is raised where the results are used.
        except BaseException as error:  # noqa: BLE001
            self._queue.put(_End(error))

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        started = time.perf_counter()
        result = self._queue.get()
        self.waited += time.perf_counter() - started
        if not isinstance(result, _End):
            self._room.release()
            return result
        self._queue.put(result)  # for the next call
        if result.error is not None:
            raise result.error
        raise StopIteration

    def close(self) -> None:
        """Stop and wait until the thread has ended; results that were not consumed are dropped."""
        self._closed.set()
        self._room.release()
        self._thread.join()
        self._queue = SimpleQueue()
        self._queue.put(_End())

    def __enter__(self) -> Prefetcher[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
