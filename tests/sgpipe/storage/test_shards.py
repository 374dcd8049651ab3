"""Shards, written and read; and runs that are verified byte for byte and row for row, and
repaired.
"""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UnavailableError, UserError
from sgpipe.records import (
    IMAGE_FIELDS,
    SCHEMA,
    Attribute,
    Box,
    Caption,
    Pair,
    Record,
    Relation,
    Triplet,
    from_table,
    to_table,
)
from sgpipe.storage import shards
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.run_records import Run, iter_records
from sgpipe.storage.shards import (
    ShardLayout,
    open_shard,
    read_file,
    replace_column,
    shard_name,
    write_copy,
    write_shard,
)
from sgpipe.storage.verify import verify
from sgpipe.utils.hashing import file_sha256
from tests.memory_store import Memory
from tests.values import values_of

Harm = Callable[[Path], object]
FIRST = "data/val-000000000-000000003.parquet"
SECOND = "data/val-000000003-000000005.parquet"


def full_record(number: int) -> Record:
    record = Record(str(number), "coco", "val", f"{number}.jpg", 640, 480)
    record.objects = [
        Box("dog", 18, (1.5, 2.25, 3.0, 4.0)),
        Box("person", 1, (0.0, 0.0, 9.0, 9.0), True),
    ]
    record.captions = [Caption("a dog", "pair", [0, 1])]
    record.triplets = [
        Triplet("big dog", "running on", "hill", "dog", "hill", "run on", 0, "dog", None)
    ]
    record.pairs = [Pair(0, 1, ["near", "on"])]
    record.relations = [Relation(0, 1, "near", 0.25), Relation(1, 0, "on")]
    return record


def test_records_survive_the_table_and_the_shard_with_all_that_is_known(tmp_path):
    failed = Record("7", "coco", "val", "7.jpg", 1, 1)
    detected = full_record(2)
    failed.fail("load", "broken")
    red = [Attribute("red", 0), Attribute("old")]
    detected.objects[0] = replace(
        detected.objects[0], origin="grounded", score=0.25, phrase="the red dog", attributes=red
    )
    detected.objects[1] = replace(
        detected.objects[1], origin="detector", score=0.5, segmentation="[[0, 0, 1, 0, 1, 1]]"
    )
    records = [full_record(1), detected, failed, Record("8", "coco", "val", "8.jpg", 1, 1)]
    table = to_table(records)
    assert table.schema.equals(SCHEMA)
    assert from_table(table) == records
    assert (failed.status, failed.error) == ("error", "load: broken")
    run = run_of(tmp_path, records)
    assert list(run) == list(iter_records(tmp_path)) == records
    assert verify(tmp_path).problems == []


def test_a_shard_is_described_as_it_lies_on_disk(tmp_path):
    records = list(map(full_record, range(3)))
    name = shard_name("val", 4, 7)
    entry = write_shard(tmp_path, name, "val", 4, records, {"tag": 1.5})
    path = tmp_path / entry.file
    assert (entry.start, entry.stop, entry.rows) == (4, 7, 3)
    assert (entry.sha256, entry.bytes) == (file_sha256(path), path.stat().st_size)
    assert entry.counts["relations"] == 6
    assert entry.counts["matched_triplets"] == 0
    assert pq.read_schema(path).field("relations").type == SCHEMA.field("relations").type
    # the same bytes
    assert write_shard(tmp_path / "again", name, "val", 4, records, {"tag": 1.5}) == entry


def test_row_groups_are_small_enough_to_stream(tmp_path):
    records = list(map(full_record, range(1100)))
    write_shard(tmp_path, shard_name("val", 0, 1100), "val", 0, records, {})
    file = pq.ParquetFile(tmp_path / shard_name("val", 0, 1100))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        512,
        512,
        76,
    ]


def test_images_lie_beside_their_records(tmp_path):
    records = list(map(full_record, range(2)))
    name = shard_name("val", 0, 2)
    entry = write_shard(tmp_path, name, "val", 0, records, {}, [b"image", None])
    assert read_file(tmp_path / name)["image"].to_pylist() == [
        {"bytes": b"image", "path": "0.jpg"},
        None,
    ]
    Manifest.create(tmp_path, {}).commit(entry)
    assert list(iter_records(tmp_path)) == records
    with pytest.raises(ValueError, match="zip"):
        write_shard(tmp_path, name, "val", 0, records, {}, [b"image"])


def run_of(root: Path, *shards: list[Record]) -> Run:
    root.mkdir(exist_ok=True)
    manifest = Manifest.create(root, {})
    start = 0
    for records in shards:
        name = shard_name("val", start, start + len(records))
        manifest.commit(write_shard(root, name, "val", start, records, {}))
        start += len(records)
    return Run(root)


