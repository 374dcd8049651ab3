"""Pools: stages of equal resources share actors, and Ray places the actors of all pools on the machines at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

# isort: split
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from sgpipe.errors import UserError
from sgpipe.recipe import Resources
from sgpipe.stages.base import Stage
from sgpipe.utils.devices import room_for

_ROUNDING = 1e-6
_GIB = 1 << 30
_PLACING_SECONDS = 10.0


@dataclass(frozen=True)
class Pool:
    """Stages that run in the same actors."""

    stages: tuple[Stage, ...]
    resources: Resources
    actors: int

    @property
    def name(self) -> str:
        return " + ".join(stage.name for stage in self.stages)

    @property
    def needs(self) -> dict[str, float]:
        """What each actor takes, by Ray's names of resources."""
        amounts = {
            "CPU": self.resources.cpus,
            "GPU": self.resources.gpus or 0,
            "memory": self.resources.memory * _GIB,
        }
        return {name: amount for name, amount in amounts.items() if amount}


def plan_pools(stages: Sequence[Stage], units: int, nodes: Sequence[Mapping[str, Any]] | None = None) -> list[Pool]:
    """Group consecutive stages of equal resources, and size their pools to the cluster.

    Pools without a fixed number of actors share what the others leave, so that all pools run at once.

    Args:
        nodes: by default, `ray.nodes()`.

    Raises UserError: the actors do not fit.
    """
    machines = [node["Resources"] for node in (ray.nodes() if nodes is None else nodes) if node["Alive"]]
    groups = [(resources, tuple(group)) for resources, group in groupby(stages, key=lambda stage: stage.resources)]
    pools = [Pool(members, resources, resources.actors or 1) for resources, members in groups]
    if not _fit(pools, machines):
        raise too_large(pools, machines)
    while grown := _grow(pools, machines, units):
        pools = grown
    return pools


def reserve(pools: Sequence[Pool]) -> tuple[list[Pool], PlacementGroup]:
    """Place all actors; where machines are cut unfavourably, fewer of them. Raises UserError: they do not fit."""
    planned = list(pools)
    while True:
        placed = placement_group([pool.needs for pool in planned for _ in range(pool.actors)], strategy="PACK")
        if placed.wait(_PLACING_SECONDS):
            return planned, placed
        remove_placement_group(placed)
        most = max(planned, key=lambda pool: 0 if pool.resources.actors else pool.actors)
        if most.resources.actors or most.actors == 1:
            raise too_large(planned, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        planned[planned.index(most)] = replace(most, actors=most.actors - 1)


def is_placed(group: PlacementGroup) -> bool:
    """Whether all actors have a place, which those of a lost machine lack until there is room elsewhere."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def too_large(pools: Sequence[Pool], machines: Sequence[Mapping[str, float]]) -> UserError:
    """The error for actors that do not fit on the machines."""
    asked = ", ".join(f"{pool.actors} × {_amounts(pool.needs)} ({pool.name})" for pool in pools)
    there = "; ".join(_amounts(machine) for machine in machines)
    most = max(pools, key=lambda pool: [pool.needs.get(name, 0) * pool.actors for name in ("GPU", "CPU", "memory")])
    setting = f"{most.stages[0].name}.resources"
    return UserError(f"the actors do not fit on the machines of Ray: {asked} on {there}; lower {setting}")


def _grow(pools: list[Pool], machines: Sequence[Mapping[str, float]], units: int) -> list[Pool] | None:
    """One more actor for the smallest growable pool that leaves room for all; None if there is no such pool."""
    for pool in sorted(pools, key=lambda pool: pool.actors):
        grown = [replace(each, actors=each.actors + 1) if each is pool else each for each in pools]
        if not pool.resources.actors and pool.actors < units and _fit(grown, machines):
            return grown
    return None


def _fit(pools: Sequence[Pool], machines: Sequence[Mapping[str, float]]) -> bool:
    """Whether the machines have room for each pool, and together as much as all pools need."""
    rooms = (sum(room_for(pool.needs, machine) for machine in machines) for pool in pools)
    totals = {name: sum(pool.needs.get(name, 0) * pool.actors for pool in pools) for name in ("CPU", "GPU", "memory")}
    enough = (
        total <= sum(machine.get(name, 0) for machine in machines) + _ROUNDING * max(total, 1)
        for name, total in totals.items()
        if total
    )
    return all(room >= pool.actors for room, pool in zip(rooms, pools, strict=True)) and all(enough)


def _amounts(resources: Mapping[str, float]) -> str:
    """Such as "4 CPUs and 1 GPU"."""
    amounts = ((name, resources.get(name, 0)) for name in ("CPU", "GPU"))
    return " and ".join(f"{number:g} {name}{'' if number == 1 else 's'}" for name, number in amounts if number)
