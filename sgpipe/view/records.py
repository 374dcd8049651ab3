"""One image of a run, read from its shard: in a folder or an object store."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.records import Record, from_table
from sgpipe.storage.shards import AGREEMENT, IMAGE_COLUMN, OPINION, embedded_images
from sgpipe.view.index import Index
from sgpipe.view.run_files import store_errors_named


@dataclass(frozen=True)
class IndexedImage:
    """What the index knows of an image; as `sgpipe.images.ImageReference`.

    Attributes:
        embedded: whether its shard holds image files.
        shard, row: where it lies: the shard's name within the run, and the row's number in it.
    """

    dataset: str
    split: str
    image_id: str
    file_name: str
    width: int
    height: int
    embedded: bool
    shard: str
    row: int


@dataclass(frozen=True)
class RecordView:
    """A row of a run.

    Attributes:
        agreement: of `sgpipe score`, one for each of the record's relations: a dictionary of `score` (cosine),
            `swapped`, `rank`, `contrasts`, or None where it could not be scored; None for a run that is not scored.
        shard, row: where it lies: the shard's name within the run, and the row's number in it.
        opinion: of `sgpipe score --by vlm`, a probability for each relation, likewise.
    """

    record: Record
    agreement: list[dict[str, float | int | None] | None] | None
    shard: str
    row: int
    opinion: list[float | None] | None = None


def find_image(index: Index, split: str, image_id: str) -> IndexedImage | None:
    """An image by its name, from the index alone; None if the index has no such image."""
    rows = index.rows(
        """select dataset::varchar, split::varchar, image_id, file_name, width, height, embedded, file, row
        from run.images join run.shards using (shard) where image_id = ? and split = ? limit 1""",
        [image_id, split],
    )
    return IndexedImage(*rows[0]) if rows else None


def read_record(index: Index, split: str, image_id: str) -> RecordView | None:
    """The row of an image; None if the index has no such image.

    Raises UserError: the shard is missing or damaged, or the store cannot be reached.
    """
    image = find_image(index, split, image_id)
    if image is None:
        return None
    table = _read_row(index, image, without=IMAGE_COLUMN)
    [record] = from_table(table)
    scores = {name: table[name][0].as_py() for name in (AGREEMENT, OPINION) if name in table.column_names}
    return RecordView(record, scores.get(AGREEMENT), image.shard, image.row, scores.get(OPINION))


def read_embedded(index: Index, split: str, image_id: str) -> bytes | None:
    """The image file that the image's row holds; None if there is no such row, or it holds none.

    Pass it to `sgpipe.images.open_row_image` as `embedded`.

    Raises UserError: as `read_record`.
    """
    image = find_image(index, split, image_id)
    if image is None or not image.embedded:
        return None
    [data] = embedded_images(_read_row(index, image, only=IMAGE_COLUMN))
    return data


def _read_row(index: Index, image: IndexedImage, only: str | None = None, without: str | None = None) -> pa.Table:
    """The row as a table; of the shard only the row group that holds it is read."""
    with store_errors_named(), index.files.open(image.shard) as shard:
        names = [name for name in shard.schema_arrow.names if name != without and only in (None, name)]
        group, row = _row_group(shard, image.row)
        return shard.read_row_group(group, columns=names).slice(row, 1)


def _row_group(shard: pq.ParquetFile, row: int) -> tuple[int, int]:
    """The row group that holds a row, and the row's number within it."""
    sizes = (shard.metadata.row_group(number).num_rows for number in range(shard.num_row_groups))
    starts = list(accumulate(sizes, initial=0))
    group = bisect_right(starts, row) - 1
    return group, row - starts[group]
