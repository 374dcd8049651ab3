"""Whatever happens to a run in whatever order, the same command completes it with the rows of an undisturbed one."""

from __future__ import annotations

import atexit
import errno
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rich.console import Console

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.shards import iter_records
from sgpipe.storage.verify import verify
from sgpipe.utils import atomic
from sgpipe.utils.console import Progress
from tests.detections import make_coco
from tests.sgpipe.generation.in_process import without_ray

IMAGES, MISSING = 12, 4
POINTS = (
    *("before write", "mid write", "after write", "before rename", "after rename"),
    *("before manifest entry", "after manifest entry"),
)
points, moments, unit_sizes = st.sampled_from(POINTS), st.integers(1, 5), st.sampled_from((1, 3, 5))


class Killed(BaseException):
    """The process was killed: nothing that happens while this is raised is kept."""


@cache
def dataset() -> Path:
    """Annotated and captioned images, one of which is missing; labelled without any model."""
    folder = Path(tempfile.mkdtemp(prefix="sgpipe-machine-"))
    atexit.register(shutil.rmtree, folder)
    make_coco(folder / "coco", IMAGES, missing=(MISSING,))
    return folder


def label(out: Path, unit_size: int = 4, **more: object) -> None:
    files = {"images": "images", "annotations": "instances_val.json", "captions": "captions_val.json"}
    values = {"source.root": str(dataset() / "coco"), "source.splits": {"val": files}}
    values |= {"caption.captioner": None, "tag.method": "overlap", "engine.unit_size": unit_size}
    generate(load_recipe("coco", values | more), out, Progress(Console(quiet=True)))


@cache
def expected() -> list[Record]:
    label(dataset() / "whole")
    return list(iter_records(dataset() / "whole"))


@contextmanager
def at_point(name: str, moment: int, action: Callable[[], None]) -> Iterator[None]:
    """Do something when a run comes to a step of a commit for the nth time."""
    times = iter(range(1, 10_000))
    original = atomic.fault_point

    def reached(point: str) -> None:
        if point == name and next(times) == moment:
            action()

    with pytest.MonkeyPatch.context() as patch:
        for module in list(sys.modules.values()):
            if getattr(module, "fault_point", None) is original:
                patch.setattr(module, "fault_point", reached)
        yield


class Runs(RuleBasedStateMachine):
    """A run and everything that may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sgpipe-machine-"))
        self.out = self.folder / "out"
        self.lost = False  # of a committed shard, since the last run

    def shards(self) -> list[Path]:
        return [self.out / shard.file for shard in Manifest.load(self.out).shards]

    def has_shards(self) -> bool:
        return (self.out / MANIFEST).exists() and bool(self.shards())

    @rule(unit_size=unit_sizes)
    def finish(self, unit_size: int) -> None:
        label(self.out, unit_size)
        self.lost = False
        assert list(iter_records(self.out)) == expected()
        found = verify(self.out)
        assert found.ok, found.problems
        assert {path.name for path in (self.out / "data").iterdir()} == {path.name for path in self.shards()}

    @rule(point=points, moment=moments, unit_size=unit_sizes)
    def kill(self, point: str, moment: int, unit_size: int) -> None:
        """As a power cut: what is on the disk at this moment is all that is left."""
        left = self.folder / "left"

        def die() -> None:
            shutil.copytree(self.out, left)
            raise Killed

        with at_point(point, moment, die), suppress(Killed):
            label(self.out, unit_size)
            self.lost = False
        if left.exists():
            shutil.rmtree(self.out, ignore_errors=True)  # a run that fails before its first shard has left none
            left.rename(self.out)
            self.lost = self.lost and self.is_lost()

    def is_lost(self) -> bool:
        return any(not path.exists() or path.stat().st_size != size for path, size in self.sizes())

    def sizes(self) -> list[tuple[Path, int]]:
        return [(self.out / shard.file, shard.bytes) for shard in Manifest.load(self.out).shards]

    @rule(point=points, moment=moments)
    def fill_the_disk(self, point: str, moment: int) -> None:
        def fail() -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.out))

        with at_point(point, moment, fail), suppress(OSError, EngineError):
            label(self.out, 1)
        self.lost = self.lost and self.has_shards() and self.is_lost()

    @rule(point=points, moment=moments)
    def start_a_second_writer(self, point: str, moment: int) -> None:
        def write() -> None:
            with pytest.raises(UserError):
                label(self.out)

        with at_point(point, moment, write):
            label(self.out, 1)
        self.lost = False

    @precondition(has_shards)
    @rule(data=st.data(), cut=st.booleans())
    def lose_a_shard(self, data: st.DataObject, cut: bool) -> None:
        shard = data.draw(st.sampled_from(self.shards()))
        if cut and shard.exists():
            shard.write_bytes(shard.read_bytes()[:100])
        else:
            shard.unlink(missing_ok=True)
        self.lost = True

    @precondition(has_shards)
    @rule(data=st.data())
    def flip_a_bit_and_repair(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(self.shards()))
        if shard.exists():
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        assert not verify(self.out).ok
        verify(self.out, repair=True)
        assert verify(self.out).ok
        self.lost = False

    @precondition(has_shards)
    @rule(cut=st.integers(1, 60))
    def tear_the_manifest(self, cut: int) -> None:
        """Its last line is half written."""
        file = self.out / MANIFEST
        content = file.read_bytes()
        last = content.rstrip(b"\n").rpartition(b"\n")[2]
        file.write_bytes(content[: -min(cut, len(last))])

    @precondition(lambda self: (self.out / MANIFEST).exists())
    @rule()
    def leave_files_behind(self) -> None:
        (self.out / "data" / "val-000000900-000000902.parquet").write_bytes(b"of a killed run")
        (self.out / "data" / ".val.0123.tmp").write_bytes(b"half a shard")

    @precondition(has_shards)
    @rule()
    def ask_for_other_labels(self) -> None:
        before = (self.out / MANIFEST).read_bytes()
        with pytest.raises(UserError):
            label(self.out, **{"pair.max_pairs": 7})
        assert (self.out / MANIFEST).read_bytes() == before

    @invariant()
    def committed_rows_are_right(self) -> None:
        if not self.lost and self.has_shards():
            rows = list(iter_records(self.out))
            assert [row for row in expected() if row.image_id in {row.image_id for row in rows}] == rows

    def teardown(self) -> None:
        self.finish(4)
        shutil.rmtree(self.folder)


@pytest.mark.parametrize("examples", [12, pytest.param(500, marks=pytest.mark.soak)])
def test_any_sequence_of_faults_leads_to_the_same_rows(examples: int) -> None:
    with without_ray():
        expected()
        Runs.TestCase.settings = settings(
            max_examples=examples,
            stateful_step_count=8,
            derandomize=examples < 100,
            suppress_health_check=list(HealthCheck),
        )
        Runs.TestCase().runTest()
