"""Pools: stages of equal resources share actors, and the pools share the machine or cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import ray

from sgpipe.errors import UserError
from sgpipe.recipe import Resources
from sgpipe.stages.base import Stage
from sgpipe.utils.console import count
from sgpipe.utils.machines import Machine, Need, amounts, best_place, describe, machines_of, place

_ROUNDING = 1e-6
_GPU_ACTOR_CPUS, _MOST_THREADS = 0.5, 4  # of an actor that shares a GPU
_UNSET = {"cpus": Resources().cpus, "io_threads": None}


@dataclass(frozen=True)
class Pool:
    """Stages that run in the same actors. `nodes`: the machine of each actor, by Ray's id."""

    stages: tuple[Stage, ...]
    resources: Resources
    actors: int
    nodes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(stage.name for stage in self.stages)

    @property
    def need(self) -> Need:
        """Of each actor."""
        return Need(self.resources.cpus, self.resources.gpus or 0, self.resources.memory)


def cluster_machines() -> list[Machine]:
    """The machines of the cluster, as it is now."""
    return machines_of(ray.nodes())


def plan_pools(stages: Sequence[Stage], units: int, machines: Sequence[Machine] | None = None) -> list[Pool]:
    """Group consecutive stages of equal resources, size their pools to the cluster, and place every actor on a machine.

    Pools without a fixed number of actors share what the others leave, so that all pools run at once.

    Args:
        machines: those of the cluster; by default, as it is now.

    Raises UserError: the actors do not fit on the machines; the message names their sizes and the setting to change.
    """
    free = list(cluster_machines() if machines is None else machines)
    groups = [(resources, tuple(group)) for resources, group in groupby(stages, key=lambda stage: stage.resources)]
    pools = [Pool(members, resources, resources.actors or 1) for resources, members in groups]
    nodes = place(required_resources(pools), free)
    if nodes is None:
        raise UserError(_refusal(pools, free))
    places, used = iter(nodes), {machine.node: number for number, machine in enumerate(free)}
    pools = [replace(pool, nodes=tuple(next(places) for _ in range(pool.actors))) for pool in pools]
    for pool in pools:
        for node in pool.nodes:
            free[used[node]] = _after(free[used[node]], pool.need)
    while grown := _grow(pools, free, units):
        pools = grown
    return pools


def required_resources(pools: Sequence[Pool]) -> list[Need]:
    """What each of all actors takes."""
    return [pool.need for pool in pools for _ in range(pool.actors)]


def cluster_has(required: Sequence[Need]) -> bool:
    """Whether these actors fit on the machines of the cluster, as it is now."""
    return place(required, cluster_machines()) is not None


def _grow(pools: list[Pool], free: list[Machine], units: int) -> list[Pool] | None:
    """One more actor for the smallest growable pool that fits on a machine; None if there is no such pool."""
    for pool in sorted(pools, key=lambda pool: pool.actors):
        if pool.resources.actors or pool.actors >= units or (number := best_place(pool.need, free)) is None:
            continue
        free[number] = _after(free[number], pool.need)
        grown = replace(pool, actors=pool.actors + 1, nodes=(*pool.nodes, free[number].node))
        return [grown if each is pool else each for each in pools]
    return None


def _after(machine: Machine, need: Need) -> Machine:
    after = machine.without(need)
    assert after is not None  # it was placed there
    return after


def _refusal(pools: Sequence[Pool], machines: Sequence[Machine]) -> str:
    """Which actors do not fit on which machines, and the settings to lower."""
    has = f"Ray has {describe(machines, memory=any(pool.need.memory for pool in pools))}"
    for pool in pools:
        if best_place(pool.need, machines) is None:
            kinds = _excess(vars(pool.need), [_sizes(machine) for machine in machines]) or _kinds(pool)
            lower = " and ".join(f"{pool.stages[0].name}.resources.{kind}" for kind in kinds)
            return f"an actor of {pool.name} takes {pool.need}, more than any machine has: {has}; lower {lower}"
    total = {kind: sum(vars(pool.need)[kind] * pool.actors for pool in pools) for kind in vars(Need())}
    sums = {kind: sum(_sizes(machine)[kind] for machine in machines) for kind in total}
    excess = _excess(total, [sums])
    chosen = max(pools, key=lambda pool: [vars(pool.need)[kind] * pool.actors for kind in excess or _kinds(pool)])
    lower = " and ".join(f"{chosen.stages[0].name}.resources.{kind}" for kind in excess or _kinds(chosen))
    if excess:
        asked = amounts(**{kind: amount if kind in excess else 0 for kind, amount in total.items()})
        return f"the recipe asks for {asked} at once, more than there are: {has}; lower {lower} or .actors"
    actors = ", ".join(f"{count(pool.actors, 'actor')} of {pool.need} ({pool.name})" for pool in pools)
    return f"{actors} do not fit on the machines, as each actor runs on one: {has}; lower {lower} or .actors"


def _sizes(machine: Machine) -> dict[str, float]:
    return {"cpus": machine.cpus, "gpus": machine.free_gpus, "memory": machine.memory}


def _kinds(pool: Pool) -> list[str]:
    return [kind for kind, amount in vars(pool.need).items() if amount]


def _excess(needed: Mapping[str, float], available: Sequence[Mapping[str, float]]) -> list[str]:
    """The kinds of resources of which none has enough."""
    return [
        kind
        for kind, amount in needed.items()
        if amount > max((each[kind] for each in available), default=0) + _ROUNDING
    ]
