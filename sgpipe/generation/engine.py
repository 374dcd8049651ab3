"""What every engine needs, and the local engine: worker processes on this machine, without Ray.

The driver plans and commits, and imports no model code. A local worker reads, labels and writes one
unit after the other. A unit whose worker has crashed goes to `IsolatedRunner`, which finds the
image responsible; one whose store does not answer goes back to the queue.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
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
from sgpipe.files.locations import Location, open_file
from sgpipe.files.stores import AccessError
from sgpipe.recipe import AUTO_ON_CPU, STAGES, EngineConfig, Resources, StageConfig, StagePlan
from sgpipe.records import Record, from_table
from sgpipe.stages.base import Stage
from sgpipe.stages.failures import Failure, FailuresInARowError, ImageLimits
from sgpipe.stages.runner import IsolatedRunner, StageRunner, Usage
from sgpipe.stages.served import waiting
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.storage.manifest import ShardEntry, WriterClaim
from sgpipe.storage.shards import read_file, revision_of, shard_name, write_shard
from sgpipe.storage.source_index import read_records
from sgpipe.utils.console import Progress, count
from sgpipe.utils.devices import usable_gpus

_UNITS_PER_ACTOR = 4
_GPU_ACTOR_CPUS = 0.5  # of an actor that shares a GPU
_MOST_THREADS = 4
_UNSET = Resources()
# Beyond it, spreading stages over GPUs or CPUs saves more than the time in which Ray starts.
_LOCAL_IMAGES = 2000
_IMAGES_PER_WORKER = 64  # the packaged models label this many while a worker imports them
_PATIENCE = 4.0  # seconds after which the number of workers doubles if units wait
_MOST_OPEN_UNITS = 32
_TRIES = 3  # of a unit whose worker crashes, and of each worker while a store does not answer
_BUILDING = threading.Lock()  # stages, of which a worker has one set
_VISIBLE = "CUDA_VISIBLE_DEVICES"


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
class Notice:
    """What a worker says while it labels."""

    line: str


_Answer = LabelledUnit | PostponedUnit | UserError | EngineError


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
    """The finished records of a work unit → its shard. Raises TakenOverError: another run has
    claimed the store.
    """

    storage: Location
    claim: WriterClaim | None = None

    def __call__(self, unit: WorkUnit, records: list[Record], usage: Usage) -> LabelledUnit:
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
    """

    build: Callable[[StagePlan, Mapping[str, ImageRoot], Mapping[str, int]], Sequence[Stage]]
    plan: StagePlan
    roots: Mapping[str, ImageRoot]
    classes: Mapping[str, int] | None
    cache_folder: CacheFolder

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
    ) -> Generator[LabelledUnit]:
        """Yield each unit as soon as its shard is written. An image on which a stage fails, or that
        crashes its worker twice, becomes an error row.

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
        workers: how many ask the store.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._in_a_row = 0

    def postpone(self, postponed: PostponedUnit) -> None:
        """Raises EngineError: every worker has tried several times, and no unit was finished."""
        self._in_a_row += 1
        if self._in_a_row >= _TRIES * self.workers:
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


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, also in a container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def stages_sharing_gpus(
    sections: Mapping[str, StageConfig], engine: EngineConfig, before: Mapping[str, Any]
) -> frozenset[str]:
    """Return the stages that share this machine's GPUs: none if one asks for GPUs, or `before`
    began on CPUs.
    """
    if not _can_share(engine):
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
        actor_gpus = min(1, gpus / resources.actors if resources.actors else 1) / pools
        amounts: dict[str, float] = {"gpus": max(math.floor(100 * actor_gpus) / 100, 0.01)}
        if resources.cpus == _UNSET.cpus:
            amounts["cpus"] = _GPU_ACTOR_CPUS
        if resources.io_threads == _UNSET.io_threads:
            amounts["io_threads"] = min(max(cpus // (gpus * pools), 2), _MOST_THREADS)
        plan = plan.with_resources(name, **amounts)
    return plan


@dataclass(frozen=True)
class Labeller:
    """What a worker does with a unit: it reads, labels and writes it.

    Attributes:
        runner: runs the stages, which are built for the first unit.
        open_units: how many units it labels at once, in threads.
    """

    stages: StageBuilder
    reader: UnitReader
    writer: UnitWriter
    runner: Callable[[Sequence[Stage]], StageRunner | IsolatedRunner]
    open_units: int = 1

    @cached_property
    def _run(self) -> StageRunner | IsolatedRunner:
        return self.runner(self.stages())

    def label(self, unit: WorkUnit) -> _Answer:
        try:
            with _BUILDING:
                run = self._run
            records, usage = run(self.reader(unit))
            return self.writer(unit, records, usage)
        except Exception as error:  # noqa: BLE001 - not swallowed but passed on
            return unlabelled(unit, error)


class WorkerProcess:
    """A worker, as the driver sees it: it gets messages by a pipe, and ends when `lifeline` is
    closed.
    """

    def __init__(self, number: int, environment: Mapping[str, str]) -> None:
        self.number = number
        self.pipe, other = Pipe()
        life, self.lifeline = os.pipe()
        code = f"from sgpipe.generation.engine import serve; serve({other.fileno()}, {life})"
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment, "PYTHONPATH": path},
            pass_fds=(other.fileno(), life),
            start_new_session=True,  # Ctrl-C is for the driver
        )
        other.close()
        os.close(life)
        self.open_units = 1  # at most
        self.units: list[WorkUnit] = []  # in progress

    def send(self, message: Any) -> None:
        """Send a message, such as the next unit; a worker that has died is noticed when its reply
        is read.
        """
        if isinstance(message, WorkUnit):
            self.units.append(message)
        if isinstance(message, Labeller):
            self.open_units = message.open_units
        with suppress(OSError):
            self.pipe.send(message)

    def receive(self) -> LabelledUnit | PostponedUnit | Notice:
        """Return the answer to a unit, which is no longer in progress; or what the worker says.

        Raises:
            UserError, EngineError: what the worker raised.
            EOFError, OSError: it has crashed.
        """
        answer: _Answer | Notice = self.pipe.recv()
        if isinstance(answer, Notice):
            return answer
        if isinstance(answer, UserError | EngineError):
            raise answer
        done = answer.unit if isinstance(answer, PostponedUnit) else answer.shard
        place = (done.split, done.start)
        self.units = [unit for unit in self.units if (unit.split, unit.start) != place]
        return answer

    def end(self, patience: float = 0) -> int:
        """Kill the process, unless it ends within `patience` seconds, and what it started; returns
        its exit code.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with suppress(ProcessLookupError):
            # the session of the worker, which isolates images in another process
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        os.close(self.lifeline)
        return self.process.wait()


