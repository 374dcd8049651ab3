"""What every engine needs: units, what reads and writes them, and which engine runs.

The driver plans and commits, and imports no model code.
"""

import math
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

from sgpipe.errors import (
    CodeError,
    EngineError,
    StoreError,
    TakenOverError,
    UserError,
    first_line,
    format_os_error,
)
from sgpipe.files.image_roots import ImageRoot
from sgpipe.files.locations import Location
from sgpipe.files.stores import AccessError
from sgpipe.recipe import AUTO_ON_CPU, STAGES, EngineConfig, Resources, StageConfig, StagePlan
from sgpipe.records import Record, from_table
from sgpipe.sources.stored_folder import add_sizes
from sgpipe.stages.base import Stage
from sgpipe.stages.failures import Failure, FailuresInARowError, ImageLimits
from sgpipe.stages.runner import Usage
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.batch import UNANSWERED
from sgpipe.storage.manifest import ShardEntry, WriterClaim
from sgpipe.storage.shards import read_file, revision_of, shard_name, write_shard
from sgpipe.storage.source_index import read_records
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import usable_gpus

_UNITS_PER_ACTOR = 4
_GPU_ACTOR_CPUS = 0.5  # of an actor that shares a GPU
_MOST_THREADS = 4
_UNSET = Resources()
# Beyond it, spreading stages over GPUs or CPUs saves more than the time in which Ray starts.
_LOCAL_IMAGES = 2000
_MOST_OPEN_UNITS = 32
TRIES = 3  # of a unit whose worker crashes, and of each worker while a store does not answer


@dataclass(frozen=True)
class WorkUnit:
    """Rows `start` to `stop` of a split; `replaces`: a shard that was lost or, `errors_only`, has
    rows to do again.
    """

    split: str
    start: int
    stop: int
    replaces: str | None = None
    errors_only: bool = False

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class LabelledUnit:
    """A shard that is written, and the images of it on which stages failed."""

    shard: ShardEntry
    failures: list[Failure]

    @property
    def rows(self) -> int:
        return self.shard.rows


@dataclass(frozen=True)
class PostponedUnit:
    """A unit that goes back to the queue: a store did not answer, for this reason."""

    unit: WorkUnit
    reason: str


@dataclass(frozen=True)
class UnansweredUnit:
    """A unit without a shard, because requests about `images` of it have no answer yet."""

    unit: WorkUnit
    images: int


@dataclass(frozen=True)
class UnitReader:
    """Work unit → its records, from the source index of its split; `roots`: the images."""

    storage: Location
    indexes: dict[str, str]
    roots: Mapping[str, ImageRoot]

    def __call__(self, unit: WorkUnit) -> list[Record]:
        records = self.read(unit)
        if not (unit.errors_only and unit.replaces):
            return records
        status = read_file(self.storage / unit.replaces, ["status"])["status"].to_pylist()
        return [record for record, state in zip(records, status, strict=True) if state == "error"]

    def read(self, unit: WorkUnit) -> list[Record]:
        """Return all records of a unit, as they are before the first stage."""
        name = self.indexes[unit.split]
        records = read_records(self.storage, name, unit.start, unit.stop)
        add_sizes(records, self.roots)
        return records


@dataclass(frozen=True)
class UnitWriter:
    """The finished records of a work unit → its shard. Raises TakenOverError: another run has
    claimed the store.
    """

    storage: Location
    claim: WriterClaim | None = None

    def __call__(
        self, unit: WorkUnit, records: list[Record], usage: Usage
    ) -> LabelledUnit | UnansweredUnit:
        unanswered = sum(failure.kind == UNANSWERED for failure in usage.failures)
        if unanswered:
            return UnansweredUnit(unit, unanswered)
        if unit.errors_only and unit.replaces:
            redone = iter(records)
            earlier = from_table(read_file(self.storage / unit.replaces))
            records = [record if record.ok else next(redone) for record in earlier]
        revision = revision_of(unit.replaces) + 1 if unit.replaces else 0
        name = shard_name(unit.split, unit.start, unit.stop, revision)
        seconds = {name: round(value, 3) for name, value in usage.seconds.items()}
        entry = write_shard(
            self.storage, name, unit.split, unit.start, records, seconds, claim=self.claim
        )
        counts = entry.counts | usage.tokens
        return LabelledUnit(replace(entry, counts=counts, gpus=usage.gpus), usage.failures)


