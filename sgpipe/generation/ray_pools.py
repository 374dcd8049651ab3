"""The actors of a graph on Ray: pools of stages, their sizes, and their places on the machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Resources
from sgpipe.stages.base import Stage
from sgpipe.utils.devices import room_for

_ROUNDING = 1e-6
_GIB = 1 << 30
_SCARCEST_FIRST = ("GPU", "CPU", "memory")  # resources, by Ray's names
_PLACING_SECONDS = 10.0


def streamed_requests(stages: Sequence[Stage]) -> int:
    """Return how many requests of these stages are under way at once, about images of several
    units.
    """
    streaming = [stage for stage in stages if stage.streams]
    return max((stage.config.requests_in_flight for stage in streaming), default=0)


def requests_of_run(stages: Sequence[Stage]) -> int | None:
    """Return the most requests that all actors of these stages may have under way; None: any
    number.
    """
    limits = [stage.config.requests_of_run for stage in stages if stage.streams]
    return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True)
class Pool:
    """Stages that run in the same actors."""

    stages: tuple[Stage, ...]
    resources: Resources
    actors: int

    @property
    def name(self) -> str:
        return " + ".join(self.stage_names)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    @property
    def streamed_requests(self) -> int:
        """How many requests of an actor are under way at once, about images of several units."""
        return streamed_requests(self.stages_of_actor)

    @property
    def stages_of_actor(self) -> tuple[Stage, ...]:
        """The stages of one actor, with its share of what the recipe allows to all."""
        return tuple(stage.among(self.actors) for stage in self.stages)

    @property
    def needs(self) -> dict[str, float]:
        """What each actor takes, by Ray's names of resources."""
        amounts = {
            "CPU": self.resources.cpus,
            "GPU": self.resources.gpus or 0,
            "memory": self.resources.memory * _GIB,
        }
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def can_shrink(self) -> bool:
        return self.actors > self.resources.fewest_actors

    def can_grow(self, units: int) -> bool:
        """Return whether a further actor is allowed, and there are as many units and requests."""
        limits = [units, self.resources.most_actors, requests_of_run(self.stages)]
        return all(limit is None or self.actors < limit for limit in limits)


def plan_pools(
    stages: Sequence[Stage], units: int, nodes: Sequence[Mapping[str, Any]] | None = None
) -> list[Pool]:
    """Group consecutive stages of equal resources, and size their pools to the `nodes`
    (`ray.nodes()`).

    Pools without a fixed number of actors share what the others leave.

    Raises:
        UserError: the actors do not fit.
    """
    machines = alive_machines(ray.nodes() if nodes is None else nodes)
    pools = smallest_pools(stages, units)
    if not fit(pools, machines):
        raise too_large(pools, machines)
    while True:
        grown = _grown(pools, units, machines)
        if grown is None:
            return pools
        pools = grown


def smallest_pools(stages: Sequence[Stage], units: int) -> list[Pool]:
    """Group consecutive stages of equal resources, with the fewest actors for these units."""
    pools: list[Pool] = []
    for resources, group in groupby(stages, key=lambda stage: stage.resources):
        fewest = resources.fewest_actors
        actors = fewest if resources.actors else min(fewest, max(units, 1))
        pools.append(Pool(tuple(group), resources, actors))
    return pools


def needs_of_actors(pools: Sequence[Pool]) -> list[dict[str, float]]:
    """Return what each actor of the pools takes, by Ray's names of resources."""
    needs: list[dict[str, float]] = []
    for pool in pools:
        needs += [pool.needs] * pool.actors
    return needs


def gpus_of(pools: Sequence[Pool]) -> int:
    """Return how many GPUs the actors take, rounded up."""
    return math.ceil(sum(_total(pool, "GPU") for pool in pools) - _ROUNDING)


def alive_machines(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, float]]:
    """Return the resources of the machines that are not lost, by Ray's names."""
    return [node["Resources"] for node in nodes if node["Alive"]]


def _grown(
    pools: Sequence[Pool], units: int, machines: Sequence[Mapping[str, float]]
) -> list[Pool] | None:
    """Return the pools with one more actor for the smallest that can grow and leaves room for all;
    None: none can.
    """
    for pool in sorted(pools, key=lambda pool: pool.actors):
        if pool.can_grow(units):
            larger = replace(pool, actors=pool.actors + 1)
            grown = [larger if other is pool else other for other in pools]
            if fit(grown, machines):
                return grown
    return None


def reserve(pools: Sequence[Pool]) -> tuple[list[Pool], PlacementGroup]:
    """Place all actors; where machines are cut unfavourably, fewer of them.

    Raises:
        UserError: they do not fit.
        EngineError: other jobs are where they would.
    """
    planned = list(pools)
    while True:
        placed = placement_group(needs_of_actors(planned), strategy="PACK")
        if placed.wait(_PLACING_SECONDS):
            return planned, placed
        remove_placement_group(placed)
        largest = max(planned, key=lambda pool: pool.actors if pool.can_shrink else 0)
        if not largest.can_shrink:
            raise _no_place(planned)
        planned[planned.index(largest)] = replace(largest, actors=largest.actors - 1)


def _no_place(pools: Sequence[Pool]) -> UserError | EngineError:
    """Return the error of actors that have no place: they are too large, or other jobs are there."""
    machines = alive_machines(ray.nodes())
    free = ray.available_resources()
    refusal = too_large(pools, machines)
    for name in ("CPU", "GPU"):
        if free.get(name, 0) < sum(machine.get(name, 0) for machine in machines):
            rest = _amounts(free) or "nothing"
            return EngineError(f"{refusal}, or wait for other jobs, which leave {rest} free")
    return refusal


def is_placed(group: PlacementGroup) -> bool:
    """Return whether all actors have a place, which those of a lost machine lack until there is
    room elsewhere.
    """
    return bool(placement_group_table(group)["state"] == "CREATED")


def too_large(pools: Sequence[Pool], machines: Sequence[Mapping[str, float]]) -> UserError:
    asked = ", ".join(f"{pool.actors} × {_amounts(pool.needs)} ({pool.name})" for pool in pools)
    amounts = [_amounts(machine) for machine in machines]
    available = "; ".join(filter(None, amounts)) or "nothing"
    largest = max(pools, key=lambda pool: [_total(pool, name) for name in _SCARCEST_FIRST])
    setting = f"{largest.stages[0].name}.resources"
    return UserError(
        f"the actors do not fit on the machines of Ray: {asked} on {available}; lower {setting}"
    )


def _total(pool: Pool, name: str) -> float:
    """Return what all actors of a pool take of a resource."""
    return pool.needs.get(name, 0) * pool.actors


def fit(pools: Sequence[Pool], machines: Sequence[Mapping[str, float]]) -> bool:
    """Return whether machines have room for all actors."""
    for pool in pools:
        if sum(room_for(pool.needs, machine) for machine in machines) < pool.actors:
            return False
    for name in _SCARCEST_FIRST:
        needed = sum(_total(pool, name) for pool in pools)
        room = sum(machine.get(name, 0) for machine in machines) + _ROUNDING * max(needed, 1)
        if needed > room:
            return False
    return True


def _amounts(resources: Mapping[str, float]) -> str:
    """Such as "4 CPUs and 1 GPU"."""
    texts: list[str] = []
    for name in ("CPU", "GPU"):
        number = resources.get(name, 0)
        if number:
            texts.append(f"{number:g} {name}{'' if number == 1 else 's'}")
    return " and ".join(texts)
