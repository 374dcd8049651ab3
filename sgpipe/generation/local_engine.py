"""The local engine: worker processes on this machine, without Ray.

The driver plans and commits, and imports no model code. A worker reads, labels and writes one unit after the other, and
ends when the driver does. A unit whose worker has crashed goes to `IsolatedRunner`, which finds the image responsible.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe, active_children
from multiprocessing.connection import Connection, wait
from typing import Any

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.engine import (
    SHARD,
    StageBuilder,
    UnitReader,
    UnitWriter,
    WorkUnit,
    cut_units,
    shard_of,
    told,
    usable_cpus,
)
from sgpipe.generation.identity import STAGES
from sgpipe.stages.base import IsolatedRunner, StageRunner
from sgpipe.storage.manifest import ShardEntry
from sgpipe.utils.console import Progress, count
from sgpipe.utils.devices import usable_gpus

_IMAGES_PER_WORKER = 64  # a worker imports as long as the packaged models take for so many
_PATIENCE = 4.0  # seconds after which the number of workers doubles if units wait
_TRIES = 3  # of a unit whose worker crashes
_VISIBLE = "CUDA_VISIBLE_DEVICES"
Job = tuple[WorkUnit, bool]  # and whether its stages run in a process of their own


class WorkerProcess:
    """A worker, as the driver sees it: it gets messages by a pipe, and ends when `lifeline` is closed."""

    def __init__(self, number: int, environment: Mapping[str, str]) -> None:
        self.number = number
        self.pipe, other = Pipe()
        life, self.lifeline = os.pipe()
        code = f"from sgpipe.generation.local_engine import serve; serve({other.fileno()}, {life})"
        path = os.pathsep.join(each or os.getcwd() for each in sys.path)
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
        self.job: Job | None = None  # in progress

    def send(self, message: Any) -> None:
        """Send a message; a worker that has died is noticed when its reply is read."""
        with suppress(OSError):
            self.pipe.send(message)

    def end(self, patience: float = 0) -> int:
        """Kill the process, unless it ends within `patience` seconds, and what it started; returns its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with suppress(ProcessLookupError):  # the session of the worker, which isolates images in another process
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        os.close(self.lifeline)
        return self.process.wait()


