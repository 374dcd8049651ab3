"""How many requests are under way: as many as the servers answer without being slowed down by
them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count

_FIRST = 64  # slots before anything is known of the servers
_SLOWER = 1.5  # times the earlier latency: then further requests only wait in the server
_MARGIN = 1.2  # requests that wait in a server, so that it never idles
_GROWTH = 16  # once the servers are busy, a sixteenth is added


class Slots:
    """Places for requests of one process, given to the earliest stream that waits.

    The number of places doubles until twice as many make answers 1.5 times as slow, which is when
    servers are busy. Then it grows slowly, until answers are 1.5 times as slow again: it shrinks to
    1.2 times what is answered without waiting, at least to half. When a server refuses a request as
    one too many, it is halved. To be used in one event loop.

    Attributes:
        most: places, at any time.
        under_way: requests that have a place.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.under_way = 0
        self._clock = clock
        self._limit = min(most, _FIRST)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._grows_fast = True
        self._usual_seconds: float | None = None
        self._begin_window()

    @property
    def limit(self) -> int:
        """How many places there are now."""
        return self._limit

    @asynccontextmanager
    async def place(self, stream: int) -> AsyncIterator[None]:
        """Wait for a place, and keep it during the body of the `with` statement.

        Args:
            stream: of several that wait, the smallest number is first.
        """
        if self._waiting or self.under_way >= self._limit:
            granted = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (stream, next(self._numbers), granted))
            try:
                await granted
            except asyncio.CancelledError:
                if granted.done() and not granted.cancelled():
                    self._leave()
                raise
        else:
            self.under_way += 1
        try:
            yield
        finally:
            self._leave()

    def answered(self, began: float) -> None:
        """A server answered a request that was sent at `began`, by the clock."""
        if began < self._window_began:
            return
        self._answers += 1
        self._seconds += self._clock() - began
        if 2 * self._answers >= self._limit:
            self._adapt(self._seconds / self._answers)

    def refused(self, began: float) -> None:
        """A server refused a request that was sent at `began`, as it has too many.

        Those that are too many since the number was halved say nothing new.
        """
        if began >= self._window_began and self.under_way <= self._limit:
            self._shrink(self._limit // 2)

    def _adapt(self, seconds: float) -> None:
        """Choose the number of places by the mean latency of a window."""
        is_used = bool(self._waiting) or self.under_way >= self._limit
        usual = self._usual_seconds
        if usual is not None and seconds > _SLOWER * usual:
            if not self._grows_fast:
                at_once = self._limit * usual / seconds  # by Little's law
                self._shrink(max(self._limit // 2, round(_MARGIN * at_once)))
                return
            self._grows_fast = False
            self._usual_seconds = seconds
        elif is_used:
            step = self._limit if self._grows_fast else -(-self._limit // _GROWTH)
            self._limit = min(self._limit + step, self.most)
            if self._grows_fast or usual is None:
                self._usual_seconds = seconds
            if self._limit == self.most:
                self._grows_fast = False
        self._begin_window()
        self._admit()

    def _shrink(self, limit: int) -> None:
        self._limit = max(limit, 1)
        self._grows_fast = False
        self._usual_seconds = None
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_began = self._clock()
        self._answers = 0
        self._seconds = 0.0

    def _leave(self) -> None:
        self.under_way -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.under_way < self._limit:
            _, _, granted = heappop(self._waiting)
            if not granted.done():
                self.under_way += 1
                granted.set_result(None)
