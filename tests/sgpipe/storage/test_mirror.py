"""The manifest of a run in a store: what is read of it whenever its writer is killed, or whoever else writes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import MemoryStore

from sgpipe.errors import StoreError, UserError
from sgpipe.storage.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    WriterClaim,
    put_manifest,
    read_manifest,
    whole_lines,
)

LINES = 6


class KilledError(Exception):
    """The process is gone."""


class Memory:
    """A store in memory. `left`: operations that change it until its process is killed."""

    location = "s3://bucket/run"

    def __init__(self) -> None:
        self._store = MemoryStore()
        self.left: int | None = None

    def put(self, name: str, data: bytes) -> None:
        self._step()
        self._store.put(name, data)

    def put_if(self, name: str, data: bytes, version: Any) -> bool:
        self._step()
        try:
            self._store.put(name, data, mode=version or "create")
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def version(self, name: str) -> Any:
        with suppress(FileNotFoundError):
            return {"e_tag": self._store.head(name)["e_tag"]}
        return None

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(self._store.get(name).bytes())
        return None

    def _step(self) -> None:
        if self.left is not None:
            if not self.left:
                raise KilledError
            self.left -= 1


def shards(store: Memory) -> list[ShardEntry]:
    manifest, bad = Manifest.parse(read_manifest(store) or b"", Path("unused"), "it")
    assert not bad
    return manifest.shards


class Driver:
    """Commits shards and copies each to a store."""

    def __init__(self, folder: Path, store: Memory) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / MANIFEST
        self.store, self.claim = store, WriterClaim(store)
        self.claim.make()
        known = read_manifest(store)
        if known is None:
            self.manifest = Manifest.create(folder, {"name": "x"})
        else:
            self.path.write_bytes(known)
            self.manifest = Manifest.load(folder)
        self.copy()

    def copy(self) -> None:
        put_manifest(self.store, whole_lines(self.content), self.claim.check)

    def commit(self, number: int) -> None:
        name = f"data/val-{number}.parquet"
        self.manifest.commit(ShardEntry("val", number, number + 1, name, "0" * 64, 10, {"images": 1}))
        self.copy()

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()


def test_a_writer_may_die_before_every_step(tmp_path: Path) -> None:
    """What is read afterwards is all that it had copied, or that and the line on its way; others go on from there."""
    steps = 0
    while True:
        folder, store = tmp_path / str(steps), Memory()
        store.left = steps
        copied = driver = None
        try:
            driver = Driver(folder, store)
            for number in range(LINES):
                copied = driver.content
                driver.commit(number)
        except KilledError:
            store.left = None
            read = read_manifest(store)
            assert driver is None or read in (copied, driver.content)
            heir = Driver(tmp_path / f"{steps} heir", store)
            for number in range(len(heir.manifest.shards), LINES):
                heir.commit(number)
            assert [shard.start for shard in shards(store)] == list(range(LINES))
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
    assert [shard.start for shard in shards(store)] == [0, 1]


def test_a_copy_that_is_on_its_way_at_the_takeover_does_not_count(tmp_path: Path) -> None:
    """The first run checks its claim just before the second one claims the store."""
    store = Memory()
    first = Driver(tmp_path / "first", store)
    check, others = first.claim.check, iter([lambda: Driver(tmp_path / "second", store).commit(1), lambda: None])

    def checked() -> None:
        check()
        next(others)()

    first.claim.check = checked  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="another run took over"):
        first.commit(7)
    assert [shard.start for shard in shards(store)] == [1]


def test_a_copy_whose_answer_was_lost_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    driver = Driver(tmp_path, store)
    put_if = store.put_if
    monkeypatch.setattr(store, "put_if", lambda *given: put_if(*given) and None)
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
            store, runs = Memory(), 2 + number % 3
            folders, start = [tmp_path / f"{number}-{each}" for each in range(runs)], threading.Barrier(runs)
            ended = list(threads.map(run, folders, [store] * runs, [start] * runs))
            assert "" in ended  # more than once where one had finished before the next began
            assert all("another run" in line and "\n" not in line for line in ended if line)
            assert [shard.start for shard in shards(store)] == [0, 1]