class LocalEngine:
    """See `Engine`. `max_workers`: the number of workers that the CPUs or GPUs of this machine allow."""

    def __init__(self, stages: StageBuilder) -> None:
        resources, cpus = stages.resources, stages.recipe.engine.cpus or usable_cpus()
        self._gpus = usable_gpus() if any(each.gpus for each in resources) else 0
        self._threads = max(1, *(int(each.cpus) for each in resources))
        actors = [each.actors for each in resources if each.actors]
        share, name = max((each.cpus, name) for each, name in zip(resources, stages.names, strict=True))
        if share > cpus:
            raise UserError(f"{name} takes {share:g} CPUs, but only {cpus} can be used: lower {name}.resources.cpus")
        self.max_workers = min([*actors, self._gpus or int(cpus // share)])
        self.gpus = self.max_workers if self._gpus else 0
        self.workers: Mapping[tuple[str, ...], int] = {}
        self._processes: list[WorkerProcess] = []

    def warm_up(self, build: Callable[[], object]) -> None:
        """Start the first worker, which imports what the stages need while the driver plans."""
        self._add().send(("warm up", build))

    def start(self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress) -> list[WorkUnit]:
        rows = sum(unit.rows for unit in units)
        # A worker runs all stages: those that have asked for no GPU compute on the CPU.
        on_cpus = {name: each for name in STAGES if not (each := getattr(stages.recipe, name)).resources.gpus}
        on_cpus = {name: each.model_copy(update={"device": "cpu"}) for name, each in on_cpus.items()}
        self._stages = replace(stages, recipe=stages.recipe.model_copy(update=on_cpus))
        self._first = min(self.max_workers, max(1, rows // _IMAGES_PER_WORKER))
        self.workers = {tuple(stages.names): self.max_workers}
        progress.say(f"{count(self._first, 'worker process', 'worker processes')}: {' + '.join(stages.names)}")
        return cut_units(units, stages.recipe.engine.unit_size, self.max_workers)

    def run(self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter) -> Generator[ShardEntry]:
        left, crashes = deque(units), Counter[WorkUnit]()
        work = ("work", (self._stages, reader, writer))
        target, patience_ends = min(self._first, len(units)), float("inf")
        for process in self._processes:
            process.send(work)
        while left or any(process.job for process in self._processes):
            jobs = sum(bool(process.job) for process in self._processes)
            while len(self._processes) < min(target, len(left) + jobs):
                self._add().send(work)
            for process in self._processes:
                if process.job is None and left:
                    unit = left.popleft()
                    process.job = unit, unit in crashes
                    process.send(("unit", process.job))
            busy = {process.pipe: process for process in self._processes if process.job}
            for pipe in wait(list(busy), timeout=1.0):
                process = busy[pipe]  # type: ignore[index]
                try:
                    answer = process.pipe.recv()
                except (EOFError, OSError):
                    unit = process.job[0]  # type: ignore[index]
                    self._processes.remove(process)
                    code = process.end(_PATIENCE)
                    crashes[unit] += 1
                    if crashes[unit] == _TRIES:
                        raise EngineError(f"a worker crashed {_TRIES} times (exit code {code})") from None
                    left.appendleft(unit)
                    continue
                process.job = None
                shard: ShardEntry = shard_of(*answer)
                patience_ends = min(patience_ends, time.monotonic() + _PATIENCE)
                yield shard
            if left and time.monotonic() > patience_ends:
                target, patience_ends = min(2 * target, self.max_workers), time.monotonic() + _PATIENCE

    def close(self) -> None:
        """End all workers."""
        while self._processes:
            self._processes.pop().end()

    def _add(self) -> WorkerProcess:
        number = min(set(range(len(self._processes) + 1)) - {each.number for each in self._processes})
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads)), _VISIBLE: ""}
        if self._gpus:
            visible = os.environ.get(_VISIBLE) or ",".join(map(str, range(self._gpus)))
            environment[_VISIBLE] = visible.split(",")[number % self._gpus]
        self._processes.append(WorkerProcess(number, environment))
        return self._processes[-1]


def serve(pipe: int, lifeline: int) -> None:
    """The main function of a worker. Its arguments are file descriptors."""
    threading.Thread(target=_end_with_driver, args=(lifeline,), daemon=True).start()
    connection, work = Connection(pipe), None
    while True:
        try:
            kind, value = connection.recv()
        except EOFError:
            return
        if kind == "unit" and work is not None:
            connection.send(work.outcome(*value))
        elif kind == "work":
            work = _Work(*value)
        else:
            with suppress(Exception):  # the stages are built again, when it matters
                value()


def _end_with_driver(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the other end is closed
    os.killpg(0, signal.SIGKILL)  # of this session, with the process that isolates images


@dataclass
class _Work:
    """Labels units; one whose worker has crashed in a process of its own, so that models are loaded once at a time."""

    stages: StageBuilder
    reader: UnitReader
    writer: UnitWriter
    runner: StageRunner | IsolatedRunner | None = None

    def outcome(self, unit: WorkUnit, isolated: bool) -> tuple[str, Any]:
        """Return the shard of a unit, or why there is none, as plain values: not all exceptions can be sent."""
        kind = IsolatedRunner if isolated else StageRunner
        try:
            if not isinstance(self.runner, kind):
                self.runner = None
                gc.collect()
                if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                for child in active_children():  # which ends as the pipe to it is closed
                    child.join()
                self.runner = kind(self.stages())
            return SHARD, self.writer(unit, *self.runner(self.reader(unit)))
        except Exception as error:  # noqa: BLE001 - not swallowed but passed on
            return told(error)
