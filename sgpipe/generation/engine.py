"""What every engine gets: how to build the stages, and what to do with each unit of work."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from sgpipe.errors import EngineError, UserError, first_line, format_os_error
from sgpipe.files.image_roots import ImageRoot
from sgpipe.files.locations import Location, open_file
from sgpipe.generation.identity import AUTO_ON_CPU, STAGES
from sgpipe.recipe import Recipe, Resources, models_of
from sgpipe.records import Record, from_table
from sgpipe.stages.base import Stage, Usage
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.storage.manifest import ShardEntry, WriterClaim
from sgpipe.storage.shards import read_file, revision_of, shard_name, write_shard
from sgpipe.storage.source_index import read_records
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import usable_gpus

_UNITS_PER_ACTOR = 4


@dataclass(frozen=True)
class WorkUnit:
    """Rows `start` to `stop` of a split; `replaces`: a shard that was lost or, `errors_only`, has rows to do again."""

    split: str
    start: int
    stop: int
    replaces: str | None = None
    errors_only: bool = False

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class UnitReader:
    """Work unit → its records, from the source index of its split."""

    storage: Location
    indexes: dict[str, str]

    def __call__(self, unit: WorkUnit) -> list[Record]:
        records = self.read(unit)
        if not (unit.errors_only and unit.replaces):
            return records
        status = read_file(self.storage / unit.replaces, ["status"])["status"].to_pylist()
        return [record for record, state in zip(records, status, strict=True) if state == "error"]

    def read(self, unit: WorkUnit) -> list[Record]:
        """Return all records of a unit, as they are before the first stage."""
        name = self.indexes[unit.split]
        with open_file(self.storage / name) as index:
            return read_records(index, unit.start, unit.stop, self.storage / name)


@dataclass(frozen=True)
class UnitWriter:
    """The finished records of a work unit → its shard. Raises StoreError: another run has claimed the store."""

    storage: Location
    claim: WriterClaim | None = None

    def __call__(self, unit: WorkUnit, records: list[Record], usage: Usage) -> ShardEntry:
        if unit.errors_only and unit.replaces:
            redone = iter(records)
            earlier = from_table(read_file(self.storage / unit.replaces))
            records = [record if record.ok else next(redone) for record in earlier]
        revision = revision_of(unit.replaces) + 1 if unit.replaces else 0
        name = shard_name(unit.split, unit.start, unit.stop, revision)
        seconds = {name: round(value, 3) for name, value in usage.seconds.items()}
        if self.claim:  # or a run that was taken over would replace shards of the later one
            self.claim.check()
        entry = write_shard(self.storage, name, unit.split, unit.start, records, seconds)
        return replace(entry, gpus=usage.gpus)


def cut_units(units: Sequence[WorkUnit], max_rows: int, actors: int) -> list[WorkUnit]:
    """Cut ranges into units of at most `max_rows` rows, small enough that all actors have work to the end."""
    new, again = ([unit for unit in units if (unit.replaces is None) == is_new] for is_new in (True, False))
    rows = sum(unit.rows for unit in new)
    size = max(1, min(max_rows, -(-rows // (_UNITS_PER_ACTOR * actors))))
    starts = ((unit, at) for unit in new for at in range(unit.start, unit.stop, size))
    return again + [WorkUnit(unit.split, at, min(at + size, unit.stop)) for unit, at in starts]


_GPU_ACTOR_CPUS, _MOST_THREADS = 0.5, 4  # of an actor that shares a GPU
_UNSET = {"cpus": Resources().cpus, "io_threads": None}
_LOCAL_IMAGES = 2000  # for more, spreading stages over GPUs or CPUs saves more than the time in which Ray starts


@dataclass(frozen=True)
class StageBuilder:
    """Builds the stages that run, in the process that runs them; for Ray in the driver.

    `build`: `build_stages`. `classes`: the id of every class that a box can have; None: those of the detector. `names`:
    the stages that run; `reused`: those that do not.
    """

    build: Callable[[Recipe, Mapping[str, ImageRoot], Mapping[str, int]], Sequence[Stage]]
    recipe: Recipe
    roots: Mapping[str, ImageRoot]
    classes: Mapping[str, int] | None
    names: Sequence[str]
    reused: Sequence[str]
    cache_folder: CacheFolder

    def __call__(self) -> list[Stage]:
        """Raises UserError: there is no such model, or one of another kind, as far as its configuration tells."""
        stages: list[Stage] = []
        classes = self.classes
        if classes is None and self.recipe.detect.detector is None:  # words of captions get the only boxes
            classes = {}
        elif classes is None:
            from sgpipe.stages.detect import DetectStage, detector_classes

            classes = {name: number for number, name in enumerate(detector_classes(self.recipe.detect), 1)}
            stages.append(DetectStage(self.recipe.detect, self.roots))
        stages += self.build(self.recipe, self.roots, classes)
        stages = [stage for stage in stages if stage.name.replace("load", "caption") not in self.reused]
        for stage in stages:
            stage.check()
            stage.cache_folder = self.cache_folder
        return stages

    @property
    def resources(self) -> list[Resources]:
        """The resources of the stages that run."""
        return [getattr(self.recipe, name).resources for name in self.names]


class Engine(Protocol):
    """Runs units through the stages; `workers`: how many processes run these, and with `gpus`, known after `start`."""

    workers: Mapping[tuple[str, ...], int]
    gpus: int

    def start(self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress) -> list[WorkUnit]:
        """Get ready; returns the units, cut for the workers. Raises UserError: no model or room; EngineError."""

    def run(self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter) -> Generator[ShardEntry]:
        """Yield each shard as soon as it is written. An image that crashes its worker twice becomes an error row.

        Raises UserError: a stage refused its input; EngineError: the disk is full, or a stage failed.
        """

    def close(self) -> None:
        """End what was started."""


SHARD, REFUSAL, FAILURE = "shard", "refusal", "failure"  # what a worker answers


def shard_of(kind: str, value: Any) -> Any:
    """Return the shard that a worker has written. Raises UserError, EngineError: what it tells instead."""
    if kind != SHARD:
        raise (UserError if kind == REFUSAL else EngineError)(value)
    return value


def told(error: Exception) -> tuple[str, str]:
    """Return whether a worker refuses its input or has failed, and why, as plain values that can be sent."""
    if isinstance(error, UserError | EngineError):
        return REFUSAL if isinstance(error, UserError) else FAILURE, str(error)
    if isinstance(error, OSError):
        return FAILURE, format_os_error(error)
    return FAILURE, f"a worker failed: {type(error).__name__}: {first_line(error)}"


def runs_locally(recipe: Recipe, stages: StageBuilder, images: float) -> bool:
    """Return whether Ray is not needed: by default no cluster is joined, and images are few or all stages equal."""
    engine = recipe.engine
    if engine.kind != "auto":
        return engine.kind == "local"
    equal = len(set(stages.resources)) == 1 and not stages.resources[0].gpus
    return engine.address is None and (equal or images <= _LOCAL_IMAGES)


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, also in a container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def stages_sharing_gpus(recipe: Recipe, before: Mapping[str, Any]) -> frozenset[str]:
    """Return the stages that share this machine's GPUs: none if one asks for GPUs, or `before` began on CPUs."""
    models = {name: getattr(recipe, name) for name in models_of(recipe)}
    able = {name for name, each in models.items() if each.resources.gpus is None and each.device in ("auto", "cuda")}
    asked = any(each.resources.gpus for each in models.values())
    if asked or recipe.engine.address is not None or not usable_gpus() or (os.cpu_count() or 1) < 2:
        return frozenset()
    on_cpus = any(before.get(name, {}).get("dtype") == AUTO_ON_CPU for name in able)
    return frozenset() if on_cpus else frozenset(able)


def share_gpus(recipe: Recipe, stages: Collection[str]) -> Recipe:
    """Return the recipe with the GPUs of this machine shared by `stages`: as many actors of each pool as GPUs.

    Actors also get threads that open images, which are no CPUs: they wait for the GPU most of the time.
    """
    gpus, cpus = usable_gpus(), recipe.engine.cpus or os.cpu_count() or 1
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
