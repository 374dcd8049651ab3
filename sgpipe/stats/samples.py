"""Sample images of a run with their records, and the contact sheet: one PNG of images with their relations."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import SCHEMA, Record, from_table
from sgpipe.stats.measures import use_probabilities
from sgpipe.storage.database import Database, open_run
from sgpipe.storage.shards import embedded_images, open_shard
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import count as count_noun
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


def sample_images(database: Database, count: int, threshold: float) -> list[int]:
    """Positions in the run of `count` images, evenly spaced among those with a relation of at least `threshold`.

    If there are too few of these, images without such a relation are added. Error rows are left out.
    """
    [(images,)] = database.rows("select count(*) from images")
    count = min(count, max(images, 1))
    return sorted(image for (image,) in database.rows(_SPREAD, threshold, count, count))


def open_records(
    database: Database,
    numbers: Iterable[int],
    images: ImagePlace | None = None,
    calibration: Calibration | None = None,
) -> Iterator[tuple[Record, Image.Image | None]]:
    """The records at these positions with their images; None for an image that cannot be opened.

    Args:
        images: where the images are, if they have moved since the run.
        calibration: of the tagger; confidences are its probabilities then.

    Raises UserError: a shard cannot be read.
    """
    for shard, members in groupby(numbers, key=lambda number: bisect_right(database.firsts, number) - 1):
        for table in _read_rows(database.files[shard], [number - database.firsts[shard] for number in members]):
            [record], [embedded] = from_table(table), embedded_images(table)
            if calibration is not None:
                calibration.replace_confidences(record)
            yield record, _open_image(database.image_roots, record, embedded, images)


def _read_rows(path: Path, rows: Sequence[int]) -> Iterator[pa.Table]:
    """Each row as a table; only the row groups that hold them are read."""
    with open_shard(path, SCHEMA.names) as file:
        starts = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        for group, members in groupby(rows, key=lambda row: int(np.searchsorted(starts, row, "right")) - 1):
            table = file.read_row_group(group)
            yield from (table.slice(row - int(starts[group]), 1) for row in members)


def _open_image(
    roots: Mapping[str, ImagePlace], record: Record, embedded: bytes | None = None, images: ImagePlace | None = None
) -> Image.Image | None:
    """The image, or None if it cannot be opened."""
    try:
        return open_row_image(roots, record, embedded, images)
    except ImageError:
        return None


_CARD, _GAP, _TITLE = 480, 16, 26
_RELATIONS = 8
_PAPER, _INK = "#e9ebee", "#1a1a1a"


def write_sheet(
    root: Path,
    file: Path,
    count: int = 20,
    threshold: float = 0.2,
    images: ImagePlace | None = None,
    calibration: Calibration | None = None,
) -> tuple[int, int]:
    """Draw sample images of a run into one PNG, each with its most confident relations.

    Args:
        count: number of images; those with a relation of at least `threshold` come first.
        images: where the images are, if they have moved since the run.
        calibration: of the tagger; the threshold, and what is drawn, is a probability then.

    Returns:
        the number of images on the sheet, and how many of them could not be opened.

    Raises UserError: the folder is not a run or has no image, a shard cannot be read, or the file cannot be written.
    """
    with open_run(root) as database:
        if calibration is not None:
            use_probabilities(database, calibration)
        numbers = sample_images(database, count, threshold)
        cards, related, lost = [], 0, 0
        for record, opened in open_records(database, numbers, images, calibration):
            relations = shown(record.relations, threshold, _RELATIONS)
            related += bool(relations)
            lost += opened is None
            cards.append(draw_card(opened, record, relations, _CARD))
        if not cards:
            raise UserError(f"{root} has no image to draw")
        title = f"{database.run.get('name') or root.name}: {count_noun(len(cards), 'image')}"
        measure = "confidence" if calibration is None else "probability"
        title += f", {related:,} with relations of {measure} {threshold:.2f} or more"
    _save(_grid(cards, title), file)
    return len(cards), lost


def _grid(cards: Sequence[Image.Image], title: str) -> Image.Image:
    """The cards in columns, each added to the shortest column so far."""
    columns = min(len(cards), max(1, round(math.sqrt(len(cards)))))
    bottoms = [_TITLE + 2 * _GAP] * columns
    corners = []
    for card in cards:
        column = bottoms.index(min(bottoms))
        corners.append((_GAP + column * (_CARD + _GAP), bottoms[column]))
        bottoms[column] += card.height + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_CARD + _GAP), max(bottoms)), _PAPER)
    letters = font(_TITLE * 0.8)
    text = fit(title, letters, sheet.width - 2 * _GAP)
    ImageDraw.Draw(sheet).text((_GAP, _GAP + _TITLE / 2), text, fill=_INK, font=letters, anchor="lm")
    for card, corner in zip(cards, corners, strict=True):
        sheet.paste(card, corner)
    return sheet


def _save(sheet: Image.Image, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            sheet.save(temporary, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None
