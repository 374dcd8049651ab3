"""An iterator that works ahead of its consumer, in a thread of its own."""

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
    """The last of the results: the generator is at its end, or has failed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Ahead(Generic[Result]):
    """The results of a generator in order, and its error if it has one; use it in a `with` statement.

    Args:
        results: runs in a thread, also when it is closed.
        room: results that are made before they are asked for.

    Attributes:
        waited: seconds that the consumer waited for results so far.
    """

    def __init__(self, results: Generator[Result, None, None], room: int = 2) -> None:
        self.waited = 0.0
        self._results = results
        self._queue: SimpleQueue[Result | _End] = SimpleQueue()
        self._room = Semaphore(room)
        self._closed = Event()
        self._thread = Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with closing(self._results):
                while self._room.acquire() and not self._closed.is_set():
                    self._queue.put(next(self._results))
        except StopIteration:
            self._queue.put(_End())
        # Not caught but handed over: it is raised where the results are used.
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
        self._queue.put(result)  # for whoever asks again
        if result.error is not None:
            raise result.error
        raise StopIteration

    def close(self) -> None:
        """Stop the work and wait until its threads have ended; what was made is dropped."""
        self._closed.set()
        self._room.release()
        self._thread.join()
        self._queue = SimpleQueue()
        self._queue.put(_End())

    def __enter__(self) -> Ahead[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
