import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA, Attribute, Box, Caption, Pair, Record, Relation, Triplet, from_table, to_table
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import Run, iter_records, open_shard, read_file, read_row_group, shard_name, write_shard
from sgpipe.storage.verify import verify
from sgpipe.utils.hashing import file_sha256


def full_record(number: int) -> Record:
    record = Record(str(number), "coco", "val", f"{number}.jpg", 640, 480)
    record.objects = [Box("dog", 18, (1.5, 2.25, 3.0, 4.0)), Box("person", 1, (0.0, 0.0, 9.0, 9.0), True)]
    record.captions = [Caption("a dog", "pair", [0, 1])]
    record.triplets = [Triplet("big dog", "running on", "hill", "dog", "hill", "run on", 0, "dog", None)]
    record.pairs = [Pair(0, 1, ["near", "on"])]
    record.relations = [Relation(0, 1, "near", 0.25), Relation(1, 0, "on")]
    return record


def test_records_survive_the_table_and_the_shard_with_all_that_is_known(tmp_path):
    failed, found = Record("7", "coco", "val", "7.jpg", 1, 1), full_record(2)
    failed.fail("load", "broken")
    red = [Attribute("red", 0), Attribute("old")]
    found.objects[0] = replace(found.objects[0], origin="grounded", score=0.25, phrase="the red dog", attributes=red)
    found.objects[1] = replace(found.objects[1], origin="detector", score=0.5, segmentation="[[0, 0, 1, 0, 1, 1]]")
    records = [full_record(1), found, failed, Record("8", "coco", "val", "8.jpg", 1, 1)]
    table = to_table(records)
    assert table.schema.equals(SCHEMA)
    assert from_table(table) == records
    assert (failed.status, failed.error) == ("error", "load: broken")
    run = run_of(tmp_path, records)
    assert list(run) == list(iter_records(tmp_path)) == records
    assert verify(tmp_path).problems == []


def test_a_shard_is_described_as_it_lies_on_disk(tmp_path):
    records = [full_record(i) for i in range(3)]
    name = shard_name("val", 4, 7)
    entry = write_shard(tmp_path, name, "val", 4, records, {"tag": 1.5})
    path = tmp_path / entry.file
    assert (entry.start, entry.stop, entry.rows) == (4, 7, 3)
    assert (entry.sha256, entry.bytes) == (file_sha256(path), path.stat().st_size)
    assert entry.counts["relations"] == 6
    assert entry.counts["matched_triplets"] == 0
    assert pq.read_schema(path).field("relations").type == SCHEMA.field("relations").type
    assert write_shard(tmp_path / "again", name, "val", 4, records, {"tag": 1.5}) == entry  # the same bytes


def test_row_groups_are_small_enough_to_stream(tmp_path):
    records = [full_record(i) for i in range(1100)]
    write_shard(tmp_path, shard_name("val", 0, 1100), "val", 0, records, {})
    file = pq.ParquetFile(tmp_path / shard_name("val", 0, 1100))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [512, 512, 76]


def test_images_lie_beside_their_records(tmp_path):
    records = [full_record(i) for i in range(2)]
    name = shard_name("val", 0, 2)
    entry = write_shard(tmp_path, name, "val", 0, records, {}, [b"image", None])
    assert read_file(tmp_path / name)["image"].to_pylist() == [{"bytes": b"image", "path": "0.jpg"}, None]
    Manifest.create(tmp_path, {}).commit(entry)
    assert list(iter_records(tmp_path)) == records
    with pytest.raises(ValueError, match="zip"):
        write_shard(tmp_path, name, "val", 0, records, {}, [b"image"])


def run_of(root: Path, *shards: list[Record]) -> Run:
    root.mkdir(exist_ok=True)
    manifest, start = Manifest.create(root, {}), 0
    for records in shards:
        name = shard_name("val", start, start + len(records))
        manifest.commit(write_shard(root, name, "val", start, records, {}))
        start += len(records)
    return Run(root)


def test_relations_of_a_run_are_rows_of_pandas(tmp_path: Path) -> None:
    failed = full_record(2)
    failed.objects, failed.relations = [], []
    failed.fail("tag", "too dark")
    bare = full_record(3)
    bare.relations = []
    run = run_of(tmp_path, [full_record(1), failed, bare, full_record(4)], [bare], [full_record(6)])
    frame = run.to_pandas()
    assert [record.image_id for record in run] == ["1", "2", "3", "4", "3", "6"]
    assert list(zip(frame["image_id"], frame["subject"], frame["object"], strict=True)) == [
        (image, *ends) for image in ("1", "4", "6") for ends in ((0, 1), (1, 0))
    ]
    assert frame.iloc[2].to_dict() == {
        **{"image_id": "4", "split": "val", "file_name": "4.jpg"},
        **{"subject": 0, "subject_category": "dog"},
        **{"subject_x1": 1.5, "subject_y1": 2.25, "subject_x2": 4.5, "subject_y2": 6.25},
        **{"object": 1, "object_category": "person", "object_x1": 0, "object_y1": 0, "object_x2": 9, "object_y2": 9},
        **{"predicate": "near", "confidence": 0.25},
    }
    assert frame["confidence"].isna().tolist() == [False, True] * 3
    assert run.to_pandas(threshold=0.3)["predicate"].tolist() == ["on"] * 3
    assert [table.num_rows for table in run.relation_tables()] == [4, 0, 2]
    assert run.to_arrow().column_names == list(frame.columns)
    polars = pytest.importorskip("polars")
    assert polars.from_arrow(run.to_arrow(0.3))["predicate"].to_list() == ["on"] * 3


def test_a_table_of_a_run_has_its_columns_without_rows_and_needs_pandas_and_a_threshold(tmp_path, monkeypatch):
    run, empty = run_of(tmp_path / "full", [full_record(1)]), run_of(tmp_path / "empty").to_pandas()
    assert empty.empty
    assert empty.dtypes.equals(run.to_pandas().dtypes)
    with pytest.raises(UserError, match="threshold nan: expected a number from 0 to 1"):
        run.to_pandas(float("nan"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r'^pandas is not installed: pip install "sgpipe\[pandas\]"$'):
        run.to_pandas()


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": range(5), "b": list("vwxyz")}), path, row_group_size=2)
    return path


def test_one_row_group_is_read_with_the_columns_that_are_there(shard):
    table = read_row_group(shard, 1, ["b"], optional=["a", "c"])
    assert table.to_pydict() == {"b": ["x", "y"], "a": [2, 3]}


def test_a_column_that_is_not_there_is_named(shard):
    with pytest.raises(UserError, match=r"a\.parquet has no column 'c'"), open_shard(shard, ["a", "c"]):
        pass


@pytest.mark.parametrize(
    ("harm", "message"), [(lambda path: path.unlink(), "missing"), (lambda path: path.write_bytes(b"x"), "read")]
)
def test_missing_and_damaged_files_are_named(shard, harm, message):
    harm(shard)
    for read in (read_file, lambda path: read_row_group(path, 0, ["a"])):
        with pytest.raises(UserError, match=rf"shard .*a\.parquet .*{message}"):
            read(shard)
