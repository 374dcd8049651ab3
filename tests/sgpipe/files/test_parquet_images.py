"""Images in rows of Parquet files: read in any order, by names, and again after a failure."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpipe.errors import StoreError
from sgpipe.files.parquet_images import ParquetImages, parse_row_name
from tests.sgpipe.sources.hub.parquet_files import row, write


def test_images_are_read_in_any_order(tmp_path):
    rows = [row(i) for i in range(60)]
    write(tmp_path / "a.parquet", rows[:50], batch=20)
    write(tmp_path / "b.parquet", rows[50:], batch=4)
    images = ParquetImages(tmp_path.joinpath)
    order = [*range(60), *reversed(range(60)), 3, 41, 22, 59, 4]
    for number in order:
        name = f"a.parquet#{number}" if number < 50 else f"b.parquet#image:{number - 50}"
        assert images.read_name(name) == rows[number]["image"]["bytes"]
    for absent in ("a.parquet#50", "c.parquet#0", "a.parquet#photo:1", "a.parquet"):
        with pytest.raises(FileNotFoundError):
            images.read_name(absent)


def test_images_are_read_after_a_failure_of_the_store(tmp_path):
    files = [bytes([number]) * 100_000 for number in range(40)]
    table = pa.table({"image": pa.array(files, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", data_page_size=1, write_batch_size=1)

    class Stored(io.BytesIO):
        fails = False

        def read(self, size: int | None = -1) -> bytes:
            if self.fails:
                raise StoreError("the store is gone")
            return super().read(size)

    stored = Stored((tmp_path / "a.parquet").read_bytes())
    images = ParquetImages(lambda name: stored)
    assert images.read_name("a.parquet#0") == files[0]
    stored.fails = True
    for _ in range(2):
        with pytest.raises(StoreError, match="the store is gone"):
            images.read_name("a.parquet#39")
    stored.fails = False
    assert images.read_name("a.parquet#39") == files[39]


def test_names_of_rows():
    assert parse_row_name("data/x.parquet#7") == ("data/x.parquet", None, 7)
    assert parse_row_name("x.parquet#photo:7") == ("x.parquet", "photo", 7)
    assert [parse_row_name(name) for name in ("x.jpg", "x#7.jpg", "x.parquet#", "x.parquet#-1")] == [None] * 4
