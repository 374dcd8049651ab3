"""Compacted runs have the same rows, whatever kills the compaction."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import MemoryStore

from sgpipe.errors import TakenOverError, UserError
from sgpipe.files.locations import Location
from sgpipe.generation import compacting
from sgpipe.generation.compacting import compact_run
from sgpipe.generation.merging import merge_runs
from sgpipe.storage import manifest as manifests
from sgpipe.storage.manifest import MANIFEST, Manifest, WriterClaim, read_manifest
from sgpipe.storage.mirror import fetch
from sgpipe.storage.run_folder import RECIPE, RunFolder, copy_run
from sgpipe.storage.run_records import iter_records, iter_tables
from sgpipe.storage.shards import read_checked
from sgpipe.storage.verify import verify
from sgpipe.training.data.order import Epoch, iter_epoch
from sgpipe.training.data.scan import scan
from sgpipe.training.recipe import ShardsConfig
from tests.integration.faults.test_run_machine import POINTS, at_point
from tests.memory_store import KilledError, Memory
from tests.sgpipe.generation.test_merging import make_run
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.training.data.runs import make_records

STEPS = (*POINTS, "between deletions")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large shards are of 12 rows."""
    monkeypatch.setattr(compacting, "_MOST_ROWS", 12)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two splits in shards of three rows; the last one of each has fewer."""
    records = [*make_records(31), *make_records(7, seed=1, split="val")]
    return make_run(tmp_path / "run", records, images=tmp_path, identity={"drawn": 1})


def rows_of(root: Location) -> pa.Table:
    return pa.concat_tables(iter_tables(root)).combine_chunks()


def files_of(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "data").iterdir())}


class MortalMemory(Memory):
    """A store whose process may be killed at reads and deletions, too."""

    @property
    def _reads(self) -> MemoryStore:
        return self._writes


def stored(run: Path) -> Memory:
    """Return a store with a copy of the run."""
    store = MortalMemory()
    for file in run.rglob("*"):
        if file.is_file():
            (store / str(file.relative_to(run))).put(file.read_bytes())
    return store


def test_rows_stay_as_they_are_and_the_manifest_tells_where_they_come_from(run: Path) -> None:
    before = Manifest.load(run)
    rows = rows_of(run)
    compaction = compact_run(run, QUIET)
    manifest = Manifest.load(run)
    assert rows_of(run).equals(rows, check_metadata=True)
    assert [(shard.split, shard.start, shard.stop) for shard in manifest.shards] == [
        ("train", 0, 12),
        ("train", 12, 24),
        ("train", 24, 31),
        ("val", 0, 7),
    ]
    lineage: list[tuple[str, str]] = []
    for shard in manifest.shards:
        lineage += [(part.file, part.sha256) for part in shard.compacted]
    assert lineage == [(shard.file, shard.sha256) for shard in before.shards]
    assert compaction.written == compaction.shards_after == 4
    assert compaction.shards_before == len(before.shards)
    assert files_of(run).keys() == {Path(shard.file).name for shard in manifest.shards}
    assert verify(run).problems == []
    assert manifest.run == before.run


def test_large_shards_have_a_page_index_and_statistics(run: Path) -> None:
    compact_run(run, QUIET)
    metadata = pq.read_metadata(run / Manifest.load(run).shards[0].file)
    column = metadata.row_group(0).column(0)
    assert column.has_column_index
    assert column.has_offset_index
    assert column.is_stats_set
    assert column.compression == "ZSTD"


def test_a_compacted_run_is_left_alone(run: Path) -> None:
    compact_run(run, QUIET)
    before = (run / MANIFEST).read_bytes()
    files = files_of(run)
    assert compact_run(run, QUIET).written == 0
    assert (run / MANIFEST).read_bytes() == before
    assert files_of(run) == files


def test_shards_and_row_groups_stay_below_a_size(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = Manifest.load(run).shards
    monkeypatch.setattr(compacting, "_MOST_BYTES", first.bytes + second.bytes)
    monkeypatch.setattr(compacting, "_GROUP_BYTES", first.bytes)
    rows = rows_of(run)
    compact_run(run, QUIET)
    shard = Manifest.load(run).shards[0]
    assert [part.file for part in shard.compacted] == [first.file, second.file]
    assert pq.read_metadata(run / shard.file).num_row_groups == 2
    assert rows_of(run).equals(rows)


def test_training_reads_the_same_rows(run: Path) -> None:
    configs = (ShardsConfig(shards=run),)
    before = scan(configs, threshold=0.2)
    rows = [row.values() for row in iter_epoch(before, Epoch(before.row_groups))]
    compact_run(run, QUIET)
    after = scan(configs, threshold=0.2)
    assert [row.values() for row in iter_epoch(after, Epoch(after.row_groups))] == rows
    assert len(after.row_groups) < len(before.row_groups)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_compaction_is_resumed(run: Path, tmp_path: Path, step: str) -> None:
    rows = rows_of(run)
    whole = make_run(
        tmp_path / "whole", list(iter_records(run)), images=tmp_path, identity={"drawn": 1}
    )
    compact_run(whole, QUIET)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), at_point(step, 2, stop):
        compact_run(run, QUIET)
    assert rows_of(run).equals(rows)
    problems = [problem.problem for problem in verify(run).problems]
    assert [problem for problem in problems if "does not list" not in problem] == []
    compact_run(run, QUIET)
    assert files_of(run) == files_of(whole)
    assert Manifest.load(run).shards == Manifest.load(whole).shards


def test_a_run_in_a_store_is_compacted(run: Path, tmp_path: Path) -> None:
    rows = rows_of(run)
    store = stored(run)
    compact_run(store, QUIET)
    compact_run(run, QUIET)
    names = {info.name for info in (store / "data").list()}
    assert names == files_of(run).keys()
    assert rows_of(store).equals(rows)
    assert verify(store).problems == []
    fetch(store, tmp_path / "copy", lambda *_: None)
    assert files_of(tmp_path / "copy") == files_of(run)


def test_a_compaction_in_a_store_is_killed_at_each_request(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_records(14), identity={"drawn": 1})
    rows = rows_of(run)
    left = 0
    is_done = False
    while not is_done:
        store = stored(run)
        store.left[0] = left
        try:
            compact_run(store, QUIET)
            is_done = True
        except KilledError:
            store.left[0] = None
            assert rows_of(store).equals(rows)
            compact_run(store, QUIET)
        store.left[0] = None
        assert rows_of(store).equals(rows)
        assert len(list((store / "data").list())) == 2
        left += 1
    assert left > 30  # reads, two large shards, the manifest, and deletions of the small ones


def test_the_manifest_continues_that_of_a_folder_with_the_same_run(run: Path) -> None:
    store = stored(run)
    local = read_manifest(run)
    compact_run(store, QUIET)
    compacted = read_manifest(store)
    assert local is not None
    assert compacted is not None
    assert compacted.startswith(local)


def test_a_later_writer_of_the_store_ends_a_compaction(run: Path) -> None:
    store = stored(run)
    rows = rows_of(run)

    def take_over() -> None:
        WriterClaim(store).make()

    with pytest.raises(TakenOverError), at_point("before put", 2, take_over):
        compact_run(store, QUIET)
    assert rows_of(store).equals(rows)


@pytest.mark.parametrize(
    ("header", "reason"),
    [({"finished": False}, "is not complete"), ({"finished": True}, None)],
)
def test_an_unfinished_import_is_refused(
    tmp_path: Path, header: dict[str, Any], reason: str | None
) -> None:
    run = make_run(tmp_path / "run", make_records(4), **header)
    if reason is None:
        assert compact_run(run, QUIET).written == 1
    else:
        with pytest.raises(UserError, match=reason):
            compact_run(run, QUIET)


@pytest.mark.parametrize(
    ("rows", "limit", "part", "missing"),
    [
        (4, None, None, "2 images"),
        (4, 5, None, "1 image"),
        (4, 4, None, None),
        (2, 4, "1/2", None),
        (3, None, "1/1", "3 images"),
        (6, 4, None, None),
    ],
)
@pytest.mark.parametrize("is_stored", [False, True])
def test_a_run_without_its_last_rows_is_refused(
    tmp_path: Path,
    rows: int,
    limit: int | None,
    part: str | None,
    missing: str | None,
    is_stored: bool,
) -> None:
    header = {"source_splits": {"train": 6}, **({"part": part} if part else {})}
    run = make_run(tmp_path / "run", make_records(rows), **header)
    (run / RECIPE).write_text(f"limit: {limit or 'null'}")
    place = stored(run) if is_stored else run
    if missing is None:
        assert compact_run(place, QUIET).written == 1
        return
    with pytest.raises(UserError) as error:
        compact_run(place, QUIET)
    command = "finish it first with the command that started it"
    assert str(error.value) == f"{place} lacks {missing}: {command}"


def test_a_copy_without_its_last_shards_is_refused(run: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    def copy_rows() -> None:
        copy_run(
            Manifest.load(run),
            copy,
            {"identity": {"scored": 1}},
            lambda shard, _: read_checked(run, shard, (), run),
            "scoring",
            ("copy", "a copy"),
            QUIET,
        )

    copy = tmp_path / "copy"
    with pytest.raises(KeyboardInterrupt), at_point("after manifest entry", 2, stop):
        copy_rows()
    with pytest.raises(UserError, match="is not complete"):
        compact_run(copy, QUIET)
    copy_rows()
    assert compact_run(copy, QUIET).written == 4


@pytest.mark.parametrize("conditional", [True, False])
def test_a_run_in_a_store_that_is_being_written_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, conditional: bool
) -> None:
    store = stored(run)
    files = {info.name for info in store.list()}
    writer = WriterClaim(store)
    writer.make()
    writer.is_conditional = conditional
    with pytest.raises(UserError, match=r"^another run is writing into s3://bucket/run \(since"):
        compact_run(store, QUIET)
    writer.check()
    assert {info.name for info in store.list()} == {*files, manifests.WRITER}
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "_SILENCE", timedelta(0))  # it was killed
        WriterClaim(store, compacts=True).refuse_live_writer()
    writer.release()
    assert compact_run(store, QUIET).written == 4


def test_a_released_claim_is_not_that_of_a_later_run() -> None:
    store = Memory()
    earlier = WriterClaim(store)
    earlier.make()
    later = WriterClaim(store)
    later.make()
    earlier.release()
    later.check()
    later.release()
    with pytest.raises(TakenOverError):
        later.check()


def test_a_run_that_is_being_written_is_refused(run: Path) -> None:
    with RunFolder(run).lock(), pytest.raises(UserError, match="another process is writing"):
        compact_run(run, QUIET)


def test_a_damaged_shard_is_not_compacted(run: Path) -> None:
    shard = Manifest.load(run).shards[1]
    content = bytearray((run / shard.file).read_bytes())
    content[len(content) // 2] ^= 1
    (run / shard.file).write_bytes(content)
    with pytest.raises(UserError, match=f"{shard.file} of .* is missing or damaged"):
        compact_run(run, QUIET)
    assert Manifest.load(run).shards[1] == shard


def test_a_merged_run_that_lost_a_large_shard_is_merged_anew(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", make_records(9, seed=2), identity={"drawn": 2})
    out = tmp_path / "merged"
    merge_runs([run, other], out, QUIET)
    rows = rows_of(out)
    compact_run(out, QUIET)
    assert rows_of(out).equals(rows)
    (out / Manifest.load(out).shards[0].file).unlink()
    merge_runs([run, other], out, QUIET)
    assert rows_of(out).equals(rows)
    assert verify(out).problems == []
