"""The contact sheet: pictures of a run with their relations drawn on them, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sgpipe.drawing import draw_card, fit, font, shown
from sgpipe.errors import UserError
from sgpipe.stats.database import open_run
from sgpipe.stats.pictures import open_records, spread

_CARD, _GAP, _TITLE = 480, 16, 26
_RELATIONS = 8
_PAPER, _INK = "#e9ebee", "#1a1a1a"


def write_sheet(
    root: Path, file: Path, pictures: int = 20, threshold: float = 0.2, images: Path | None = None
) -> tuple[int, int]:
    """Draw pictures spread evenly over the run into one PNG, each with its strongest relations.

    Args:
        pictures: how many, those with a relation of at least `threshold` first.
        images: folder of the pictures, if they are no longer where the run found them.

    Returns:
        how many images are on it, and of how many of them the picture could not be had.

    Raises UserError: it is not a run, holds no image, a shard cannot be read, or the file cannot be written.
    """
    with open_run(root) as database:
        places = spread(database, pictures, threshold)
        cards, related, lost = [], 0, 0
        for record, picture in open_records(database, places, images):
            relations = shown(record.relations, threshold, _RELATIONS)
            related += bool(relations)
            lost += picture is None
            cards.append(draw_card(picture, record, relations, _CARD))
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
