"""The actors beside the pools of a graph, on the driver's machine: they admit units, pass on what
workers say, and tell them what software other machines have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

WORK = "work"  # the column of units


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
        self._changed = asyncio.Condition()
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._last_line = ""
        self._said_once = set[str]()

    async def enter(self, unit: Hashable) -> None:
        """Wait until the unit is admitted."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: unit in self._entered or len(self._entered) - len(self._left) < self.limit
            )
            self._entered.add(unit)

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
    admits it.

    If workers waited themselves, one that has to redo a lost unit could wait for that very unit to
    leave.
    """

    def __init__(self, limit: ActorHandle) -> None:
        self.limit = limit

    def __call__(self, block: pa.Table) -> pa.Table:
        with suppress(RayActorError):  # the run has ended
            unit, _, _ = block[WORK][0].as_py()
            ray.get(self.limit.enter.remote((unit.split, unit.start)))
        return block


def relay(limit: ActorHandle, say: Callable[[str], None]) -> None:
    """Say what the workers of a graph say, until its limit is killed."""
    once = {"max_task_retries": 0}  # Ray would print each retry
    with suppress(RayError):
        while True:
            line: ray.ObjectRef[str] = limit.next_line.options(**once).remote()
            say(f"NOTE: {ray.get(line)}")
