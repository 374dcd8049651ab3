"""Running stages, here or in a child process that may crash: a failure on an image is an error row.

A stage that raises gets halves of its records, down to the image on which it fails alone. A process
whose GPU failed, or that exceeds the time limit, ends like one that crashes: `IsolatedRunner` finds
the image.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

from rlip_model.training.gpu_utilization import GpuUtilization
from sgpipe.records import Record
from sgpipe.stages.base import Stage
from sgpipe.stages.failures import (
    Failure,
    FailureStreak,
    ImageLimits,
    cause_of,
    concerns_one_image,
    is_gpu_failure,
)
from sgpipe.stages.served.batch import UNANSWERED, UnansweredError

COMPILATION = "compilation"  # beside the names of stages
_WORKER = "worker"  # beside the names of stages, in error rows
_GPU_FAILED = 70  # exit code
_TIMEOUT = "Timeout ("  # with which a report of faulthandler begins
_NO_LIMITS = ImageLimits()


@dataclass
class Usage:
    """What stages took for some records: seconds (of "compilation" apart) and `gpu_use`, by
    stage; the images on which they failed; and the tokens of served models.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    gpus: dict[str, dict[str, object]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, other: Usage) -> None:
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.gpus |= other.gpus
        self.failures += other.failures
        self.tokens.update(other.tokens)


StageOutput = tuple[list[Record], Usage]


