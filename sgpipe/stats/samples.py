"""Sample images of a run: cards with the scene graph of each, and the contact sheet, one PNG."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image, ImageDraw

from sgpipe import viz
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Record, Relation, from_table
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import write_result
from sgpipe.storage.shards import embedded_images
from sgpipe.viz import polyline

if TYPE_CHECKING:
    from sgpipe.calibration import Calibration

Values: TypeAlias = dict[str, Any]
Nodes: TypeAlias = dict[int, Values]
Samples: TypeAlias = Iterable[tuple[Record, Image.Image | None]]
_SPREAD = """
    select image from (
        select image, coalesce(certainty >= ?::float, false) as has,
            ntile(?) over (partition by has order by image) as tile
        from images left join related_images using (image) where status = 'ok')
    qualify row_number() over (partition by has, tile order by image) = 1
    order by not has, tile limit ?
"""
_CARD = 480
_GAP = 16
_TITLE = 26
_SHEET_RELATIONS = 8
_PAPER = "#e9ebee"
_INK = "#1a1a1a"
WIDTH = 480  # of an image and of a graph, in units of their SVG
_CAPTIONS = 5
# the browser's font may be slightly wider than the one measured here
_TEXT = 14
_PILL = 24
_QUALITY = 76


def open_samples(
    database: Database,
    number: int,
    threshold: float,
    images: ImagePlace | None = None,
    calibration: Calibration | None = None,
) -> Iterator[tuple[Record, Image.Image | None]]:
    """Yield records, evenly spaced among those with a relation of at least `threshold`.

    If there are fewer than `number` of these, others are added, but no error rows. Each comes with
    its image, or None if it cannot be opened.
    """
    [(rows,)] = database.rows("select count(*) from images")
    number = min(number, max(rows, 1))
    numbers = sorted(image for (image,) in database.rows(_SPREAD, [threshold, number, number]))
    for table in database.read_rows(numbers):
        [record] = from_table(table)
        [embedded] = embedded_images(table)
        if calibration is not None:
            for relation in record.relations:
                if relation.confidence is not None:
                    relation.confidence = float(calibration.probabilities(relation.confidence))
        image = None
        with suppress(ImageError):
            image = open_row_image(database.image_roots, record, embedded, images)
        yield record, image


def write_sheet(
    database: Database, file: Path, samples: Samples, threshold: float = 0.2
) -> tuple[int, int]:
    """Draw samples into one PNG.

    Returns:
        Their number, and how many lack their image.

    Raises:
        UserError: there are no samples.
    """
    cards = []
    lost = 0
    for record, image in samples:
        lost += image is None
        relations = viz.shown(record.relations, threshold, _SHEET_RELATIONS)
        cards.append(viz.draw_card(image, record, relations, _CARD))
    if not cards:
        raise UserError(f"{database.root} has no image to draw")
    title = (
        f"{database.run.get('name') or database.root.name}: relations of {database.measure}"
        f" {threshold:.2f} or more"
    )
    columns = min(len(cards), max(1, round(math.sqrt(len(cards)))))
    bottoms = [_TITLE + 2 * _GAP] * columns
    corners = []
    for card in cards:  # each is added to the shortest column so far
        column = bottoms.index(min(bottoms))
        corners.append((_GAP + column * (_CARD + _GAP), bottoms[column]))
        bottoms[column] += card.height + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_CARD + _GAP), max(bottoms)), _PAPER)
    letters = viz.font(_TITLE * 0.8)
    text = viz.fit(title, letters, sheet.width - 2 * _GAP)
    ImageDraw.Draw(sheet).text(
        (_GAP, _GAP + _TITLE / 2), text, fill=_INK, font=letters, anchor="lm"
    )
    for card, corner in zip(cards, corners, strict=True):
        sheet.paste(card, corner)
    with write_result(file) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return len(cards), lost


def make_card(record: Record, image: Image.Image | None, relations: Sequence[Relation]) -> Values:
    """Return an image with its relations between existing objects, as templates take it.

    `nodes`: objects, with the box and the tag on the image, and the pill in the graph. `edges`:
    relations, with curves on both, and a text in the graph. All in units of SVGs that are `WIDTH`
    wide.

    Args:
        image: a data URI, or None.
    """
    scale = WIDTH / max(record.width, 1)
    height = min(max(record.height * scale, 60), 2 * WIDTH)
    existing = range(len(record.objects))
    relations = [
        relation
        for relation in relations
        if relation.subject in existing and relation.object in existing
    ]
    uri = None
    if image is not None:
        small = image.convert("RGB")
        file = BytesIO()
        small.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
        small.save(file, "JPEG", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    nodes, graph_height = _nodes(record, relations, scale, height)
    return {
        "image_id": record.image_id,
        "split": record.split,
        "file_name": record.file_name,
        "image": uri,
        "height": height,
        "graph_height": graph_height,
        "nodes": list(nodes.values()),
        "edges": _edges(relations, nodes, graph_height),
        "relations": len(record.relations),
        "captions": [caption.text for caption in record.captions[:_CAPTIONS]],
    }


def _nodes(
    record: Record, relations: Sequence[Relation], scale: float, height: float
) -> tuple[Nodes, float]:
    """Return the objects of the relations by index, on an ellipse, and its height.

    They are in the order of their angles around the middle of all.
    """
    used = viz.drawn_objects(record, relations)
    if not relations:
        used = [index for index in used if not record.objects[index].is_nothing]
    boxes = {}
    middles = {}
    for index in used:
        boxes[index] = viz.corners(record.objects[index].bbox, scale, (WIDTH, height))
        middles[index] = viz.middle(boxes[index])
    centre_x = sum(x for x, _ in middles.values()) / max(len(middles), 1)
    centre_y = sum(y for _, y in middles.values()) / max(len(middles), 1)
    order = sorted(
        middles, key=lambda i: math.atan2(middles[i][1] - centre_y, middles[i][0] - centre_x)
    )
    names = viz.object_names(record.objects)
    letters = viz.font(_TEXT)
    graph_height = 110.0 + 34 * max(len(used) - 1, 0)
    room = viz.TextPlacer(WIDTH, height, list(boxes.values()))
    nodes = {}
    for index in used:
        name = viz.fit(names[index], letters, WIDTH / 3)
        width = letters.getlength(name) + 12
        left, top, right, bottom = boxes[index]
        rows = (top - 9, bottom + 9, top + 9, bottom - 9)
        columns = (left + width / 2, right - width / 2)
        spots = [(column, row) for row, column in product(rows, columns)]
        angle = -math.pi + 2 * math.pi * order.index(index) / len(order)
        x = WIDTH / 2 + 0.36 * WIDTH * math.cos(angle)
        y = graph_height / 2 + (graph_height / 2 - 20) * math.sin(angle)
        x = min(max(x, width / 2 + 1), WIDTH - width / 2 - 1)
        pill = (x - width / 2, y - _PILL / 2, x + width / 2, y + _PILL / 2)
        nodes[index] = {
            "index": index,
            "name": name,
            "category": record.objects[index].category,
            "box": boxes[index],
            "colour": viz.colour_of(index),
            "tag": room.place((width, 18), spots),
            "pill": pill,
        }
    return nodes, graph_height


def _edges(relations: Sequence[Relation], nodes: Nodes, height: float) -> list[Values]:
    letters = viz.font(_TEXT)
    room = viz.TextPlacer(WIDTH, height, taken=[node["pill"] for node in nodes.values()])
    between = Counter[tuple[int, int]]()
    edges = []
    for relation in relations:
        subject = nodes[relation.subject]
        object_ = nodes[relation.object]
        pair = (relation.subject, relation.object)
        graph_curve = _visible_curve((subject["pill"], object_["pill"]), 0.2 + 0.16 * between[pair])
        between[pair] += 1
        image_curve = [viz.middle(subject["box"])]
        image_head = ""
        graph_head = ""
        if relation.subject != relation.object and any(object_["box"]):
            image_curve = viz.curve(subject["box"], object_["box"], 24)
            image_head = polyline(viz.arrow_head(image_curve, 13))
            graph_head = polyline(viz.arrow_head(graph_curve, 11))
        text = viz.fit(relation.predicate, letters, WIDTH / 2)
        size = (letters.getlength(text) + 12, _TEXT + 4.0)
        edge: Values = {
            "subject": subject,
            "object": object_,
            "predicate": relation.predicate,
            "confidence": relation.confidence,
            "on_image": polyline(image_curve),
            "image_head": image_head,
            "in_graph": polyline(graph_curve),
            "graph_head": graph_head,
            "text_box": room.place(size, viz.along(graph_curve, size)),
            "text": text,
        }
        edges.append(edge)
    return edges


def _visible_curve(pills: tuple[viz.Rectangle, viz.Rectangle], bend: float) -> list[viz.Point]:
    """Return the curve between two pills of the graph, without what they cover.

    If little is left, they are close together: the whole curve.
    """
    curve = viz.curve(*pills, bend=bend)
    visible = [point for point in curve if not any(_covers(pill, point) for pill in pills)]
    return visible if len(visible) > 5 else curve


def _covers(pill: viz.Rectangle, point: viz.Point) -> bool:
    left, top, right, bottom = pill
    x, y = point
    return left - 2 <= x <= right + 2 and top - 2 <= y <= bottom + 2
