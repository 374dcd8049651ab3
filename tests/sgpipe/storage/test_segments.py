"""The manifest of a run in a store: what is read of it whenever its writer is killed, or whoever else writes."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import MemoryStore

from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import ConditionsError
from sgpipe.storage import manifest as segments
from sgpipe.storage.manifest import MANIFEST, WRITER, Manifest, ShardEntry, StoredManifest, WriterClaim, read_manifest

LINES = 6


class KilledError(Exception):
    """The process is gone."""


class Memory:
    """A store in memory. `left`: operations that change it until its process is killed."""

    location = "s3://bucket/run"

    def __init__(self, has_conditions: bool = True) -> None:
        self._store = MemoryStore()
        self.written: list[tuple[str, int]] = []
        self.has_conditions = has_conditions
        self.left: int | None = None
        self.before_reading: Callable[[str], None] = lambda name: None

    @property
    def objects(self) -> dict[str, bytes]:
        found = {each["path"]: self._content(each["path"]) for page in self._store.list() for each in page}
        return {name: content for name, content in found.items() if content and name != WRITER}

    def put(self, name: str, data: bytes) -> None:
        self._step()
        self._store.put(name, data)
        if name != WRITER:
            self.written.append((name, len(data)))

    def put_if(self, name: str, data: bytes, version: Any) -> Any:
        if not self.has_conditions:
            raise ConditionsError
        self._step()
        try:
            written = self._store.put(name, data, mode=version or "create")
        except (AlreadyExistsError, PreconditionError):
            return None
        if name != WRITER:
            self.written.append((name, len(data)))
        return {"e_tag": written["e_tag"]}

    def version(self, name: str) -> Any:
        with suppress(FileNotFoundError):
            return {"e_tag": self._store.head(name)["e_tag"]}
        return None

    def delete(self, name: str) -> None:
        self._step()
        with suppress(FileNotFoundError):
            self._store.delete(name)

    def read(self, name: str) -> bytes | None:
        if name != WRITER:
            self.before_reading(name)
        return self._content(name)

    def _content(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(self._store.get(name).bytes())
        return None

    def sizes(self, folder: str) -> dict[str, int]:
        parts = ((name.rpartition("/"), len(data)) for name, data in self.objects.items())
        return {last: size for (first, _, last), size in parts if first == folder}

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
        claim = WriterClaim(store)
        claim.make()
        self.stored = StoredManifest(store, claim.check)
        known = read_manifest(store)
        if known is None:
            self.manifest = Manifest.create(folder, {"name": "x"})
        else:
            self.path.write_bytes(known)
            self.manifest = Manifest.load(folder)
        self.stored.write(self.path)

    def commit(self, number: int) -> None:
        name = f"data/val-{number}.parquet"
        self.manifest.commit(ShardEntry("val", number, number + 1, name, "0" * 64, 10, {"images": 1}))
        self.stored.append(self.path)

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    store = Memory()
    driver = Driver(tmp_path, store)
    for number in range(LINES):
        driver.commit(number)
        driver.stored.append(driver.path)  # nothing new
    assert read_manifest(store) == driver.content
    assert len(store.written) == 1 + LINES
    assert sum(size for _, size in store.written) < len(driver.content) + LINES * 100
    driver.stored.write(driver.path)
    assert store.objects == {MANIFEST: driver.content}
    assert len(shards(store)) == LINES


def test_many_segments_become_one_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MOST_SEGMENTS", 2)
    store = Memory()
    driver = Driver(tmp_path, store)
    for number in range(LINES):
        driver.commit(number)
        assert read_manifest(store) == driver.content
        assert len(store.objects) <= 3


@pytest.mark.parametrize("most", [2, 100])
def test_a_writer_may_die_before_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What is read afterwards is all that it had copied, or that and the line on its way; others go on from there."""
    monkeypatch.setattr(segments, "_MOST_SEGMENTS", most)
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
            driver.stored.write(driver.path)
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


@pytest.mark.parametrize("has_conditions", [True, False])
def test_a_run_that_is_taken_over_ends_and_loses_nothing_that_it_committed(
    tmp_path: Path, has_conditions: bool
) -> None:
    store = Memory(has_conditions)
    first = Driver(tmp_path / "first", store)
    first.commit(0)
    second = Driver(tmp_path / "second", store)
    for late in (lambda: first.commit(1), lambda: first.stored.write(first.path)):
        with pytest.raises(StoreError, match="another run took over"):
            late()
    second.commit(1)
    assert read_manifest(store) == second.content
    assert [shard.start for shard in shards(store)] == [0, 1]


def test_a_line_that_arrives_after_the_takeover_does_not_count(tmp_path: Path) -> None:
    """The first run checked its claim just before the second one claimed the store."""
    store = Memory()
    first = Driver(tmp_path / "first", store)
    second = Driver(tmp_path / "second", store)
    first.stored._check_claim = lambda: None
    first.commit(7)
    second.commit(1)
    assert read_manifest(store) == second.content
    second.commit(2)
    assert read_manifest(store) == second.content


def test_of_runs_that_start_at_once_one_wins_and_nothing_is_lost(tmp_path: Path) -> None:
    """Each of the others ends in one line, at its start or when it next writes."""
    for number in range(100):
        store, runs, ended = Memory(), 2 + number % 3, list[str]()
        start = threading.Barrier(runs)

        def run(
            folder: Path, store: Memory = store, start: threading.Barrier = start, ended: list[str] = ended
        ) -> None:
            start.wait()
            try:
                driver = Driver(folder, store)
                for unit in range(2):
                    driver.commit(unit)
                driver.stored.write(driver.path)
                ended.append("")
            except (UserError, StoreError) as error:
                ended.append(str(error))

        threads = [threading.Thread(target=run, args=(tmp_path / f"{number}-{each}",)) for each in range(runs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ended) == runs
        assert "" in ended  # more than once where one had finished before the next began
        assert all("another run" in line and "\n" not in line for line in ended if line)
        assert [shard.start for shard in shards(store)] == [0, 1]


def test_a_segment_whose_answer_was_lost_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    driver = Driver(tmp_path, store)
    put_if = store.put_if
    monkeypatch.setattr(store, "put_if", lambda *given: put_if(*given) and None)
    driver.commit(0)
    driver.commit(1)
    assert read_manifest(store) == driver.content


def test_a_reader_never_misses_what_is_merged_meanwhile(tmp_path: Path) -> None:
    store = Memory()
    driver = Driver(tmp_path, store)
    for number in range(LINES):
        driver.commit(number)
    whole = driver.content

    def merge(name: str) -> None:
        store.before_reading = lambda name: None
        driver.stored.write(driver.path)

    for at in range(LINES + 1):
        reads = iter([*[lambda name: None] * at, merge])
        store.before_reading = lambda name, reads=reads: next(reads, lambda name: None)(name)  # type: ignore[misc]
        assert read_manifest(store) == whole
        driver.commit(LINES + at)
        whole = driver.content


def test_what_is_cut_or_missing(tmp_path: Path) -> None:
    store = Memory()
    assert read_manifest(store) is None
    driver = Driver(tmp_path, store)
    driver.commit(0)
    with driver.path.open("ab") as file:
        file.write(b'{"crc32": "torn')
    driver.stored.append(driver.path)
    driver.stored.write(driver.path)
    assert read_manifest(store) == driver.content.rpartition(b"\n")[0] + b"\n"
