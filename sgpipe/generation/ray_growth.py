"""Machines that come to a cluster later: a run waits for the first ones, and grows with others.

What a run wants of an autoscaler it asks for by placement groups that wait: they end with the
driver, also when that is killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from sgpipe.errors import UserError
from sgpipe.generation.ray_pools import Pool, alive_machines, fit, needs_of_actors, too_large
from sgpipe.utils.console import duration

_LOOK_SECONDS = 1.0
# A graph ends for larger pools if it is worth the time in which its last units leave actors idle.
_WORTHWHILE_GROWTH = 1.25
_UNITS_PER_ACTOR = 4
_LOOKS_BEFORE_GROWTH = 6  # machines come one after another
_MOST_WANTED = 64  # actors at once

Nodes = Callable[[], Sequence[Mapping[str, Any]]]  # `ray.nodes()`, or what is left of them


def await_machines(
    pools: Sequence[Pool], nodes: Nodes, timeout: float, say: Callable[[str], None]
) -> None:
    """Wait until machines have room for all actors of the pools.

    Args:
        timeout: the seconds after which it ends.
        say: gets a line when it begins to wait.

    Raises:
        UserError: they do not come.
    """
    if fit(pools, alive_machines(nodes())) or not timeout:
        return  # `plan_pools` refuses them
    error = too_large(pools, alive_machines(nodes()))
    say(f"waiting up to {duration(timeout)} for machines: {error}")
    ends = time.monotonic() + timeout
    with _wanted(needs_of_actors(pools)):
        while not fit(pools, alive_machines(nodes())):
            if time.monotonic() > ends:
                raise too_large(pools, alive_machines(nodes()))
            time.sleep(_LOOK_SECONDS)


@contextmanager
def _wanted(needs: Sequence[dict[str, float]]) -> Iterator[None]:
    """Let an autoscaler know that actors need machines."""
    group = placement_group(list(needs), strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(group)


class Growth:
    """Decides when a graph ends so that another one takes machines that have come, as the pools of
    a graph are fixed.

    Attributes:
        waiting_units: how many are not in progress yet, at least.
        has_begun: no further unit enters the graph.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        planned: Sequence[Pool],
        plan: Callable[[int], list[Pool]],
        *,
        waiting_units: int,
        close: Callable[[], object],
    ) -> None:
        """
        Args:
            pools: of the graph.
            planned: as which they were planned; other jobs may leave less of the machines.
            plan: returns the pools for a number of units on the machines of now.
            close: lets no further unit enter.
        """
        self.waiting_units = waiting_units
        self.has_begun = False
        self._pools = pools
        self._planned = planned
        self._plan = plan
        self._close = close
        self._looks = 0
        self._wanted: list[PlacementGroup] = []

    def look(self, has_place: bool) -> None:
        """Look for machines that have come, and ask for more.

        Args:
            has_place: whether all actors of the graph have one; otherwise what comes is for them.
        """
        if self.has_begun:
            return
        wanted = self._actors_wanted() if has_place else []
        if len(wanted) < len(self._wanted):
            self.end()
        for needs in wanted[len(self._wanted) :]:
            self._wanted.append(placement_group([needs], strategy="PACK"))
        is_worth_it = has_place and self._is_worth_it()
        self._looks = self._looks + 1 if is_worth_it else 0
        if self._looks >= _LOOKS_BEFORE_GROWTH:
            self.has_begun = True
            self._close()

    def _actors_wanted(self) -> list[dict[str, float]]:
        """Return the needs of the actors for which an autoscaler may start machines."""
        units_per_actor = max(self.waiting_units, 0) // _UNITS_PER_ACTOR
        needs: list[dict[str, float]] = []
        for pool in self._pools:
            limit = pool.resources.max_actors or 0
            number = min(limit, units_per_actor, pool.actors + _MOST_WANTED) - pool.actors
            needs += [pool.needs] * max(number, 0)
        return needs

    def _is_worth_it(self) -> bool:
        """Return whether enough machines have come for the units that wait."""
        if self.waiting_units <= 0:
            return False
        try:
            planned = self._plan(self.waiting_units)
        except UserError:  # a machine has just been lost
            return False
        for pool, before in zip(planned, self._planned, strict=True):
            is_larger = pool.actors >= _WORTHWHILE_GROWTH * before.actors
            if is_larger and self.waiting_units >= _UNITS_PER_ACTOR * pool.actors:
                return True
        return False

    def end(self) -> None:
        """Ask for no more machines."""
        while self._wanted:
            remove_placement_group(self._wanted.pop())
