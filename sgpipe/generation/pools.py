"""Pools: stages of equal resources share actors, and the pools share the machine or cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import ray

from sgpipe.errors import UserError
from sgpipe.recipe import Resources
from sgpipe.stages.base import Stage

_KINDS = {"cpus": "CPU", "gpus": "GPU"}  # of resources, and Ray's names for them
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Pool:
    """Stages that run in the same actors."""

    stages: tuple[Stage, ...]
    resources: Resources
    actors: int

    @property
    def name(self) -> str:
        return " + ".join(stage.name for stage in self.stages)


def plan_pools(stages: Sequence[Stage], units: int) -> list[Pool]:
    """Group consecutive stages of equal resources and size their pools to the cluster.

    Pools without a fixed number of actors share what the others leave, so that all pools run at once.

    Raises UserError: the recipe asks for more than the cluster has.
    """
    groups = [(resources, tuple(group)) for resources, group in groupby(stages, key=lambda stage: stage.resources)]
    pools = [Pool(members, resources, resources.actors or 1) for resources, members in groups]
    free = {kind: ray.cluster_resources().get(name, 0.0) for kind, name in _KINDS.items()}
    for pool in pools:
        for kind in free:
            free[kind] -= getattr(pool.resources, kind) * pool.actors
            if free[kind] < -_ROUNDING:
                raise UserError(_too_much(pools, kind, pool))
    while grown := _grow(pools, free, units):
        pools = grown
    return pools


def required_resources(pools: Sequence[Pool]) -> dict[str, float]:
    """What all actors together take, by Ray's names."""
    return {name: _total(pools, kind) for kind, name in _KINDS.items()}


def cluster_has(required: Mapping[str, float]) -> bool:
    """Whether the cluster, as it is now, has these resources in total."""
    available = ray.cluster_resources()
    return all(available.get(name, 0.0) >= amount - _ROUNDING for name, amount in required.items())


def unused_gpus(stages: Sequence[Stage]) -> str | None:
    """A note for users whose GPUs no stage asks for."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if not gpus or any(stage.resources.gpus for stage in stages):
        return None
    return (
        f"NOTE: Ray has {gpus:g} {'GPU' if gpus == 1 else 'GPUs'}, but no stage uses one: "
        "set caption.resources.gpus and tag.resources.gpus"
    )


def _total(pools: Sequence[Pool], kind: str) -> float:
    return sum(getattr(pool.resources, kind) * pool.actors for pool in pools)


def _grow(pools: list[Pool], free: dict[str, float], units: int) -> list[Pool] | None:
    """One more actor for the smallest growable pool that fits into what is free; None if there is no such pool."""
    for pool in sorted(pools, key=lambda pool: pool.actors):
        need = {kind: getattr(pool.resources, kind) for kind in free}
        if pool.resources.actors or pool.actors >= units or any(need[k] > free[k] + _ROUNDING for k in free):
            continue
        for kind in free:
            free[kind] -= need[kind]
        return [replace(each, actors=each.actors + 1) if each is pool else each for each in pools]
    return None


def _too_much(pools: Sequence[Pool], kind: str, pool: Pool) -> str:
    available = ray.cluster_resources().get(_KINDS[kind], 0.0)
    return (
        f"the recipe asks for {_total(pools, kind):g} {kind} at once, Ray has {available:g}; "
        f"lower {pool.stages[0].name}.resources.{kind} or .actors"
    )
