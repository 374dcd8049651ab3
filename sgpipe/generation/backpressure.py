"""Backpressure: a limit on the work units between the first stage and the manifest.

Ray Data limits what waits between stages by bytes: up to half of its object store. Captions are small, so hours of them
fit, and a lost driver loses them all, since only whole units are committed. So units are counted.
"""

from __future__ import annotations

import asyncio
from typing import cast

import ray
from ray.actor import ActorHandle

from sgpipe.utils.ray_cluster import on_driver_node


class UnitLimit:
    """Admits units as long as fewer than `limit` are in progress.

    A unit that comes again because its worker died is admitted at once: it is already in progress.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._in_progress: set[str] = set()
        self._changed = asyncio.Condition()

    async def enter(self, unit: str) -> None:
        """Wait until the unit is admitted."""
        async with self._changed:
            await self._changed.wait_for(lambda: unit in self._in_progress or len(self._in_progress) < self.limit)
            self._in_progress.add(unit)

    async def leave(self, unit: str) -> None:
        """The unit is committed."""
        async with self._changed:
            self._in_progress.discard(unit)
            self._changed.notify_all()


def start_unit_limit(limit: int) -> ActorHandle:
    """A `UnitLimit` actor on the driver's machine. If it is killed, it restarts with nothing in progress."""
    actor = ray.remote(UnitLimit).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=on_driver_node()
    )
    return cast(ActorHandle, actor.remote(limit))
