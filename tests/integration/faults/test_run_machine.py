"""Whatever happens to a run in whatever order, the same command completes it with the rows of an
undisturbed one.
"""

from __future__ import annotations

import atexit
import errno
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rich.console import Console

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.files.locations import sizes
from sgpipe.files.stores import StorePath, connect
from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.mirror import fetch
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.verify import verify
from sgpipe.utils import atomic
from sgpipe.utils.console import Progress
from tests.detections import make_coco
from tests.integration.faults.conftest import Faults
from tests.sgpipe.generation.in_process import without_ray
from tests.values import values_of

IMAGES = 12
MISSING = 4
POINTS = (
    "before write",
    "mid write",
    "before rename",
    "after rename",
    "before manifest entry",
    "after manifest entry",
)
points = st.sampled_from(POINTS)
points_with_store = st.sampled_from(("before put", "before manifest entry", "after manifest entry"))
moments = st.integers(1, 5)
unit_sizes = st.sampled_from((1, 3, 5))
BUSY = ("503 SlowDown", "500 InternalError", "cut", "400 ExpiredToken")
MANY = pytest.param(500, marks=pytest.mark.soak)


class Killed(BaseException):
    """The process was killed: nothing that happens while this is raised is kept."""


@cache
def dataset() -> Path:
    """Annotated and captioned images, one of which is missing; labelled without any model."""
    folder = Path(tempfile.mkdtemp(prefix="sgpipe-machine-"))
    atexit.register(shutil.rmtree, folder)
    make_coco(folder / "coco", IMAGES, missing=(MISSING,))
    return folder


def label(
    out: Path,
    unit_size: int = 4,
    store: StorePath | None = None,
    console: Console | None = None,
    **more: object,
) -> None:
    files = {
        "images": "images",
        "annotations": "instances_val.json",
        "captions": "captions_val.json",
    }
    values = {"source.root": str(dataset() / "coco"), "source.splits": {"val": files}}
    values |= {"caption.captioner": None, "tag.method": "overlap", "engine.unit_size": unit_size}
    values |= {"engine.store": store and store.uri}
    progress = Progress(console or Console(quiet=True))
    generate(load_recipe("coco", values | more), out, progress)


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

    store: StorePath | None = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sgpipe-machine-"))
        self.out = self.folder / "out"
        self.lost = False  # a committed shard, since the last run

    def label(self, unit_size: int = 4, **more: object) -> None:
        label(self.out, unit_size, self.store, **more)
        self.lost = False

    def freeze(self) -> AbstractContextManager[object]:
        """Nothing is written outside the folder meanwhile."""
        return nullcontext()

    def committed(self) -> list[ShardEntry]:
        return Manifest.load(self.out).shards

    def has_shards(self) -> bool:
        return (self.out / MANIFEST).exists() and bool(self.committed())

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.out / "data").iterdir()}

    def is_lost(self) -> bool:
        sizes = self.sizes()
        return self.has_shards() and any(
            sizes.get(Path(entry.file).name) != entry.bytes for entry in self.committed()
        )

    def write(self, file: str, content: bytes | None) -> None:
        """None: delete it."""
        if content is None:
            (self.out / file).unlink(missing_ok=True)
        else:
            (self.out / file).write_bytes(content)

    def result(self) -> Path:
        """The folder of the finished run, as `fetch` makes it of one in a store."""
        assert self.sizes().keys() == {Path(entry.file).name for entry in self.committed()}
        return self.out

    @rule(unit_size=unit_sizes)
    def finish(self, unit_size: int) -> None:
        self.label(unit_size)
        root = self.result()
        assert list(iter_records(root)) == expected()
        verified = verify(root)
        assert verified.ok, verified.problems

    @rule(point=points, moment=moments, unit_size=unit_sizes)
    def kill(self, point: str, moment: int, unit_size: int) -> None:
        """As a power cut: what is on the disk at this moment is all that is left."""
        left = self.folder / "left"
        frozen = ExitStack()

        def die() -> None:
            shutil.copytree(self.out, left)
            frozen.enter_context(self.freeze())
            raise Killed

        with frozen, at_point(point, moment, die), suppress(Killed):
            self.label(unit_size)
        if left.exists():
            shutil.rmtree(self.out, ignore_errors=True)
            left.rename(self.out)
            self.lost = self.lost and self.is_lost()

    @rule(point=points, moment=moments)
    def fill_the_disk(self, point: str, moment: int) -> None:
        def fail() -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.out))

        with at_point(point, moment, fail), suppress(OSError, EngineError):
            self.label(1)
        self.lost = self.lost and self.is_lost()

    @precondition(lambda self: self.store is None)
    @rule(point=points, moment=moments)
    def start_a_second_writer(self, point: str, moment: int) -> None:
        def write() -> None:
            with pytest.raises(UserError):
                label(self.out)

        with at_point(point, moment, write):
            self.label(1)

    @precondition(has_shards)
    @rule(data=st.data(), cut=st.booleans())
    def lose_a_shard(self, data: st.DataObject, cut: bool) -> None:
        self.write(data.draw(st.sampled_from(self.committed())).file, b"cut" if cut else None)
        self.lost = True

    @precondition(lambda self: self.store is None and self.has_shards())
    @rule(data=st.data())
    def flip_a_bit_and_repair(self, data: st.DataObject) -> None:
        shard = self.out / data.draw(st.sampled_from(self.committed())).file
        if shard.exists():
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        assert not verify(self.out).ok
        verify(self.out, repair=True)
        assert all("does not list" in problem.problem for problem in verify(self.out).problems)
        self.lost = False

    @precondition(has_shards)
    @rule(cut=st.integers(1, 60))
    def tear_the_manifest(self, cut: int) -> None:
        """Its last line is half written; an earlier one may list a shard that was made again under
        another name.
        """
        file = self.out / MANIFEST
        content = file.read_bytes()
        last = content.rstrip(b"\n").rpartition(b"\n")[2]
        file.write_bytes(content[: -min(cut, len(last))])
        self.lost = self.lost or self.is_lost()

    @precondition(lambda self: (self.out / MANIFEST).exists())
    @rule()
    def leave_files_behind(self) -> None:
        self.write("data/val-000000900-000000902.parquet", b"of a killed run")
        (self.out / "data" / ".val.0123.tmp").write_bytes(b"half a shard")

    @precondition(has_shards)
    @rule()
    def ask_for_other_labels(self) -> None:
        before = (self.out / MANIFEST).read_bytes()
        with pytest.raises(UserError):
            self.label(**{"pair.max_pairs": 7})
        assert self.store is not None or (self.out / MANIFEST).read_bytes() == before

    @invariant()
    def committed_rows_are_right(self) -> None:
        if not self.lost and self.has_shards():
            rows = list(iter_records(self.out if self.store is None else self.store.uri))
            assert [
                row for row in expected() if row.image_id in set(values_of(rows, "image_id"))
            ] == rows

    def teardown(self) -> None:
        self.finish(4)
        shutil.rmtree(self.folder)