def test_relations_of_a_run_are_rows_of_pandas(tmp_path: Path) -> None:
    failed = full_record(2)
    failed.objects = []
    failed.relations = []
    failed.fail("tag", "too dark")
    bare = full_record(3)
    bare.relations = []
    run = run_of(tmp_path, [full_record(1), failed, bare, full_record(4)], [bare], [full_record(6)])
    frame = run.to_pandas()
    assert values_of(run, "image_id") == ["1", "2", "3", "4", "3", "6"]
    assert list(zip(frame["image_id"], frame["subject"], frame["object"], strict=True)) == [
        (image, *ends) for image in ("1", "4", "6") for ends in ((0, 1), (1, 0))
    ]
    assert frame.iloc[2].to_dict() == {
        "image_id": "4",
        "split": "val",
        "file_name": "4.jpg",
        "subject": 0,
        "subject_category": "dog",
        "subject_x1": 1.5,
        "subject_y1": 2.25,
        "subject_x2": 4.5,
        "subject_y2": 6.25,
        "object": 1,
        "object_category": "person",
        "object_x1": 0,
        "object_y1": 0,
        "object_x2": 9,
        "object_y2": 9,
        "predicate": "near",
        "confidence": 0.25,
    }
    assert frame["confidence"].isna().tolist() == [False, True] * 3
    assert run.to_pandas(threshold=0.3)["predicate"].tolist() == ["on"] * 3
    assert values_of(run.relation_tables(), "num_rows") == [4, 0, 2]
    assert run.to_arrow().column_names == list(frame.columns)
    polars = pytest.importorskip("polars")
    assert polars.from_arrow(run.to_arrow(0.3))["predicate"].to_list() == ["on"] * 3


