"""The local engine: worker processes on this machine, without Ray.

A worker reads, labels and writes units: one after the other or, if its stages wait for servers,
several at once. A unit whose worker has crashed goes to `IsolatedRunner`, which finds the image
responsible; one whose store does not answer goes back to the queue.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.engine import (
    TRIES,
    Engine,
    LabelledUnit,
    Patience,
    PostponedUnit,
    StageBuilder,
    UnansweredUnit,
    UnitReader,
    UnitWriter,
    WorkUnit,
    cut_units,
    limits_of,
    open_units_of,
    unlabelled,
)
from sgpipe.recipe import EngineConfig, StagePlan
from sgpipe.stages.base import Stage
from sgpipe.stages.runner import IsolatedRunner, StageRunner
from sgpipe.stages.served import waiting
from sgpipe.utils.console import Progress, count
from sgpipe.utils.devices import usable_gpus
from sgpipe.utils.processes import usable_cpus

_IMAGES_PER_WORKER = 64  # the packaged models label this many while a worker imports them
_PATIENCE = 4.0  # seconds after which the number of workers doubles if units wait
_BUILDING = threading.Lock()  # stages, of which a worker has one set
_CRASHED = 71  # exit code
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Notice:
    """What a worker says while it labels."""

    line: str


_Done = LabelledUnit | UnansweredUnit
_Answer = _Done | PostponedUnit | UserError | EngineError


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
        code = f"from sgpipe.generation.local_engine import serve; serve({other.fileno()}, {life})"
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

    def receive(self) -> _Done | PostponedUnit | Notice:
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
        done = answer.shard if isinstance(answer, LabelledUnit) else answer.unit
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
        actors = [resource.most_actors for resource in resources if resource.most_actors]
        share, name = max(
            (resource.cpus, name) for resource, name in zip(resources, stages.names, strict=True)
        )
        if share > cpus:
            raise UserError(
                f"{name} takes {share:g} CPUs, but only {cpus} can be used: lower"
                f" {name}.resources.cpus"
            )
        if stages.requests_of_run:
            actors.append(stages.requests_of_run)
        self.max_workers = min([*actors, self._gpus or int(cpus // share)])
        self.gpus = self.max_workers if self._gpus else 0
        self._streamed_requests = stages.among(self.max_workers).streamed_requests
        self._processes: list[WorkerProcess] = []
        self._crashes = Counter[WorkUnit]()
        self._last_notice: Notice | None = None

    def warm_up(self, build: Callable[[], object]) -> None:
        """Start the first worker, which imports what the stages need while the driver plans."""
        self._add().send(build)

    def start(
        self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress, run_rows: int
    ) -> list[WorkUnit]:
        rows = sum(unit.rows for unit in units)
        names = stages.plan.names
        # A worker runs all stages: those that have asked for no GPU compute on the CPU.
        plan = stages.plan.computing_on_cpus().among(self.max_workers)
        self._stages = replace(stages, plan=plan)
        self._progress = progress
        self._first = min(self.max_workers, max(1, rows // _IMAGES_PER_WORKER))
        self.workers = {names: self.max_workers}
        progress.say(
            f"{count(self._first, 'worker process', 'worker processes')}: {' + '.join(names)}"
        )
        return cut_units(units, self._unit_size, self.max_workers, run_rows)

    def run(
        self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
    ) -> Generator[_Done]:
        runner = partial(StageRunner, limits=self._limits)
        isolated_runner = partial(IsolatedRunner, limits=self._limits)
        open_units = open_units_of(units, self._streamed_requests)
        self._work = Labeller(self._stages, reader, writer, runner, open_units)
        self._isolated_work = replace(self._work, runner=isolated_runner, open_units=1)
        self._crashes.clear()
        queue = deque(units)
        patience = Patience(self.max_workers * open_units)
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
                self._skip_checks()
                patience_ends = min(patience_ends, time.monotonic() + _PATIENCE)
                yield answer
            if queue and time.monotonic() > patience_ends:
                target = min(2 * target, self.max_workers)
                patience_ends = time.monotonic() + _PATIENCE

    def _skip_checks(self) -> None:
        """Let workers that start later rely on the checks of the first: servers may be away now."""
        if self._work.stages.checks:
            stages = replace(self._work.stages, checks=False)
            self._work = replace(self._work, stages=stages)
            self._isolated_work = replace(self._isolated_work, stages=stages)

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

    def _answers(self) -> Iterator[_Done | PostponedUnit]:
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
                self._say(answer)
                continue
            yield answer

    def _say(self, notice: Notice) -> None:
        """Show what a worker says, unless another one has just said it."""
        if notice != self._last_notice:
            self._last_notice = notice
            self._progress.say(f"NOTE: {notice.line}")

    def _replace(self, crashed: WorkerProcess) -> None:
        """Start a worker for the units of a crashed one that isolates each image.

        Unless units are streamed, it labels those after these, too, as it has loaded the models by
        then.
        """
        self._processes.remove(crashed)
        exit_code = crashed.end(_PATIENCE)
        self._crashes.update(crashed.units)
        if any(self._crashes[unit] == TRIES for unit in crashed.units):
            message = f"a worker crashed {TRIES} times (exit code {exit_code})"
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
        try:
            send(labeller.label(unit))
        except BaseException:  # noqa: BLE001 - a thread would end in silence, and the driver wait
            os._exit(_CRASHED)

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
