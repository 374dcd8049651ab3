"""The local engine with a made-up stage: rows, crashes and errors; kills:
tests/integration/faults/test_kills.py.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.engine import (
    LocalEngine,
    StageBuilder,
    UnitReader,
    UnitWriter,
    WorkUnit,
    cut_units,
    runs_locally,
)
from sgpipe.recipe import EngineConfig, StagePlan, load_recipe
from sgpipe.records import Record
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.storage.shards import read_file
from sgpipe.utils.console import Progress
from tests.integration.faults.runs import descendants, title_of
from tests.integration.faults.stage import Stub
from tests.values import values_of

IMAGES = 8


@dataclass(frozen=True)
class MadeUpRecords(UnitReader):
    names: tuple[str, ...]

    def read(self, unit: WorkUnit) -> list[Record]:
        return [
            Record(str(n), "coco", "val", self.names[n], 8, 8) for n in range(unit.start, unit.stop)
        ]


def only(stage: Stub, *_: object) -> list[Stub]:
    return [stage]


class RefusalError(UserError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


@dataclass
class Raising(Stub):
    def __call__(self, records: list[Record]) -> list[Record]:
        raise RefusalError("a", "refusal")


@dataclass
class BadSetup(Stub):
    def setup(self) -> None:
        raise ValueError("a bug\nin detail")


def builder(folder: Path, stage: Stub) -> StageBuilder:
    plan = StagePlan.of_recipe(load_recipe("coco"))
    return StageBuilder(partial(only, stage), plan, {}, {}, CacheFolder(folder))


def label(folder: Path, names: Sequence[str], stage: Stub) -> dict[str, str | None]:
    """The error of each image."""
    (folder / "data").mkdir()
    stages = builder(folder, stage)
    engine = LocalEngine(stages.plan, EngineConfig(cpus=2))
    try:
        units = engine.start(stages, [WorkUnit("val", 0, len(names))], Progress(), len(names))
        reader = MadeUpRecords(folder, {}, tuple(names))
        units_done = list(engine.run(units, reader, UnitWriter(folder)))
    finally:
        engine.close()
    tables = [read_file(folder / unit.shard.file) for unit in units_done]
    assert sum(map(len, tables)) == len(names)
    return {row["file_name"]: row["error"] for table in tables for row in table.to_pylist()}


def test_an_image_that_crashes_its_worker_is_an_error_row(tmp_path: Path) -> None:
    names = [f"{'fatal-' * (number == 5)}{number}.png" for number in range(IMAGES)]
    errors = label(tmp_path, names, Stub())
    assert errors.pop("fatal-5.png") == "worker: the worker crashed twice on this image"
    assert set(errors.values()) == {None}
    assert not [pid for pid in descendants(os.getpid()) if "generation.engine" in title_of(pid)]


@dataclass
class Counting(Stub):
    """Notes in which processes the models are while an image is labelled."""

    def setup(self) -> None:
        (Path(os.environ["LOADED"]) / str(os.getpid())).touch()

    def __call__(self, records: list[Record]) -> list[Record]:
        time.sleep(0.2)
        loaded = Path(os.environ["LOADED"])
        alive = sum(title_of(int(path.name)) != "" for path in loaded.glob("[0-9]*"))
        (loaded / f"copies-{alive}").touch()
        return super().__call__(records)


@pytest.mark.slow
def test_after_a_crash_the_models_are_loaded_once_for_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgpipe.generation.engine._IMAGES_PER_WORKER", 1)
    monkeypatch.setenv("LOADED", str(tmp_path))
    errors = label(
        tmp_path,
        [f"{'fatal-' * (number == 3)}{number}.png" for number in range(3 * IMAGES)],
        Counting(),
    )
    assert sum(error is not None for error in errors.values()) == 1
    assert set(values_of(tmp_path.glob("copies-*"), "name")) <= {"copies-1", "copies-2"}


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (Raising(), UserError, "a refusal"),
        (BadSetup(), EngineError, "a worker failed: ValueError: a bug"),
    ],
)
def test_what_concerns_every_image_ends_the_run(
    tmp_path: Path, stage: Stub, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        label(tmp_path, ["0.png"], stage)
    assert str(caught.value) == message


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(1, 8), st.data())
def test_what_an_interrupted_run_lacks_is_cut_as_the_whole_was(
    rows: int, max_rows: int, actors: int, data: st.DataObject
) -> None:
    units = cut_units([WorkUnit("val", 0, rows)], max_rows, actors, rows)
    assert [row for unit in units for row in range(unit.start, unit.stop)] == list(range(rows))
    assert max(values_of(units, "rows")) <= max_rows
    done = data.draw(st.integers(0, len(units) - 1))
    left = WorkUnit("val", units[done].start, rows)
    assert cut_units([left], max_rows, actors, rows) == units[done:]


@pytest.mark.parametrize(
    ("settings", "images", "local"),
    [
        ({}, 10**6, True), ({"engine.address": "auto"}, 1, False), ({"engine.kind": "local"}, 10**6, True),
        ({"engine.kind": "ray"}, 1, False), ({"tag.resources.gpus": 1}, 100, True),
        ({"tag.resources.gpus": 1}, 10**6, False), ({"tag.resources.cpus": 2}, 10**6, False),
    ],
)  # fmt: skip
def test_where_a_run_is_done(settings: dict[str, object], images: int, local: bool) -> None:
    recipe = load_recipe("coco", settings)
    assert runs_locally(recipe.engine, StagePlan.of_recipe(recipe), images) == local
