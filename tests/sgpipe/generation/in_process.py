"""Runs in this process: a loop over units in the place of workers, which costs no processes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from sgpipe.generation import run
from sgpipe.generation.engine import (
    LabelledUnit,
    StageBuilder,
    UnitReader,
    UnitWriter,
    WorkUnit,
    cut_units,
    limits_of,
)
from sgpipe.recipe import EngineConfig, Recipe, StagePlan
from sgpipe.records import Record
from sgpipe.stages.runner import StageRunner
from sgpipe.storage.manifest import Summary
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.console import Progress
from tests.values import values_of

RAN: list[str] = []  # the names of the stages that ran


class InProcessEngine:
    """An `Engine`."""

    workers: Mapping[tuple[str, ...], int] = {}
    gpus = 0

    def __init__(self, stages: StagePlan, engine: EngineConfig) -> None:
        self.unit_size = engine.unit_size
        self.limits = limits_of(engine)

    def warm_up(self, build: Callable[[], object]) -> None: ...

    def start(
        self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress, run_rows: int
    ) -> list[WorkUnit]:
        self.stages = stages()
        self.workers = {tuple(values_of(self.stages, "name")): 1}
        return cut_units(units, self.unit_size, 1, run_rows)

    def run(
        self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
    ) -> Generator[LabelledUnit, None, None]:
        RAN.extend(values_of(self.stages, "name"))
        runner = StageRunner(self.stages, self.limits)
        reader, writer = pickle.loads(pickle.dumps((reader, writer)))  # noqa: S301 - as they are sent to workers
        for unit in units:
            yield writer(unit, *runner(reader(unit)))

    def close(self) -> None: ...


@contextmanager
def without_ray() -> Iterator[None]:
    """Let `generate` run the stages in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LocalEngine", InProcessEngine)
        patch.setattr(run, "runs_locally", lambda *_: True)
        yield


def label(
    recipe: Recipe, out: Path, parent: Path | str | None = None, **more: object
) -> tuple[Summary, list[str]]:
    """Run a recipe; returns the lines that it says, too."""
    string_io = io.StringIO()
    summary = run.generate(
        recipe, out, Progress(Console(file=string_io, width=1000)), parent=parent, **more
    )
    return summary, string_io.getvalue().splitlines()


def rows(out: Path | str) -> list[Record]:
    return list(iter_records(out))