def test_a_table_of_a_run_has_its_columns_without_rows_and_needs_pandas_and_a_threshold(
    tmp_path, monkeypatch
):
    run = run_of(tmp_path / "full", [full_record(1)])
    empty = run_of(tmp_path / "empty").to_pandas()
    assert empty.empty
    assert empty.dtypes.equals(run.to_pandas().dtypes)
    with pytest.raises(UserError, match="threshold nan: expected a number from 0 to 1"):
        run.to_pandas(float("nan"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        UserError, match=r'^pandas is not installed: pip install "sgpipe\[pandas\]"$'
    ):
        run.to_pandas()


def commit(
    root: Path, start: int, records: list[Record], manifest: Manifest | None = None
) -> ShardEntry:
    manifest = manifest or Manifest.load(root)
    stop = start + len(records)
    entry = write_shard(root, shard_name("val", start, stop), "val", start, records, {"tag": 0.5})
    manifest.commit(entry)
    return entry


@pytest.fixture
def run(tmp_path) -> Path:
    root = tmp_path / "run"
    with RunFolder(root).lock():
        manifest = Manifest.create(root, {"name": "mine"})
        failed = full_record(4)
        failed.relations = []
        failed.fail("load", "image file not found")
        commit(root, 0, list(map(full_record, range(3))), manifest)
        commit(root, 3, [full_record(3), failed], manifest)
    return root


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def problems(root: Path) -> list[tuple[str, str]]:
    return values_of(verify(root).problems, "file", "problem")


def with_columns(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the first shard and tell the manifest its new checksum."""
    path = root / FIRST
    pq.write_table(change(pq.read_table(path)), path)
    claim(root)


def claim(root: Path, **values: object) -> None:
    path = root / FIRST
    entry = Manifest.load(root).shards[0]
    Manifest.load(root).commit(
        replace(entry, sha256=file_sha256(path), bytes=path.stat().st_size, **values)
    )


def wide(table: pa.Table) -> pa.Table:
    return table.set_column(4, "width", table["width"].cast(pa.int64()))


def test_a_whole_run_is_one_line(run):
    verified = verify(run)
    assert (verified.ok, verified.shards, verified.images, verified.problems) == (True, 2, 5, [])
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{run}: 5 images in 2 shards, no problems found"]


def test_images_within_a_shard_are_not_read_at_once(tmp_path):
    with RunFolder(tmp_path).lock():
        manifest = Manifest.create(tmp_path, {"name": "mine"})
        images = [os.urandom(4 << 20) for _ in range(6)]
        manifest.commit(
            write_shard(tmp_path, FIRST, "val", 0, list(map(full_record, range(6))), {}, images)
        )
    del images
    tracemalloc.start()
    try:
        assert verify(tmp_path).ok
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_row_groups_of_a_shard_are_not_read_at_once(tmp_path):
    records = [full_record(number) for number in range(4096)]
    table = to_table(records)
    table = replace_column(table, "file_name", [os.urandom(2048).hex() for _ in records])
    peaks = {}
    for rows_per_group in (128, 4096):
        root = tmp_path / str(rows_per_group)
        root.mkdir()
        manifest = Manifest.create(root, {"name": "mine"})
        shard = ShardEntry("val", 0, 4096, shard_name("val", 0, 4096), "", 0)
        layout = ShardLayout(rows_per_group)
        manifest.commit(write_copy(root, shard, table, layout=layout))
        peaks[rows_per_group] = peak_of_arrow(root)
    assert 4 * peaks[128] < peaks[4096]


def peak_of_arrow(root: Path) -> int:
    """Return the most bytes that Arrow holds while a run is verified."""
    pool = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(counting)
    try:
        assert verify(root).ok
    finally:
        pa.set_memory_pool(pool)
    return counting.max_memory()


@pytest.mark.parametrize("most_in_memory", [0, 1 << 20])
def test_shards_of_a_store_are_checked_in_copies(run, monkeypatch, most_in_memory):
    monkeypatch.setattr(shards, "_MOST_IN_MEMORY", most_in_memory)
    store = Memory()
    for name in (FIRST, SECOND, MANIFEST):
        (store / name).put(run / name)
    assert verify(store).ok
    flip(run / SECOND, 100)
    (store / FIRST).unlink()
    (store / SECOND).put(run / SECOND)
    problems_of = {problem.file: problem.problem for problem in verify(store).problems}
    assert "missing" in problems_of[FIRST]
    assert "checksum" in problems_of[SECOND]


@pytest.mark.parametrize(
    ("harm", "file", "problem"),
    [
        (lambda root: (root / FIRST).unlink(), FIRST, "missing"),
        (
            lambda root: (root / FIRST).write_bytes((root / FIRST).read_bytes()[:-5]),
            FIRST,
            "truncated",
        ),
        (lambda root: flip(root / SECOND, 100), SECOND, "checksum"),
        (
            lambda root: shutil.copy(root / FIRST, root / shard_name("val", 5, 8)),
            shard_name("val", 5, 8),
            "not list",
        ),
        (lambda root: flip(root / MANIFEST, -40), MANIFEST, "line 3 has changed"),
        (
            lambda root: commit(root, 5, [full_record(1)]),
            shard_name("val", 5, 6),
            "1 image already in the run",
        ),
        (
            lambda root: commit(root, 5, [full_record(7)] * 2),
            shard_name("val", 5, 7),
            "1 image already in the run",
        ),
        (lambda root: with_columns(root, wide), FIRST, "column 'width' has the wrong type"),
        (
            lambda root: with_columns(root, lambda table: table.slice(1)),
            FIRST,
            "2 rows, the manifest says 3",
        ),
        (
            lambda root: claim(root, counts={"relations": 7, "problem.x": 3}),
            FIRST,
            "relations: 6, the manifest says 7",
        ),
    ],
)
def test_what_is_off_is_listed(run, harm: Harm, file, problem):
    harm(run)
    assert any(problem in text for name, text in problems(run) if name == file)
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert result.exit_code == 1
    assert any(line.startswith(f"{file}: ") for line in result.stdout.splitlines())


def spoilt(**values: object) -> Record:
    return replace(full_record(7), **values)


def boxes(*bbox: float) -> list[Box]:
    return [Box("dog", 1, tuple(bbox)), Box("cat", 2, (0.0, 0.0, 5.0, 5.0))]


TRIPLET = full_record(0).triplets[0]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            spoilt(relations=[Relation(2, 0, "on")]),
            "subject of relations points to none of the objects",
        ),
        (
            spoilt(relations=[Relation(0, -1, "on")]),
            "object of relations points to none of the objects",
        ),
        (spoilt(relations=[Relation(0, 1, None)]), "relations without predicate"),
        (spoilt(relations=[Relation(0, 1, "on", float("nan"))]), "confidence is not from 0 to 1"),
        (
            spoilt(relations=[Relation(0, 1, "on", 0.5, "tagger+zzz")]),
            "origin of relations is unknown",
        ),
        (
            spoilt(objects=[replace(box, origin="z") for box in full_record(0).objects]),
            "origin of objects is unknown",
        ),
        (spoilt(pairs=[Pair(0, 7, ["on"])]), "object of pairs points to none of the objects"),
        (spoilt(pairs=[Pair(0, 1, None)]), "pairs without predicates"),
        (
            spoilt(captions=[Caption("a", "pair", [0, 2])]),
            "boxes of captions point to none of the objects",
        ),
        (
            spoilt(triplets=[replace(TRIPLET, caption=1)]),
            "caption of triplets points to none of the captions",
        ),
        (spoilt(captions=[]), "caption of triplets points to none of the captions"),
        (spoilt(objects=boxes(0, 0, 1)), "bbox is not four numbers"),
        (spoilt(objects=boxes(0, 0, float("nan"), 1)), "bbox is not inside its image"),
        (spoilt(objects=boxes(630, 0, 11, 1)), "bbox is not inside its image"),
        (spoilt(objects=boxes(0, 0, 0, 0)), "bbox is not inside its image"),
        (spoilt(status="failed"), "status is neither ok nor error"),
        (spoilt(status="error", relations=[]), "error row without a reason"),
        (spoilt(status="error", error="x"), "error row with relations"),
        (spoilt(error="x"), "error reason in a row with status ok"),
        (spoilt(split="train"), "not of split 'val'"),
    ],
)
def test_faults_within_rows_are_found(run, record, problem):
    commit(run, 5, [full_record(6), record])
    assert problems(run) == [(shard_name("val", 5, 7), f"{problem} (image '7')")]


def test_what_may_be_is_no_fault(run):
    nothing = [
        Box("dog", 1, (0.0, 0.0, 640.005, 480.0)),
        Box("missing objects", -1, (0.0, 0.0, 0.0, 0.0)),
    ]
    bare = Record("8", "coco", "val", "8.jpg", 0, 0)
    bare.fail("source", "no size")
    sparse = [
        bare,
        Record("9", "coco", "val", "9.jpg", 5, 5),
        spoilt(objects=nothing, relations=[Relation(0, 1, "x")]),
    ]
    commit(run, 5, sparse)
    assert not problems(run)
    with_columns(run, lambda table: table.append_column("image", pa.nulls(3, pa.string())))
    assert not problems(run)


def test_a_repaired_run_is_right_and_knows_what_is_missing(run):
    flip(run / FIRST, 50)
    result = CliRunner().invoke(app, ["verify", str(run), "--repair", "--json"])
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"], report["repaired"]) == (0, True, True)
    assert report["repairs"][0].startswith(
        "dropped 1 damaged shard from the manifest; run the command that wrote it"
    )
    assert problems(run) == [(FIRST, "the manifest does not list it: the next run deletes it")]
    second = CliRunner().invoke(app, ["verify", str(run), "--repair"])
    assert second.stdout.endswith(
        f"{run}: repaired: deleted 1 shard that the manifest does not list\n"
    )
    assert problems(run) == []
    manifest = Manifest.load(run)
    assert manifest.missing("val", range(5)) == [(0, 3)]
    assert values_of(iter_records(run), "image_id") == ["3", "4"]
    commit(run, 0, list(map(full_record, range(3))), manifest)
    assert values_of(iter_records(run), "image_id") == ["0", "1", "2", "3", "4"]


def test_a_run_at_work_is_not_repaired(run):
    script = (
        "import sys; from pathlib import Path; from sgpipe.storage.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock():\n print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"locked\n"
    verified = verify(run)
    assert verified.at_work
    assert verified.ok
    with pytest.raises(UserError, match=f"process {other.pid}"):
        verify(run, repair=True)
    other.kill()
    other.communicate()


def test_records_can_be_read_with_the_columns_that_are_needed(tmp_path: Path) -> None:
    records = [full_record(number) for number in range(8)]
    run_of(tmp_path, records)
    for column in ("objects", "relations"):
        expected: list[Record] = []
        for record in records:
            fields = {name: getattr(record, name) for name in (*IMAGE_FIELDS, column)}
            expected.append(Record(**fields))
        assert list(iter_records(tmp_path, column)) == expected


def test_lists_that_are_null_are_empty() -> None:
    record = replace(full_record(1), captions=[])
    row = to_table([record]).to_pylist()[0]
    row["captions"] = None
    row["left_out"] = None
    row["objects"][0]["attributes"] = None
    [read] = from_table(pa.Table.from_pylist([row], schema=SCHEMA))
    assert read == record


def test_the_garbage_collector_is_as_before_after_reading() -> None:
    table = to_table([full_record(1)])
    assert gc.isenabled()
    from_table(table)
    assert gc.isenabled()
    gc.disable()
    try:
        from_table(table)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_a_shard_whose_disk_fails_for_now_is_told_from_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 damaged")
    with (
        pytest.raises(UserError, match=r"damaged\.parquet cannot be read") as refusal,
        open_shard(damaged),
    ):
        pass
    assert not isinstance(refusal.value, UnavailableError)
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(UnavailableError, match=os.strerror(number)), open_shard(damaged):
        pass