class SharedSeconds:
    """A clock that runs n times as slowly while n threads use it, so that their seconds add up to
    the time that passed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._seconds = 0.0
        self._now = 0.0

    def begin(self) -> float:
        """Return the time by this clock, which one more thread uses from now on."""
        return self._advance(1)

    def end(self) -> float:
        """Return the time by this clock, which one thread less uses from now on."""
        return self._advance(-1)

    def _advance(self, threads: int) -> float:
        with self._lock:
            now = time.perf_counter()
            if self._threads:
                self._seconds += (now - self._now) / self._threads
            self._now = now
            self._threads += threads
            return self._seconds


class StageRunner:
    """Sets up its stages on the first call.

    Attributes:
        report: an open file for the traceback of what ends the process; None: standard error.
    """

    report: TextIO | None = None

    def __init__(self, stages: Sequence[Stage], limits: ImageLimits = _NO_LIMITS) -> None:
        self.stages = stages
        self.limits = limits
        self._streaks = {stage.name: FailureStreak(limits) for stage in stages}
        self._ready = False
        self._compiled: dict[str, float] = {}
        self._setting_up = threading.Lock()
        self._computing = threading.Lock()
        self._streaming = SharedSeconds()

    def __reduce__(self) -> tuple[type[StageRunner], tuple[Sequence[Stage], ImageLimits]]:
        """A runner that is sent to another process begins anew there."""
        return StageRunner, (self.stages, self.limits)

    def set_up(self) -> None:
        """Set up all stages, once.

        Raises:
            UserError: a stage cannot be set up.
        """
        with self._setting_up:
            if self._ready:
                return
            for stage in self.stages:
                stage.setup()
            self._ready = True

    def __call__(self, records: list[Record]) -> StageOutput:
        """Run all stages. Several threads may do so at once: they wait for servers together, and
        compute one after the other.

        Raises:
            FailuresInARowError: every image fails.
            Exception: what concerns more than an image.
        """
        self.set_up()
        usage = Usage()
        for stage in self.stages:
            turn = nullcontext() if stage.streams else self._computing
            with turn:
                records, of_stage = self._run_measured(stage, records)
            usage.add(of_stage)
        return records, usage

    def _run_measured(self, stage: Stage, records: list[Record]) -> StageOutput:
        clock = self._streaming if stage.streams else SharedSeconds()
        began = clock.begin()
        failures: list[Failure] = []
        try:
            with GpuUtilization(stage.device) as gpu:
                records = self._run(stage, records, failures)
        finally:
            seconds = clock.end() - began
        use = stage.gpu_use()
        share = gpu.read()
        if share is not None:
            use["utilization"] = round(share, 3)
        total = use.pop("compilation", 0.0)
        compiled = total - self._compiled.get(stage.name, 0.0)
        self._compiled[stage.name] = total
        apart = {COMPILATION: compiled} if compiled else {}
        gpus = {stage.name: use} if use else {}
        taken = {stage.name: max(seconds - compiled, 0.0), **apart}
        return records, Usage(taken, gpus, failures, stage.take_tokens())

    def _run(self, stage: Stage, records: list[Record], failures: list[Failure]) -> list[Record]:
        """Run a stage, in halves if it fails; adds the images on which it fails alone."""
        untouched = [record.copy() for record in records]
        try:
            # Requests have a time limit of their own; the process has one timer.
            with nullcontext() if stage.streams else self._time_limit(len(records)):
                filled = stage(records)
        except UnansweredError as error:
            return self._run_answered(stage, untouched, failures, error)
        except Exception as error:
            cause = cause_of(error)
            if is_gpu_failure(cause):
                self._end_process()
            if not concerns_one_image(cause):
                raise
            failure = Failure.of_error(untouched[0].file_name, stage.name, error)
        else:
            if any(record.ok for record in filled):
                self._streaks[stage.name].end()
            return filled
        if len(untouched) > 1:
            middle = len(untouched) // 2
            first = self._run(stage, untouched[:middle], failures)
            return first + self._run(stage, untouched[middle:], failures)
        untouched[0].fail(stage.name, failure.reason)
        failures.append(failure)
        self._streaks[stage.name].add(failure)
        return untouched

    def _run_answered(
        self,
        stage: Stage,
        records: list[Record],
        failures: list[Failure],
        error: UnansweredError,
    ) -> list[Record]:
        """Run a stage on each image alone; those without answers get no later stage."""
        if len(records) == 1:
            failures.append(Failure(records[0].file_name, stage.name, UNANSWERED, str(error)))
            records[0].fail(stage.name, str(error))
            return records
        answered = []
        for record in records:
            answered += self._run(stage, [record], failures)
        return answered

    @contextmanager
    def _time_limit(self, images: int) -> Iterator[None]:
        """End the process if the body takes longer, even where it never returns to Python."""
        if self.limits.seconds is None:
            yield
            return
        report = self.report or sys.__stderr__ or sys.stderr
        faulthandler.dump_traceback_later(self.limits.seconds * images, exit=True, file=report)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end_process(self) -> None:
        """End as a crash does: what follows on a GPU that failed would fail, too."""
        traceback.print_exc(file=self.report)
        if self.report is not None:
            self.report.flush()
        os._exit(_GPU_FAILED)


class IsolatedRunner:
    """A `StageRunner` in a child process: an image that crashes it twice, alone at last, becomes an
    error row.
    """

    def __init__(self, stages: Sequence[Stage], limits: ImageLimits = _NO_LIMITS) -> None:
        self.stages = stages
        self.limits = limits
        self._streak = FailureStreak(limits)
        self._pipe: Connection | None = None
        self._report: TextIO | None = None

    def __call__(self, records: list[Record]) -> StageOutput:
        output = self._run(records)
        if output is not None:
            self._streak.end()
            return output
        if len(records) == 1:
            return self._run_alone(records)
        middle = len(records) // 2
        (first, usage), (second, more) = self(records[:middle]), self(records[middle:])
        usage.add(more)
        return first + second, usage

    def _run_alone(self, records: list[Record]) -> StageOutput:
        """Run an image that has just crashed the child once more. Raises FailuresInARowError."""
        output = self._run(records)
        if output is not None:
            return output
        reason = "the worker crashed twice on this image"
        kind = "crash"
        report = self._report.read() if self._report else ""
        if report.startswith(_TIMEOUT):
            reason = (
                f"a stage took more than {self.limits.seconds:g} seconds (engine.image_timeout)"
            )
            kind = "timeout"
        failure = Failure(records[0].file_name, _WORKER, kind, reason, report)
        records[0].fail(_WORKER, reason)
        self._streak.add(failure)
        return records, Usage(failures=[failure])

    def _run(self, records: list[Record]) -> StageOutput | None:
        """Return the output of the child process, or None if it crashed. Raises whatever a stage
        raises.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send(records)
            reply = pipe.recv()
        except (EOFError, OSError):
            self._pipe = None
            return None
        if isinstance(reply, Exception):
            raise reply
        output: StageOutput = reply
        return output

    def _start(self) -> Connection:
        """Start the child process, and wait until its stages are set up.

        Raises:
            UserError: a stage cannot be set up.
            RuntimeError: the process crashed during setup.
        """
        with tempfile.NamedTemporaryFile(prefix="sgpipe-worker-", delete=False) as file:
            report = Path(file.name)
        context = multiprocessing.get_context("spawn")
        pipe, child_end = context.Pipe()
        arguments = (self.stages, self.limits, child_end, report)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        child_end.close()
        try:
            failed = pipe.recv()
        except EOFError:
            process.join()
            names = ", ".join(stage.name for stage in self.stages)
            raise RuntimeError(
                f"a worker crashed while setting up {names} (exit code {process.exitcode})"
            ) from None
        finally:
            self._report = report.open(errors="replace")
            report.unlink()  # both processes have it open
        if failed is not None:
            raise failed
        self._pipe = pipe
        return pipe


def _serve(stages: Sequence[Stage], limits: ImageLimits, pipe: Connection, report: Path) -> None:
    """Set up, then answer record lists until the parent closes the pipe.

    Args:
        report: gets the traceback of a crash.
    """
    runner = StageRunner(stages, limits)
    work: Callable[[], object] = runner.set_up
    with report.open("w") as runner.report:
        faulthandler.enable(runner.report)  # the parent deletes the file after the setup
        while True:
            try:
                outcome = work()
            # The parent raises it again: a process that ended with it would be taken for one that
            # crashed on an image.
            except Exception as reason:  # noqa: BLE001
                outcome = reason
            pipe.send(outcome)
            try:
                work = partial(runner, pipe.recv())
            except EOFError:
                return
