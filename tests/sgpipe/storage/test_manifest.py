"""The manifest: in a folder; and in a store, whenever its writer is killed, or whoever else
writes.
"""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import StoreError, UserError
from sgpipe.storage.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    WriterClaim,
    read_manifest,
    whole_lines,
)
from sgpipe.storage.mirror import ManifestMirror
from sgpipe.storage.run_folder import RunFolder
from tests.memory_store import KilledError, Memory
from tests.values import values_of

LINES = 6


def entry(start: int, stop: int, split: str = "val", file: str | None = None) -> ShardEntry:
    return ShardEntry(
        split, start, stop, file or f"data/{split}-{start}-{stop}.parquet", "0" * 64, 10
    )


def test_what_is_committed_is_read_back_and_superseded_by_a_shard_done_again(tmp_path):
    manifest = Manifest.create(tmp_path, {"name": "x"})
    manifest.commit(entry(8, 16))
    manifest.commit(entry(0, 8))
    reloaded = Manifest.load(tmp_path)
    assert reloaded.shards == manifest.shards == [entry(0, 8), entry(8, 16)]
    assert reloaded.run["name"] == "x"
    manifest.commit(entry(0, 8, file="data/again.parquet"))
    assert values_of(Manifest.load(tmp_path).shards, "file") == [
        "data/again.parquet",
        entry(8, 16).file,
    ]


@pytest.mark.parametrize("torn", [b"{", b'{"crc32": "00000000", "shard": {}}', b'{"crc32'])
def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path, torn):
    Manifest.create(tmp_path, {}).commit(entry(0, 8))
    with (tmp_path / MANIFEST).open("ab") as file:
        file.write(torn)
    manifest = Manifest.load(tmp_path)
    assert manifest.shards == [entry(0, 8)]
    manifest.commit(entry(8, 16))
    assert Manifest.load(tmp_path).shards == [entry(0, 8), entry(8, 16)]


def test_every_flipped_byte_is_found(tmp_path):
    Manifest.create(tmp_path, {"name": "x"}).commit(entry(0, 8))
    path = tmp_path / MANIFEST
    data_bytes = path.read_bytes()
    for at in range(len(data_bytes) - 1):
        path.write_bytes(data_bytes[:at] + bytes([data_bytes[at] ^ 1]) + data_bytes[at + 1 :])
        with pytest.raises(UserError, match="damaged"):
            Manifest.load(tmp_path)


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 39)),
    done=st.data(),
    first=st.integers(0, 30),
    rows=st.integers(0, 60),
)
def test_missing_ranges_and_shards_cover_every_row_once(tmp_path_factory, cuts, done, first, rows):
    ranges = list(itertools.pairwise([0, *sorted(cuts), 40]))
    shards = [entry(start, stop) for start, stop in done.draw(st.sets(st.sampled_from(ranges)))]
    manifest = Manifest(
        tmp_path_factory.getbasetemp(), {}, [*shards, entry(0, 99, split="train")], 0
    )
    gaps = manifest.missing("val", range(first, rows))
    covered = [row for start, stop in gaps for row in range(start, stop)]
    committed = {row for shard in shards for row in range(shard.start, shard.stop)}
    assert covered == [row for row in range(first, rows) if row not in committed]


def test_a_failed_append_leaves_the_manifest_as_it_was(tmp_path, monkeypatch):
    manifest = Manifest.create(tmp_path, {})
    before = (tmp_path / MANIFEST).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        manifest.commit(entry(0, 8))
    monkeypatch.undo()
    assert (tmp_path / MANIFEST).read_bytes() == before
    manifest.commit(entry(0, 8))
    assert Manifest.load(tmp_path).shards == [entry(0, 8)]


def shards(store: Memory) -> list[ShardEntry]:
    manifest = Manifest.parse(read_manifest(store) or b"", Path("unused"), Path("it"))
    return manifest.shards


class Driver:
    """Commits shards and copies each to a store."""

    def __init__(self, folder: Path, store: Memory) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / MANIFEST
        self.store = store
        self.claim = WriterClaim(store)
        self.claim.make()
        known = read_manifest(store)
        if known is None:
            self.manifest = Manifest.create(folder, {"name": "x"})
        else:
            self.path.write_bytes(known)
            self.manifest = Manifest.load(folder)
        self.copy()

    def copy(self) -> None:
        self.claim.write(MANIFEST, whole_lines(self.content))

    def commit(self, number: int) -> None:
        self.manifest.commit(entry(number, number + 1))
        self.copy()

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()


