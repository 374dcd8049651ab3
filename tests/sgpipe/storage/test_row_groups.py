import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpipe.errors import UserError
from sgpipe.storage.shards import open_shard, read_file, read_row_group


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
