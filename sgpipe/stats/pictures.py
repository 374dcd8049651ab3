"""Records of a run with their pictures, chosen to be looked at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sgpipe.images import ImageError, decode, is_upright, resolve
from sgpipe.records import SCHEMA, Record, from_table
from sgpipe.shards.row_groups import open_shard
from sgpipe.shards.write import PICTURES
from sgpipe.stats.database import Database

_SPREAD = """
    with usable as (
        select images.image, coalesce(certainty >= ?::float, false) as has
        from images left join related_images using (image) where status = 'ok'),
    tiles as (select *, ntile(?) over (partition by has order by image) as tile from usable)
    select image from tiles
    qualify row_number() over (partition by has, tile order by image) = 1
    order by not has, tile limit ?
"""


def spread(database: Database, count: int, threshold: float) -> list[int]:
    """Numbers of `count` images, evenly over those with a relation of at least `threshold`, in the run's order.

    Where there are too few, images without any follow. Error rows are left out.
    """
    [(images,)] = database.rows("select count(*) from images")
    count = min(count, max(images, 1))
    return sorted(image for (image,) in database.rows(_SPREAD, threshold, count, count))


def open_records(
    database: Database, numbers: Iterable[int], images: Path | None = None
) -> Iterator[tuple[Record, Image.Image | None]]:
    """The records of these images with their pictures; None for a picture that cannot be had.

    Args:
        images: folder of the pictures, if they are no longer where the run found them.

    Raises UserError: a shard cannot be read.
    """
    for shard, members in groupby(numbers, key=lambda number: bisect_right(database.firsts, number) - 1):
        for table in _read_rows(database.files[shard], [number - database.firsts[shard] for number in members]):
            embedded = table[PICTURES][0].as_py() if PICTURES in table.column_names else None
            [record] = from_table(table)
            yield record, open_picture(database.image_folders, record, embedded, images)


def _read_rows(path: Path, rows: Sequence[int]) -> Iterator[pa.Table]:
    """Each of the rows as a table, with as little read as can be."""
    with open_shard(path, SCHEMA.names) as file:
        starts = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        for group, members in groupby(rows, key=lambda row: int(np.searchsorted(starts, row, "right")) - 1):
            table = file.read_row_group(group)
            yield from (table.slice(row - int(starts[group]), 1) for row in members)


def open_picture(
    folders: Mapping[str, Path], record: Record, embedded: dict[str, Any] | None, images: Path | None = None
) -> Image.Image | None:
    """A record's picture, from `images`, its shard, or where the run found it; None if it cannot be had.

    Args:
        folders: where the run found the pictures of each split.
        embedded: the shard's column of pictures.
    """
    size, name = (record.width, record.height), record.file_name
    upright = is_upright(record.dataset)
    root = images or folders.get(record.split)
    try:
        if embedded is not None and images is None:
            return decode(BytesIO(embedded["bytes"]), size, name, upright=upright)
        return decode(resolve(root, name), size, name, upright=upright) if root else None
    except ImageError:
        return None