def test_a_writer_may_die_before_every_step(tmp_path: Path) -> None:
    """What is read afterwards is all that it had copied, or that and the line on its way; others go
    on from there.
    """
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        store = Memory()
        store.left[0] = steps
        copied = driver = None
        try:
            driver = Driver(folder, store)
            for number in range(LINES):
                copied = driver.content
                driver.commit(number)
        except KilledError:
            store.left[0] = None
            read = read_manifest(store)
            assert driver is None or read in (copied, driver.content)
            heir = Driver(tmp_path / f"{steps} heir", store)
            for number in range(len(heir.manifest.shards), LINES):
                heir.commit(number)
            assert values_of(shards(store), "start") == list(range(LINES))
            steps += 1
            continue
        break
    assert steps > LINES


def test_a_run_that_is_taken_over_ends_and_loses_nothing_that_it_committed(tmp_path: Path) -> None:
    store = Memory()
    first = Driver(tmp_path / "first", store)
    first.commit(0)
    second = Driver(tmp_path / "second", store)
    for late in (lambda: first.commit(1), first.copy):
        with pytest.raises(StoreError, match="another run took over"):
            late()
    second.commit(1)
    assert read_manifest(store) == second.content
    assert values_of(shards(store), "start") == [0, 1]


def test_a_copy_that_is_on_its_way_at_the_takeover_does_not_count(tmp_path: Path) -> None:
    """The first run checks its claim just before the second one claims the store."""
    store = Memory()
    first = Driver(tmp_path / "first", store)
    check = first.claim.check
    interruptions = iter([lambda: Driver(tmp_path / "second", store).commit(1), lambda: None])

    def checked() -> None:
        check()
        next(interruptions)()

    first.claim.check = checked  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="another run took over"):
        first.commit(7)
    assert values_of(shards(store), "start") == [1]


def test_a_copy_whose_answer_was_lost_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Memory()
    driver = Driver(tmp_path, store)
    put_if = Memory.put_if
    monkeypatch.setattr(Memory, "put_if", lambda *arguments: put_if(*arguments) and None)
    driver.commit(0)
    assert read_manifest(store) == driver.content


def test_of_runs_that_start_at_once_one_wins_and_nothing_is_lost(tmp_path: Path) -> None:
    """Each of the others ends in one line, at its start or when it next writes."""

    def run(folder: Path, store: Memory, start: threading.Barrier) -> str:
        start.wait()
        try:
            driver = Driver(folder, store)
            for unit in range(2):
                driver.commit(unit)
        except (UserError, StoreError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as threads:
        for number in range(100):
            store = Memory()
            runs = 2 + number % 3
            folders = [tmp_path / f"{number}-{number_of_run}" for number_of_run in range(runs)]
            start = threading.Barrier(runs)
            ended = list(threads.map(run, folders, [store] * runs, [start] * runs))
            assert "" in ended  # more than once where one had finished before the next began
            assert all("another run" in line and "\n" not in line for line in ended if line)
            assert values_of(shards(store), "start") == [0, 1]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("s3://other/run", r"are in s3://other/run; resume with --store s3://other/run"),
        (None, "resume with no --store"),
    ],
)
def test_a_folder_that_was_made_with_another_store_is_refused_before_any_work(
    tmp_path, stored, message
):
    Manifest.create(tmp_path, {"store": stored}).commit(entry(0, 1))
    before = (tmp_path / MANIFEST).read_bytes()
    with (
        pytest.raises(UserError, match=message),
        ManifestMirror(RunFolder(tmp_path, Memory())).reconciled(),
    ):
        pytest.fail("work has begun")
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_damaged_manifest_is_named_also_where_there_is_a_store(tmp_path):
    store = Memory()
    Manifest.create(tmp_path, {"store": store.uri}).commit(entry(0, 1))
    content = (tmp_path / MANIFEST).read_bytes()
    (store / MANIFEST).put(content)
    (tmp_path / MANIFEST).write_bytes(content.replace(b"parquet", b"parquEt"))
    with (
        pytest.raises(UserError, match="is damaged"),
        ManifestMirror(RunFolder(tmp_path, store)).reconciled(),
    ):
        pytest.fail("work has begun")


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path / MANIFEST} cannot be read \("):
        Manifest.load(tmp_path)