def cut_units(
    units: Sequence[WorkUnit], max_rows: int, actors: int, run_rows: int
) -> list[WorkUnit]:
    """Cut ranges into units of at most `max_rows` rows, small enough that all actors have work to
    the end.

    Args:
        run_rows: of the whole run: what is left of one that was interrupted gets units as large as
            those before.
    """
    even = -(-run_rows // (_UNITS_PER_ACTOR * actors))
    size = max(1, min(max_rows, even))
    cut = [unit for unit in units if unit.replaces is not None]
    for unit in units:
        if unit.replaces is None:
            starts = range(unit.start, unit.stop, size)
            cut += [WorkUnit(unit.split, start, min(start + size, unit.stop)) for start in starts]
    return cut


def open_units_of(units: Sequence[WorkUnit], requests: int) -> int:
    """Return how many units a worker labels at once so that, while the last images of one are
    answered, there are requests about others.

    Args:
        requests: of a worker that are under way at once; 0: it asks no server.
    """
    if not requests or not units:
        return 1
    rows = max(unit.rows for unit in units)
    others = -(-2 * requests // rows)
    return min(2 + others, _MOST_OPEN_UNITS)


@dataclass(frozen=True)
class StageBuilder:
    """Builds the stages that run, in the process that runs them; for Ray in the driver.

    Attributes:
        build: `build_stages`.
        plan: which stages run, and their settings.
        roots: the images of each split.
        classes: the id of every class that a box can have; None: those of the detector, which runs
            first.
        cache_folder: where answers of served models are kept.
        checks: refuse what cannot be used, such as a server that does not answer; not necessary
            once a worker has labelled a unit.
    """

    build: Callable[[StagePlan, Mapping[str, ImageRoot], Mapping[str, int]], Sequence[Stage]]
    plan: StagePlan
    roots: Mapping[str, ImageRoot]
    classes: Mapping[str, int] | None
    cache_folder: CacheFolder
    checks: bool = True

    def __call__(self) -> list[Stage]:
        """Raises UserError: there is no such model, or one of another kind, as far as its
        configuration tells.
        """
        classes = self.classes
        if classes is None:
            from sgpipe.stages.detect import detector_classes

            names = detector_classes(self.plan.detect)
            classes = {name: number for number, name in enumerate(names, 1)}
        stages = list(self.build(self.plan, self.roots, classes))
        for stage in stages:
            is_unsent = self.cache_folder.batch is not None and stage.config.requests_in_flight
            if self.checks and not is_unsent:
                stage.check()
            stage.cache_folder = self.cache_folder
        return stages


class Engine(Protocol):
    """Runs units through the stages; `workers`: how many processes run these, and with `gpus`,
    known after `start`.
    """

    workers: Mapping[tuple[str, ...], int] = {}
    gpus: int = 0

    def start(
        self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress, run_rows: int
    ) -> list[WorkUnit]:
        """Get ready; return the units, cut for the workers by `run_rows`, those of the whole run.

        Raises:
            UserError: there is no model or room.
            EngineError: workers cannot start.
        """

    def run(
        self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
    ) -> Generator[LabelledUnit | UnansweredUnit]:
        """Yield each unit as soon as its shard is written, or requests about it turn out to have no
        answer. An image on which a stage fails, or that crashes its worker twice, becomes an error
        row.

        Raises:
            UserError: the user has to change something.
            EngineError: the disk is full, a store or server does not answer, or a worker fails.
            FailuresInARowError: every image fails.
        """

    def close(self) -> None:
        """End the workers; Ray is left to the process, which may run something else."""
        return None


def plain_error(error: Exception) -> UserError | EngineError:
    """Return an error that can be sent to the driver: other classes may need more than a
    message.
    """
    if isinstance(error, CodeError | FailuresInARowError):
        return error
    if isinstance(error, UserError | EngineError):
        return (UserError if isinstance(error, UserError) else EngineError)(str(error))
    failed = f"a worker failed: {type(error).__name__}: {first_line(error)}"
    return EngineError(format_os_error(error) if isinstance(error, OSError) else failed)


def unlabelled(unit: WorkUnit, error: Exception) -> PostponedUnit | UserError | EngineError:
    """Return what an exception means for a unit: it is tried again, or the run ends."""
    is_final = isinstance(error, AccessError | TakenOverError)
    if isinstance(error, StoreError) and not is_final:
        return PostponedUnit(unit, str(error))
    return plain_error(error)


class Patience:
    """Ends a run whose store answers no worker.

    Attributes:
        units: how many are labelled at once.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self._in_a_row = 0

    def postpone(self, postponed: PostponedUnit) -> None:
        """Raises EngineError: each was tried several times, and no unit was finished."""
        self._in_a_row += 1
        if self._in_a_row >= TRIES * self.units:
            raise EngineError(postponed.reason)

    def restore(self) -> None:
        """A unit is finished."""
        self._in_a_row = 0


def limits_of(engine: EngineConfig) -> ImageLimits:
    return ImageLimits(engine.max_errors, engine.image_timeout)


def runs_locally(engine: EngineConfig, stages: StagePlan, images: float) -> bool:
    """Return whether Ray is not needed: by default no cluster is joined, and images are few or all
    stages equal.
    """
    if engine.kind != "auto":
        return engine.kind == "local"
    equal = len(set(stages.resources)) == 1 and not stages.resources[0].gpus
    return engine.address is None and (equal or images <= _LOCAL_IMAGES)


def stages_sharing_gpus(
    sections: Mapping[str, StageConfig], engine: EngineConfig, before: Mapping[str, Any]
) -> frozenset[str]:
    """Return the stages that share this machine's GPUs: none if one asks for GPUs or has an engine,
    which takes them, or `before` began on CPUs.
    """
    has_engine = any(section.has_engine for section in sections.values())
    if has_engine or not _can_share(engine):
        return frozenset()
    models = {name: section for name, section in sections.items() if _has_gpu_model(section)}
    if any(section.resources.gpus for section in models.values()):
        return frozenset()
    sharing = frozenset(name for name, section in models.items() if _may_share(section))
    began_on_cpus = any(before.get(name, {}).get("dtype") == AUTO_ON_CPU for name in sharing)
    return frozenset() if began_on_cpus else sharing


def _can_share(engine: EngineConfig) -> bool:
    """Return whether workers run on this machine, and it has a GPU and CPUs for several."""
    has_cpus = (os.cpu_count() or 1) >= 2
    return engine.address is None and has_cpus and bool(usable_gpus())


def _has_gpu_model(section: StageConfig) -> bool:
    return section.shares_gpus and section.loaded_model is not None


def _may_share(section: StageConfig) -> bool:
    """Return whether the recipe leaves it open where the model computes."""
    return section.resources.gpus is None and section.device in ("auto", "cuda")


def share_gpus(plan: StagePlan, sharing: Collection[str], engine: EngineConfig) -> StagePlan:
    """Return the plan with the GPUs of this machine shared: as many actors of each pool as GPUs.

    Actors also get threads that open images, which are no CPUs: they wait for the GPU most of the
    time.

    Args:
        sharing: the stages that share them.
        engine: says how many CPUs can be used.
    """
    gpus = usable_gpus()
    cpus = engine.cpus or os.cpu_count() or 1
    pools = sum(shares for shares, _ in groupby(STAGES, lambda name: name in sharing))
    for name in sharing:
        resources = plan.section(name).resources
        actors = resources.most_actors
        actor_gpus = min(1, gpus / actors if actors else 1) / pools
        amounts: dict[str, float] = {"gpus": max(math.floor(100 * actor_gpus) / 100, 0.01)}
        if resources.cpus == _UNSET.cpus:
            amounts["cpus"] = _GPU_ACTOR_CPUS
        if resources.io_threads == _UNSET.io_threads:
            amounts["io_threads"] = min(max(cpus // (gpus * pools), 2), _MOST_THREADS)
        plan = plan.with_resources(name, **amounts)
    return plan
