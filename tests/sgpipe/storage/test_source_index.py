"""The source index in parts, as large as a run has them or so small that a few rows fill several."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sgpipe.errors import UserError
from sgpipe.records import Caption, Record, to_table
from sgpipe.storage import source_index
from sgpipe.storage.source_index import SourceIndex, read_records, write_index

IMAGES = 45


def records() -> list[Record]:
    return [
        Record(
            str(number),
            "coco",
            "val",
            f"{number}.jpg",
            9,
            8,
            captions=[Caption("a")] * (number % 3),
        )
        for number in range(IMAGES)
    ]


def tables(rows: int) -> Iterator[pa.Table]:
    table = to_table(records())
    return (table.slice(start, rows) for start in range(0, IMAGES, rows))


@pytest.fixture(params=[8, 16, 1 << 20])
def index(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SourceIndex:
    monkeypatch.setattr(source_index, "_ROWS_PER_BATCH", 2)
    monkeypatch.setattr(source_index, "_ROWS_PER_SLICE", 4)
    monkeypatch.setattr(source_index, "ROWS_PER_PART", request.param)
    path = tmp_path / "index-val.arrow"
    write_index(path, tables(7), lambda: {"problems": {}})
    opened = SourceIndex(path)
    assert len(opened.parts) == -(-IMAGES // request.param)
    return opened


def test_any_rows_are_read_from_the_parts_that_have_them(index: SourceIndex) -> None:
    expected = records()
    for start in range(IMAGES):
        for stop in (start, start + 1, start + 9, IMAGES):
            assert index.records(start, min(stop, IMAGES)) == expected[start:stop]
    assert len(index) == IMAGES
    assert index.meta["texts"] == sum(len(record.captions) for record in expected)


def test_only_the_part_of_a_unit_is_read(index: SourceIndex) -> None:
    for part in index.parts[1:]:
        part.unlink()
    folder = index.parts[0].parent
    assert read_records(folder, "index-val.arrow", 2, 5) == records()[2:5]


def test_a_part_that_is_changed_cut_or_lost_is_noticed(index: SourceIndex) -> None:
    last = index.parts[-1]
    path = last.parent / "index-val.arrow"
    content = last.read_bytes()
    assert index.is_whole
    last.write_bytes(content.replace(b"44.jpg", b"xx.jpg"))
    assert not SourceIndex(path).is_whole
    last.write_bytes(content[:100])
    with pytest.raises(UserError, match="cannot be read"):
        SourceIndex(path)
    last.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        SourceIndex(path)
