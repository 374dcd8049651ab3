"""The local engine with a made-up stage: rows, crashes, errors, and kills."""

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.generation import local_engine
from sgpipe.generation.engine import StageBuilder, UnitReader, UnitWriter, WorkUnit, runs_locally
from sgpipe.generation.local_engine import LocalEngine
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.records import Record
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.storage.shards import read_file
from sgpipe.utils.console import Progress
from tests.integration.faults.runs import Run, assert_whole, descendants, finished, make_dataset, rows, title_of
from tests.integration.faults.stage import SECONDS, Stub

IMAGES = 8


@dataclass(frozen=True)
class MadeUpRecords(UnitReader):
    names: tuple[str, ...]

    def read(self, unit: WorkUnit) -> list[Record]:
        return [Record(str(n), "coco", "val", self.names[n], 8, 8) for n in range(unit.start, unit.stop)]


def stub(recipe: Recipe, roots: Mapping[str, object], classes: Sequence[str]) -> list[Stub]:
    return [Stub()]


@dataclass
class Raising(Stub):
    def __call__(self, records: list[Record]) -> list[Record]:
        raise UserError("a refusal") if os.environ.get("REFUSE") else ValueError("a bug\nin detail")


def raising(recipe: Recipe, roots: Mapping[str, object], classes: Sequence[str]) -> list[Stub]:
    return [Raising()]


def label(folder: Path, names: Sequence[str], build=stub, **settings: object) -> dict[str, str | None]:
    """The error of each image."""
    (folder / "data").mkdir()
    recipe = load_recipe("coco", {"engine.cpus": 2, **settings})
    stages = StageBuilder(build, recipe, {}, (), ("caption", "parse", "pair", "tag"), (), CacheFolder(folder))
    engine = LocalEngine(stages)
    try:
        units = engine.start(stages, [WorkUnit("val", 0, len(names))], Progress())
        shards = list(engine.run(units, MadeUpRecords(folder, {}, tuple(names)), UnitWriter(folder)))
    finally:
        engine.close()
    tables = [read_file(folder / shard.file) for shard in shards]
    assert sum(map(len, tables)) == len(names)
    return {row["file_name"]: row["error"] for table in tables for row in table.to_pylist()}


def test_an_image_that_crashes_its_worker_is_an_error_row(tmp_path: Path) -> None:
    names = [f"{'fatal-' * (number == 5)}{number}.png" for number in range(IMAGES)]
    errors = label(tmp_path, names)
    assert errors.pop("fatal-5.png") == "worker: the worker crashed twice on this image"
    assert set(errors.values()) == {None}
    assert not [pid for pid in descendants(os.getpid()) if "local_engine" in title_of(pid)]


@dataclass
class Counting(Stub):
    """Notes in which processes the models are while an image is labelled."""

    def setup(self) -> None:
        (Path(os.environ["LOADED"]) / str(os.getpid())).touch()

    def __call__(self, records: list[Record]) -> list[Record]:
        time.sleep(0.2)
        loaded = Path(os.environ["LOADED"])
        alive = sum(title_of(int(each.name)) != "" for each in loaded.glob("[0-9]*"))
        (loaded / f"copies-{alive}").touch()
        return super().__call__(records)


def counting(recipe: Recipe, roots: Mapping[str, object], classes: Sequence[str]) -> list[Stub]:
    return [Counting()]


def test_after_a_crash_the_models_are_loaded_once_for_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_engine, "_IMAGES_PER_WORKER", 1)
    monkeypatch.setenv("LOADED", str(tmp_path))
    errors = label(tmp_path, [f"{'fatal-' * (number == 3)}{number}.png" for number in range(3 * IMAGES)], counting)
    assert sum(error is not None for error in errors.values()) == 1
    assert {each.name for each in tmp_path.glob("copies-*")} <= {"copies-1", "copies-2"}


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [("1", UserError, "a refusal"), ("", EngineError, "a worker failed: ValueError: a bug")],
)
def test_what_a_stage_raises_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("REFUSE", refuse)
    with pytest.raises(error) as caught:
        label(tmp_path, ["0.png"], raising)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "images", "local"),
    [
        ({}, 10**6, True),
        ({"engine.address": "auto"}, 1, False),
        ({"engine.kind": "local"}, 10**6, True),
        ({"engine.kind": "ray"}, 1, False),
        ({"tag.resources.gpus": 1}, 100, True),
        ({"tag.resources.gpus": 1}, 10**6, False),
        ({"tag.resources.cpus": 2}, 10**6, False),
    ],
)
def test_where_a_run_is_done(tmp_path: Path, settings: dict[str, object], images: int, local: bool) -> None:
    recipe = load_recipe("coco", settings)
    stages = StageBuilder(stub, recipe, {}, (), ("caption", "parse", "pair", "tag"), (), CacheFolder(tmp_path))
    assert runs_locally(recipe, stages, images) == local


@pytest.mark.slow
def test_a_run_killed_at_random_moments_gives_the_same_rows(tmp_path: Path) -> None:
    """The driver or a worker; workers end with their driver."""
    dataset, rng = make_dataset(tmp_path / "data", 40, fatal=(17,)), random.Random(0)
    expected = rows(finished(Run(dataset, tmp_path / "whole")).out)
    assert [record.image_id for record in expected if not record.ok] == ["17"]
    run, ended = Run(dataset, tmp_path / "killed", environment={SECONDS: "0.1"}), []
    for kill in range(3):
        run.start()
        run.wait_for(lambda: kill == 0 and run.committed > 2, rng.uniform(0, 10) if kill else 300)  # noqa: B023
        workers = run.processes("local_engine")
        if kill and workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            time.sleep(rng.uniform(0, 1))
        run.process.kill()
        ended.append(run.wait())
        end = time.monotonic() + 30
        while any("local_engine" in title_of(pid) for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert ended[0] == -signal.SIGKILL
    assert_whole(finished(run).out, expected)