def explore(machine: type[Runs], examples: int) -> None:
    with without_ray():
        expected()
        machine.TestCase.settings = settings(
            max_examples=examples, stateful_step_count=8, derandomize=examples < 100,
            phases=(Phase.generate,),  # making a failure smaller takes minutes
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        machine.TestCase().runTest()


@pytest.mark.parametrize("examples", [10, MANY])
def test_any_sequence_of_faults_leads_to_the_same_rows(examples: int) -> None:
    explore(Runs, examples)


@pytest.mark.parametrize("examples", [6, MANY])
def test_any_sequence_of_faults_leads_to_the_same_rows_in_a_store(
    store: StorePath, faults: Faults, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has a copy of the manifest after each commit, and is all that another machine sees."""
    monkeypatch.setattr("sgpipe.storage.mirror._SECONDS_BETWEEN_COPIES", 0.0)
    bucket = store.uri

    class StoredRuns(Runs):
        def __init__(self) -> None:
            super().__init__()
            self.store = StorePath(f"{bucket}/{self.folder.name}")

        @contextmanager
        def freeze(self) -> Iterator[None]:
            faults.fault = lambda method, path: "403 AccessDenied"
            yield
            faults.fault = lambda method, path: None

        def sizes(self) -> dict[str, int]:
            return sizes(self.store / "data")

        def write(self, file: str, content: bytes | None) -> None:
            if content is None:
                (self.store / file).unlink()
            else:
                (self.store / file).put(content)

        def result(self) -> Path:
            shutil.rmtree(self.folder / "fetched", ignore_errors=True)
            fetch(self.store, self.folder / "fetched", lambda images, counts: None)
            return self.folder / "fetched"

        @precondition(lambda self: (self.store / MANIFEST).read() is not None)
        @rule()
        def move_to_another_machine(self) -> None:
            shutil.rmtree(self.out, ignore_errors=True)

        @rule(
            chance=st.randoms(use_true_random=False),
            kinds=st.lists(st.sampled_from(BUSY), max_size=6),
        )
        def suffer_bad_requests(self, chance: random.Random, kinds: list[str]) -> None:
            """They are made again; if that is in vain, the run ends and can be resumed."""
            left = list(kinds)

            def fault(method: str, path: str) -> str | None:
                if not left or chance.random() > 0.2 or (left[-1] == "cut" and method != "GET"):
                    return None
                return left.pop()

            faults.fault = fault
            with suppress(OSError, EngineError, UserError):
                self.label(2)
            faults.fault = lambda method, path: None

        @rule(point=points_with_store, moment=moments)
        def lose_the_store_to_another_run(self, point: str, moment: int) -> None:
            """The later run takes over, the earlier one ends."""
            taken: list[Path] = []

            def take_over() -> None:
                taken.append(self.folder / f"out-{len(list(self.folder.iterdir()))}")
                label(taken[0], 2, self.store)

            with at_point(point, moment, take_over), suppress(StoreError):
                self.label(1)
                assert not taken, "it did not notice"
            self.out = taken[0] if taken else self.out
            self.lost = False

    explore(StoredRuns, examples)


def test_a_store_without_conditional_writes_is_told_and_written(
    store: StorePath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")  # of the library that sgpipe asks
    connect.cache_clear()
    console = Console(file=io.StringIO(), width=1000)
    with without_ray():
        label(tmp_path / "out", store=store, console=console)
    assert console.file.getvalue().count("ignores the conditions of writes") == 1
    assert list(iter_records(store)) == expected()
