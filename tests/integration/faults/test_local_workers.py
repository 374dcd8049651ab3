"""The local engine's worker processes: rows, crashes and errors; kills: test_kills.py."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import EngineError, UserError
from sgpipe.generation.engine import (
    StageBuilder,
    UnitReader,
    UnitWriter,
    WorkUnit,
)
from sgpipe.generation.local_engine import LocalEngine
from sgpipe.recipe import EngineConfig, StagePlan, load_recipe
from sgpipe.records import Record
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.storage.shards import read_file
from sgpipe.utils.console import Progress
from tests.integration.faults.runs import descendants, title_of
from tests.integration.faults.stage import Stub
from tests.values import values_of

IMAGES = 8
CAPTIONER = """
import sgpipe
class Own(sgpipe.Captioner):
    def setup(self):
        self.nowhere
"""


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
        reader = MadeUpRecords(folder, {}, {}, tuple(names))
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
    assert not [
        pid for pid in descendants(os.getpid()) if "generation.local_engine" in title_of(pid)
    ]


@dataclass
class Leaving(Stub):
    """Leaves its thread by an exception that is not an `Exception`."""

    streams = True

    def __call__(self, records: list[Record]) -> list[Record]:
        if any("fatal" in record.file_name for record in records):
            raise SystemExit
        return super().__call__(records)


def test_a_thread_of_a_worker_that_ends_in_silence_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StagePlan, "streamed_requests", 4)
    names = [f"{'fatal-' * (number == 5)}{number}.png" for number in range(IMAGES)]
    errors = label(tmp_path, names, Leaving())
    assert errors.pop("fatal-5.png") == "worker: the worker crashed twice on this image"
    assert set(errors.values()) == {None}


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


def test_after_a_crash_the_models_are_loaded_once_for_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgpipe.generation.local_engine._IMAGES_PER_WORKER", 1)
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


def test_verbose_shows_the_traceback_of_code_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_code.py").write_text(CAPTIONER)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["--verbose", "generate", "--captioner", "own_code:Own"]
    command += ["--set", "source.miniworld.images=2"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert 'own_code.py", line 5, in setup' in done.stderr
    error = "error: captioner own_code:Own failed: AttributeError: 'Own' object has no attribute"
    assert done.stderr.splitlines()[-1] == f"{error} 'nowhere' (own_code.py:5)"
