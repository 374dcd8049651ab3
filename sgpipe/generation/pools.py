"""Pools: stages of equal resources share actors, the pools share the machine or cluster, and how busy they were."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sgpipe.errors import UserError
from sgpipe.generation.identity import AUTO_ON_CPU, STAGES
from sgpipe.recipe import CaptionConfig, DetectConfig, ParseConfig, Recipe, Resources, TagConfig
from sgpipe.stages.base import Stage
from sgpipe.stages.caption.captioner import is_blip
from sgpipe.storage.manifest import ShardEntry
from sgpipe.utils.console import count
from sgpipe.utils.devices import usable_gpus
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
    import ray

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


def stages_sharing_gpus(recipe: Recipe, before: Mapping[str, Any]) -> frozenset[str]:
    """The stages that share the GPUs of this machine: those whose models can, unless a stage asks for GPUs itself.

    Args:
        before: the identity of the run that is resumed, or of its parent: if it began on CPUs, no stage shares GPUs.
    """
    models = _local_models(recipe)
    able = {name for name, each in models.items() if each.resources.gpus is None and each.device in ("auto", "cuda")}
    asked = any(each.resources.gpus for each in models.values())
    if asked or recipe.engine.address is not None or not usable_gpus() or (os.cpu_count() or 1) < 2:
        return frozenset()
    on_cpus = any(before.get(name, {}).get("dtype") == AUTO_ON_CPU for name in able)
    return frozenset() if on_cpus else frozenset(able)


def share_gpus(recipe: Recipe, stages: Collection[str], gpus: int | None = None, cpus: int | None = None) -> Recipe:
    """The recipe with the GPUs of this machine shared by some of its stages: as many actors of each pool as GPUs.

    Actors also get threads that open images. These do not count as CPUs: they wait for the GPU most of the time.

    Args:
        stages: those that share them (`stages_sharing_gpus`), as far as they run.
        gpus, cpus: of this machine; None: as many as there are.
    """
    gpus, cpus = gpus or usable_gpus(), cpus or recipe.engine.cpus or os.cpu_count() or 1
    pools = sum(shares for shares, _ in groupby(STAGES, lambda name: name in stages))
    changed = {}
    for name in stages:
        resources = getattr(recipe, name).resources
        share = min(1, gpus / resources.actors if resources.actors else 1) / pools
        given = {
            "gpus": max(math.floor(100 * share) / 100, 0.01),
            "cpus": _GPU_ACTOR_CPUS,
            "io_threads": min(max(cpus // (gpus * pools), 2), _MOST_THREADS),
        }
        kept = {key: value for key, value in given.items() if key == "gpus" or getattr(resources, key) == _UNSET[key]}
        changed[name] = getattr(recipe, name).model_copy(update={"resources": resources.model_copy(update=kept)})
    return recipe.model_copy(update=changed)


def _local_models(recipe: Recipe) -> dict[str, DetectConfig | CaptionConfig | ParseConfig | TagConfig]:
    """The configuration of the stages whose models run in their actors."""
    tag, caption = recipe.tag, recipe.caption
    here: dict[str, tuple[bool, DetectConfig | CaptionConfig | ParseConfig | TagConfig]] = {
        "detect": (recipe.detect.detector is not None, recipe.detect),
        "caption": (caption.captioner is not None and caption.endpoint is None, caption),
        "parse": (recipe.parse.parser == "seq2seq", recipe.parse),
        "tag": (tag.scores and tag.tagger is not None and tag.endpoint is None, tag),
    }
    return {name: config for name, (is_here, config) in here.items() if is_here}


def gpu_notes(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[str]:
    """For users whose GPUs no stage asks for, or who set `compile` where PyTorch compiles nothing."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus and not any(stage.resources.gpus for stage in stages):
        yield (
            f"Ray has {gpus:g} {'GPU' if gpus == 1 else 'GPUs'}, but no stage uses one: "
            "set caption.resources.gpus and tag.resources.gpus"
        )
    caption, tag, names = recipe.caption, recipe.tag, {stage.name for stage in stages}
    if "caption" in names and caption.compile:
        why = "" if is_blip(caption) else "only a local BLIP is compiled"
        why = why or ("beam search is not compiled" if caption.decoding == "beam" else _on_cpu(caption))
        if why:
            yield f"caption.compile is ignored: {why}"
    if "tag" in names and tag.compile:
        why = _on_cpu(tag) if tag.method == "rtagger" else "only an R-Tagger is compiled"
        if why:
            yield f"tag.compile is ignored: {why}"


def _on_cpu(config: CaptionConfig | TagConfig) -> str:
    return "" if config.resources.gpus and config.device != "cpu" else "the model runs on a CPU"


class Utilization:
    """The share of time in which the actors of each pool compute, and their GPU memory, from what each shard took.

    Time counts from the start of the first unit, which leaves out starting Ray and loading models. An actor is idle
    while it reads or writes, waits for another pool, or has no unit left.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools
        self.seconds: Counter[str] = Counter()
        self.memory: dict[str, int] = {}
        self.began, self.ended = math.inf, -math.inf
        self._told: set[str] = set()

    def add(self, written: float, shard: ShardEntry) -> list[str]:
        """Add a shard, and when it was written, in seconds since the epoch; returns what is new about its GPUs."""
        self.began = min(self.began, written - sum(shard.seconds.values()))
        self.ended = max(self.ended, written)
        self.seconds.update(shard.seconds)
        notes: list[str] = []
        for stage, use in shard.gpus.items():
            self.memory[stage] = max(self.memory.get(stage, 0), use["memory"])
            notes += _notes(stage, use)
        new = [note for note in notes if note not in self._told]
        self._told.update(new)
        return new

    def __str__(self) -> str:
        elapsed = max(self.ended - self.began, 1e-9)
        shares = []
        for pool in self.pools:
            computed = sum(self.seconds[stage.name] for stage in pool.stages)
            shares.append(f"{pool.name} {computed / (pool.actors * elapsed):.0%}")
        memory = ", ".join(f"{name} {peak / 1e9:.1f} GB" for name, peak in self.memory.items())
        return f"utilization: {', '.join(shares)}" + (f"; peak GPU memory: {memory}" if memory else "")


def _notes(stage: str, use: Mapping[str, Any]) -> Iterator[str]:
    """How a stage computes on its GPU."""
    attention = f", deformable attention by {use['attention']}" if "attention" in use else ""
    yield f"{stage} computes on {use['gpu']}{attention}"
    if "compile_error" in use:
        yield f"NOTE: {stage} continues without torch.compile: {use['compile_error']}"


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
