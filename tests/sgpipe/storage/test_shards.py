import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA, Box, Caption, Pair, Record, Relation, Triplet, from_table, to_table
from sgpipe.storage import shards as write_module
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records, open_shard, read_file, read_row_group, shard_name, write_shard
from sgpipe.storage.verify import verify
from sgpipe.utils.hashing import file_sha256


def full_record(number: int) -> Record:
    return Record(
        image_id=str(number),
        dataset="coco",
        split="val",
        file_name=f"{number}.jpg",
        width=640,
        height=480,
        objects=[Box("dog", 18, (1.5, 2.25, 3.0, 4.0)), Box("person", 1, (0.0, 0.0, 9.0, 9.0), True)],
        captions=[Caption("a dog", "pair", [0, 1])],
        triplets=[Triplet("big dog", "running on", "hill", "dog", "hill", "run on", 0, "dog", None)],
        pairs=[Pair(0, 1, ["near", "on"])],
        relations=[Relation(0, 1, "near", 0.25), Relation(1, 0, "on")],
    )


def test_records_survive_the_table():
    failed = Record("7", "coco", "val", "7.jpg", 1, 1)
    failed.fail("load", "broken")
    records = [full_record(1), failed, Record("8", "coco", "val", "8.jpg", 1, 1)]
    table = to_table(records)
    assert table.schema.equals(SCHEMA)
    assert from_table(table) == records
    assert (failed.status, failed.error) == ("error", "load: broken")


def test_box_scores_are_a_column_only_of_shards_with_detected_boxes(tmp_path):
    detected, empty, failed = full_record(1), Record("2", "coco", "val", "2.jpg", 1, 1), full_record(3)
    detected.box_scores, empty.box_scores = [0.5, 0.25], []
    records = [detected, empty, failed]
    table = to_table(records)
    assert table.column_names == [*SCHEMA.names, "box_scores"]
    assert from_table(table) == records
    Manifest.create(tmp_path, {}).commit(write_shard(tmp_path, shard_name("val", 0, 3), "val", 0, records, {}))
    assert [record.box_scores for record in iter_records(tmp_path)] == [[0.5, 0.25], [], None]
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
    Manifest.create(tmp_path, {}).commit(entry)
    assert list(iter_records(tmp_path)) == records


def test_the_same_records_make_the_same_bytes(tmp_path):
    entries = [
        write_shard(tmp_path / folder, shard_name("val", 0, 1), "val", 0, [full_record(1)], {}) for folder in "ab"
    ]
    assert entries[0].sha256 == entries[1].sha256


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


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(path, table):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(tmp_path, shard_name("val", 0, 1), "val", 0, [full_record(1)], {})
    assert list((tmp_path / "data").iterdir()) == []


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": range(5), "b": list("vwxyz")}), path, row_group_size=2)
    return path


def test_one_row_group_is_read_with_the_columns_that_are_there(shard):
    table = read_row_group(shard, 1, ["b"], optional=["a", "c"])
    assert table.to_pydict() == {"b": ["x", "y"], "a": [2, 3]}


def test_a_row_group_that_is_not_there_is_a_changed_shard(shard):
    with pytest.raises(UserError, match=r"a\.parquet has changed: it no longer has row group 3"):
        read_row_group(shard, 3, ["a"])


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
