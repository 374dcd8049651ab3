"""The actors beside the pools of a graph, on the driver's machine: they admit units, pass on what
workers say, and tell them what software other machines have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data.extensions import ArrowPythonObjectArray
from ray.exceptions import RayActorError, RayError

# columns: units, and what is done
WORK = "work"
ANSWER = "answer"


class TurnedAway:
    """What comes in place of the answer to a unit that was not admitted, since the limit is
    closed.
    """


def block_of(column: str, *values: Any) -> pa.Table:
    """Return a row for each value: a unit with its records and their usage so far, or an answer."""
    return pa.table({column: ArrowPythonObjectArray.from_objects(values)})


class UnitLimit:
    """Backpressure: admits units as long as fewer than `limit` are between the first stage and the
    manifest.

    Ray Data limits what waits between stages by bytes. Captions are small, so hours of them fit,
    and a lost driver loses them all. A unit that comes again because an actor died is admitted at
    once, and takes no more room.
    """

    def __init__(self, limit: int, software: Mapping[str, str]) -> None:
        """`software`: that of the driver's machine."""
        self.limit = limit
        self._software = dict(software)
        self._entered = set[Hashable]()
        self._left = set[Hashable]()
        self._is_closed = False
        self._changed = asyncio.Condition()
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._last_line = ""
        self._said_once = set[str]()

    async def enter(self, unit: Hashable) -> bool:
        """Wait until the unit is admitted, or the limit is closed; return whether it is admitted."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: unit in self._entered or self._is_closed or self._in_progress < self.limit
            )
            if self._is_closed and unit not in self._entered:
                return False
            self._entered.add(unit)
            return True

    @property
    def _in_progress(self) -> int:
        return len(self._entered) - len(self._left)

    async def in_progress(self) -> int:
        """Return how many units are admitted, and not committed yet."""
        return self._in_progress

    async def close(self) -> None:
        """Admit no further unit."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    async def leave(self, unit: Hashable) -> None:
        """The unit is committed."""
        async with self._changed:
            self._entered.add(unit)  # this actor may have started again meanwhile
            self._left.add(unit)
            self._changed.notify_all()

    async def common_software(self, software: Mapping[str, str]) -> dict[str, str]:
        """Return the software of the driver's machine, with the CUDA and GPU driver of the first
        worker that has them.

        Args:
            software: of the worker that asks.
        """
        self._software = {**software, **self._software}
        return self._software

    async def say(self, line: str) -> None:
        """Keep a line for the driver, unless another worker has just said it."""
        if line != self._last_line:
            self._last_line = line
            await self._lines.put(line)

    async def say_once(self, line: str) -> None:
        """Keep a line for the driver, unless any worker has said it before."""
        if line not in self._said_once:
            self._said_once.add(line)
            await self._lines.put(line)

    async def next_line(self) -> str:
        """Wait for a line, and return it."""
        return await self._lines.get()


class Entrance:
    """The actor before the first pool, on the driver's machine: it passes a unit on once the limit
    admits it, and turns it away once that is closed.

    If workers waited themselves, one that has to redo a lost unit could wait for that very unit to
    leave.
    """

    def __init__(self, limit: ActorHandle) -> None:
        self.limit = limit

    def __call__(self, block: pa.Table) -> pa.Table:
        with suppress(RayActorError):  # the run has ended
            unit, _, _ = block[WORK][0].as_py()
            is_admitted: ray.ObjectRef[bool] = self.limit.enter.remote((unit.split, unit.start))
            if not ray.get(is_admitted):
                return block_of(ANSWER, TurnedAway())
        return block


def relay(limit: ActorHandle, say: Callable[[str], None]) -> None:
    """Say what the workers of a graph say, until its limit is killed."""
    once = {"max_task_retries": 0}  # Ray would print each retry
    with suppress(RayError):
        while True:
            line: ray.ObjectRef[str] = limit.next_line.options(**once).remote()
            say(f"NOTE: {ray.get(line)}")
