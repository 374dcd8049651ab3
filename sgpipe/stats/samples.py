"""Records of a run with their images, chosen to be looked at.

The contact sheet: images of a run with their relations drawn on them, as one PNG.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from sgpipe.errors import UserError
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import SCHEMA, Record, from_table
from sgpipe.storage.database import Database, open_run
from sgpipe.storage.shards import embedded_images, open_shard
from sgpipe.viz.draw_relations import draw_card, fit, font, shown

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
    """The records of these images with their images; None for an image that cannot be had.

    Args:
        images: folder of the images, if they are no longer where the run found them.

    Raises UserError: a shard cannot be read.
    """
    for shard, members in groupby(numbers, key=lambda number: bisect_right(database.firsts, number) - 1):
        for table in _read_rows(database.files[shard], [number - database.firsts[shard] for number in members]):
            [record], [embedded] = from_table(table), embedded_images(table)
            yield record, open_image(database.image_folders, record, embedded, images)


def _read_rows(path: Path, rows: Sequence[int]) -> Iterator[pa.Table]:
    """Each of the rows as a table, with as little read as can be."""
    with open_shard(path, SCHEMA.names) as file:
        starts = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        for group, members in groupby(rows, key=lambda row: int(np.searchsorted(starts, row, "right")) - 1):
            table = file.read_row_group(group)
            yield from (table.slice(row - int(starts[group]), 1) for row in members)


def open_image(
    folders: Mapping[str, Path], record: Record, embedded: bytes | None = None, images: Path | None = None
) -> Image.Image | None:
    """As `open_row_image`, but None if the image cannot be opened."""
    try:
        return open_row_image(folders, record, embedded, images)
    except ImageError:
        return None


_CARD, _GAP, _TITLE = 480, 16, 26
_RELATIONS = 8
_PAPER, _INK = "#e9ebee", "#1a1a1a"


def write_sheet(
    root: Path, file: Path, count: int = 20, threshold: float = 0.2, images: Path | None = None
) -> tuple[int, int]:
    """Draw images spread evenly over the run into one PNG, each with its strongest relations.

    Args:
        count: how many, those with a relation of at least `threshold` first.
        images: folder of the images, if they are no longer where the run found them.

    Returns:
        how many images are on it, and of how many of them the image could not be had.

    Raises UserError: it is not a run, holds no image, a shard cannot be read, or the file cannot be written.
    """
    with open_run(root) as database:
        places = spread(database, count, threshold)
        cards, related, lost = [], 0, 0
        for record, opened in open_records(database, places, images):
            relations = shown(record.relations, threshold, _RELATIONS)
            related += bool(relations)
            lost += opened is None
            cards.append(draw_card(opened, record, relations, _CARD))
        if not cards:
            raise UserError(f"{root} holds no image that could be drawn")
        title = f"{database.run.get('name') or root.name}: {len(cards)} images"
        title += f", {related} of them with relations of confidence {threshold:.2f} or more"
    _save(_grid(cards, title), file)
    return len(cards), lost


def _grid(cards: Sequence[Image.Image], title: str) -> Image.Image:
    """The cards in columns, each in the column that is shortest so far."""
    columns = min(len(cards), max(1, round(math.sqrt(len(cards)))))
    bottoms = [_TITLE + 2 * _GAP] * columns
    places = []
    for card in cards:
        column = bottoms.index(min(bottoms))
        places.append((_GAP + column * (_CARD + _GAP), bottoms[column]))
        bottoms[column] += card.height + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_CARD + _GAP), max(bottoms)), _PAPER)
    letters = font(_TITLE * 0.8)
    text = fit(title, letters, sheet.width - 2 * _GAP)
    ImageDraw.Draw(sheet).text((_GAP, _GAP + _TITLE / 2), text, fill=_INK, font=letters, anchor="lm")
    for card, place in zip(cards, places, strict=True):
        sheet.paste(card, place)
    return sheet


def _save(sheet: Image.Image, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        sheet.save(temporary, "PNG", optimize=True)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None
