"""Running stages one after the other: in this process, or in one of their own that may die."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from sgpipe.records import Record
from sgpipe.stages.base import Stage

Finished = tuple[list[Record], dict[str, float]]


class StageRunner:
    """Sets its stages up when first called; returns the records and the seconds that each stage took."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._ready = False

    def set_up(self) -> None:
        """Raises UserError: a stage cannot be set up."""
        if not self._ready:
            for stage in self.stages:
                stage.setup()
            self._ready = True

    def __call__(self, records: list[Record]) -> Finished:
        self.set_up()
        seconds: dict[str, float] = {}
        for stage in self.stages:
            began = time.perf_counter()
            records = stage(records)
            seconds[stage.name] = seconds.get(stage.name, 0.0) + time.perf_counter() - began
        return records, seconds


class IsolatedRunner:
    """As `StageRunner`, in a process of its own: an image that kills it becomes an error row.

    Records that go in together and kill the process are halved until one is left. That one gets a second try,
    since it may have been another that took the memory.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._pipe: Connection | None = None

    def __call__(self, records: list[Record]) -> Finished:
        answer = self._ask(records)
        if answer is None and len(records) == 1:
            answer = self._ask(records)
        if answer is not None:
            return answer
        if len(records) == 1:
            records[0].fail("worker", "the process that worked on this image died, twice")
            return records, {}
        middle = len(records) // 2
        (first, some), (second, more) = self(records[:middle]), self(records[middle:])
        return first + second, {name: some.get(name, 0.0) + more.get(name, 0.0) for name in {**some, **more}}

    def _ask(self, records: list[Record]) -> Finished | None:
        """What the process answers; None: it died of it. Raises what a stage raises."""
        pipe = self._pipe or self._start()
        try:
            pipe.send(records)
            answer = pipe.recv()
        except (EOFError, OSError):
            self._pipe = None
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> Connection:
        """Raises UserError: a stage cannot be set up; RuntimeError: the process died of it."""
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.stages, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            failed = pipe.recv()
        except EOFError:
            process.join()
            names = ", ".join(stage.name for stage in self.stages)
            raise RuntimeError(f"the process died (exit code {process.exitcode}) that set up {names}") from None
        if failed is not None:
            raise failed
        self._pipe = pipe
        return pipe


def _serve(stages: Sequence[Stage], pipe: Connection) -> None:
    """Until the other end of the pipe is gone: records in, records out."""
    runner = StageRunner(stages)
    try:
        runner.set_up()
        pipe.send(None)
        while True:
            pipe.send(runner(pipe.recv()))
    except EOFError:
        return
    except Exception as reason:  # noqa: BLE001 - whatever it is, the other end raises it
        pipe.send(reason)