class LocalEngine(Engine):
    """See `Engine`. `max_workers`: the number of workers that the CPUs or GPUs of this machine
    allow.
    """

    def __init__(self, stages: StagePlan, engine: EngineConfig) -> None:
        resources = stages.resources
        cpus = engine.cpus or usable_cpus()
        self._unit_size = engine.unit_size
        self._limits = limits_of(engine)
        self._gpus = usable_gpus() if any(resource.gpus for resource in resources) else 0
        self._threads = max(1, *(int(resource.cpus) for resource in resources))
        actors = [resource.actors for resource in resources if resource.actors]
        share, name = max(
            (resource.cpus, name) for resource, name in zip(resources, stages.names, strict=True)
        )
        if share > cpus:
            raise UserError(
                f"{name} takes {share:g} CPUs, but only {cpus} can be used: lower"
                f" {name}.resources.cpus"
            )
        self.max_workers = min([*actors, self._gpus or int(cpus // share)])
        self.gpus = self.max_workers if self._gpus else 0
        self._streamed_requests = stages.streamed_requests
        self._processes: list[WorkerProcess] = []
        self._crashes = Counter[WorkUnit]()

    def warm_up(self, build: Callable[[], object]) -> None:
        """Start the first worker, which imports what the stages need while the driver plans."""
        self._add().send(build)

    def start(
        self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress, run_rows: int
    ) -> list[WorkUnit]:
        rows = sum(unit.rows for unit in units)
        names = stages.plan.names
        # A worker runs all stages: those that have asked for no GPU compute on the CPU.
        self._stages = replace(stages, plan=stages.plan.computing_on_cpus())
        self._progress = progress
        self._first = min(self.max_workers, max(1, rows // _IMAGES_PER_WORKER))
        self.workers = {names: self.max_workers}
        progress.say(
            f"{count(self._first, 'worker process', 'worker processes')}: {' + '.join(names)}"
        )
        return cut_units(units, self._unit_size, self.max_workers, run_rows)

    def run(
        self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
    ) -> Generator[LabelledUnit]:
        runner = partial(StageRunner, limits=self._limits)
        isolated_runner = partial(IsolatedRunner, limits=self._limits)
        open_units = open_units_of(units, self._streamed_requests)
        self._work = Labeller(self._stages, reader, writer, runner, open_units)
        self._isolated_work = replace(self._work, runner=isolated_runner, open_units=1)
        self._crashes.clear()
        queue = deque(units)
        patience = Patience(self.max_workers)
        target = min(self._first, len(units))
        patience_ends = math.inf
        for process in self._processes:
            process.send(self._work)
        while queue or self._busy():
            self._hand_out(queue, target)
            for answer in self._answers():
                if isinstance(answer, PostponedUnit):
                    patience.postpone(answer)
                    queue.append(answer.unit)
                    continue
                patience.restore()
                patience_ends = min(patience_ends, time.monotonic() + _PATIENCE)
                yield answer
            if queue and time.monotonic() > patience_ends:
                target = min(2 * target, self.max_workers)
                patience_ends = time.monotonic() + _PATIENCE

    def _busy(self) -> list[WorkerProcess]:
        return [process for process in self._processes if process.units]

    def _hand_out(self, queue: deque[WorkUnit], target: int) -> None:
        """Give units to workers that have room, one each at a time; at most `target` workers are
        started.
        """
        needed = min(target, len(queue) + len(self._busy()))
        while len(self._processes) < needed:
            self._add().send(self._work)
        for process in self._processes:
            if not process.units and process.open_units < self._work.open_units:
                process.send(self._work)  # it has isolated the images of a crash
        for number in range(self._work.open_units):
            for process in self._processes:
                has_room = len(process.units) == number < process.open_units
                if has_room and queue:
                    process.send(queue.popleft())

    def _answers(self) -> Iterator[LabelledUnit | PostponedUnit]:
        """Yield what workers answer within a second; a unit whose worker has crashed begins again.

        Raises:
            UserError, EngineError: what a worker raised.
        """
        pipes = {process.pipe: process for process in self._busy()}
        for pipe in wait(list(pipes), timeout=1.0):
            process = pipes[pipe]  # type: ignore[index]
            try:
                answer = process.receive()
            except (EOFError, OSError):
                self._replace(process)
                continue
            if isinstance(answer, Notice):
                self._progress.say(f"NOTE: {answer.line}")
                continue
            yield answer

    def _replace(self, crashed: WorkerProcess) -> None:
        """Start a worker for the units of a crashed one that isolates each image.

        Unless units are streamed, it labels those after these, too, as it has loaded the models by
        then.
        """
        self._processes.remove(crashed)
        exit_code = crashed.end(_PATIENCE)
        self._crashes.update(crashed.units)
        if any(self._crashes[unit] == _TRIES for unit in crashed.units):
            message = f"a worker crashed {_TRIES} times (exit code {exit_code})"
            raise EngineError(message) from None
        process = self._add()
        process.send(self._isolated_work)
        for unit in crashed.units:
            process.send(unit)

    def close(self) -> None:
        while self._processes:
            self._processes.pop().end()

    def _add(self) -> WorkerProcess:
        numbers = {process.number for process in self._processes}
        number = min(set(range(len(numbers) + 1)) - numbers)
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads)),
            _VISIBLE: "",
        }
        if self._gpus:
            visible = os.environ.get(_VISIBLE) or ",".join(map(str, range(self._gpus)))
            environment[_VISIBLE] = visible.split(",")[number % self._gpus]
        self._processes.append(WorkerProcess(number, environment))
        return self._processes[-1]


def serve(pipe: int, lifeline: int) -> None:
    """The main function of a worker. Its arguments are file descriptors."""
    threading.Thread(target=_end_with_driver, args=(lifeline,), daemon=True).start()
    connection = Connection(pipe)
    sending = threading.Lock()
    labeller: Labeller
    threads: ThreadPoolExecutor

    def send(answer: _Answer | Notice) -> None:
        with sending:
            connection.send(answer)

    def label(labeller: Labeller, unit: WorkUnit) -> None:
        send(labeller.label(unit))

    waiting.listen(lambda line: send(Notice(line)))

    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Labeller):
            labeller = message
            threads = ThreadPoolExecutor(labeller.open_units, "unit")
        elif isinstance(message, WorkUnit) and labeller.open_units == 1:
            label(labeller, message)
        elif isinstance(message, WorkUnit):
            threads.submit(label, labeller, message)
        else:
            # to import what stages need; they are built again, when it matters
            with suppress(Exception):
                message()


def _end_with_driver(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the other end is closed
    os.killpg(0, signal.SIGKILL)  # of this session, with the process that isolates images
