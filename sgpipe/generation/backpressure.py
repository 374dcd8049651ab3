"""Back-pressure: how many work units may be between the first stage and the manifest.

Ray Data bounds what waits between stages by bytes, of which it takes half of the object store. Captions are small:
hours of them fit, which a lost driver loses, since only whole units are committed. So units are counted.
"""

from __future__ import annotations

import asyncio
from typing import cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Turnstile:
    """Lets units in as long as fewer than `most` are inside.

    A unit that comes again, because its worker died, is let in at once: it is inside.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside: set[str] = set()
        self._changed = asyncio.Condition()

    async def enter(self, unit: str) -> None:
        """Wait until there is room for the unit."""
        async with self._changed:
            await self._changed.wait_for(lambda: unit in self._inside or len(self._inside) < self.most)
            self._inside.add(unit)

    async def leave(self, unit: str) -> None:
        """The unit is done."""
        async with self._changed:
            self._inside.discard(unit)
            self._changed.notify_all()


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Where an actor is lost only together with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def open_turnstile(most: int) -> ActorHandle:
    """A turnstile beside the driver; killed, it begins anew with nothing inside."""
    actor = ray.remote(Turnstile).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=beside_driver()
    )
    return cast(ActorHandle, actor.remote(most))
