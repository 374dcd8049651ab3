"""Sample images of a run: cards of a page, with the scene graph of each, and the contact sheet, one PNG."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageDraw

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Record, Relation, from_table
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import write_result
from sgpipe.storage.shards import embedded_images
from sgpipe.viz import draw_relations as viz
from sgpipe.viz.draw_relations import polyline

Values: TypeAlias = dict[str, Any]
Nodes: TypeAlias = dict[int, Values]
Samples: TypeAlias = Iterable[tuple[Record, Image.Image | None]]

_SPREAD = """
    with usable as (
        select images.image, coalesce(certainty >= ?::float, false) as has
        from images left join related_images using (image) where status = 'ok'),
    tiles as (select *, ntile(?) over (partition by has order by image) as tile from usable)
    select image from tiles
    qualify row_number() over (partition by has, tile order by image) = 1
    order by not has, tile limit ?
"""


def open_samples(
    database: Database,
    count: int,
    threshold: float,
    images: ImagePlace | None = None,
    calibration: Calibration | None = None,
) -> Iterator[tuple[Record, Image.Image | None]]:
    """Yield `count` records, evenly spaced among those with a relation of at least `threshold`, and their images.

    If there are too few of these, others are added, but no error rows. An image that cannot be opened is None.
    """
    [(rows,)] = database.rows("select count(*) from images")
    count = min(count, max(rows, 1))
    numbers = sorted(image for (image,) in database.rows(_SPREAD, [threshold, count, count]))
    for table in database.read_rows(numbers):
        [record], [embedded] = from_table(table), embedded_images(table)
        if calibration is not None:
            for relation in record.relations:
                if relation.confidence is not None:
                    relation.confidence = float(calibration.probabilities(relation.confidence))
        image = None
        with suppress(ImageError):
            image = open_row_image(database.image_roots, record, embedded, images)
        yield record, image


_CARD, _GAP, _TITLE = 480, 16, 26
_SHEET_RELATIONS = 8
_PAPER, _INK = "#e9ebee", "#1a1a1a"


def write_sheet(database: Database, file: Path, samples: Samples, threshold: float = 0.2) -> tuple[int, int]:
    """Draw sample images with their relations of at least `threshold` into one PNG.

    Returns the number of images, and how many of them could not be opened. Raises UserError: the run has no image.
    """
    cards, lost = [], 0
    for record, opened in samples:
        lost += opened is None
        cards.append(viz.draw_card(opened, record, viz.shown(record.relations, threshold, _SHEET_RELATIONS), _CARD))
    if not cards:
        raise UserError(f"{database.root} has no image to draw")
    title = f"{database.run.get('name') or database.root.name}: relations of {database.measure} {threshold:.2f} or more"
    columns = min(len(cards), max(1, round(math.sqrt(len(cards)))))
    bottoms, corners = [_TITLE + 2 * _GAP] * columns, []
    for card in cards:  # each is added to the shortest column so far
        column = bottoms.index(min(bottoms))
        corners.append((_GAP + column * (_CARD + _GAP), bottoms[column]))
        bottoms[column] += card.height + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_CARD + _GAP), max(bottoms)), _PAPER)
    letters = viz.font(_TITLE * 0.8)
    text = viz.fit(title, letters, sheet.width - 2 * _GAP)
    ImageDraw.Draw(sheet).text((_GAP, _GAP + _TITLE / 2), text, fill=_INK, font=letters, anchor="lm")
    for card, corner in zip(cards, corners, strict=True):
        sheet.paste(card, corner)
    with write_result(file) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return len(cards), lost


WIDTH = 480  # of an image and of a graph, in units of their SVG
CARD_RELATIONS, _CAPTIONS = 10, 5
_TEXT, _PILL = 14, 24  # the browser's font may be slightly wider than the one measured here
_QUALITY = 76


def make_card(record: Record, image: Image.Image | None, relations: Sequence[Relation]) -> Values:
    """Return an image with these relations, without those whose objects do not exist, as templates and scripts take it.

    `image` is a data URI, or None if the image cannot be opened. `nodes` are objects: the box and the tag with its name
    on the image, and its pill in the graph. `edges` are relations: curves with arrow heads on both, and a text in the
    graph. All are in units of SVGs that are `WIDTH` wide.
    """
    scale = WIDTH / max(record.width, 1)
    height = min(max(record.height * scale, 60), 2 * WIDTH)
    existing = range(len(record.objects))
    relations = [relation for relation in relations if relation.subject in existing and relation.object in existing]
    uri = None
    if image is not None:
        small, file = image.convert("RGB"), BytesIO()
        small.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
        small.save(file, "JPEG", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    nodes, graph_height = _nodes(record, relations, scale, height)
    return {
        **{"image_id": record.image_id, "split": record.split, "file_name": record.file_name, "image": uri},
        **{"height": height, "graph_height": graph_height, "nodes": list(nodes.values())},
        "edges": _edges(relations, nodes, graph_height),
        "relations": len(record.relations),
        "captions": [caption.text for caption in record.captions[:_CAPTIONS]],
    }


def _nodes(record: Record, relations: Sequence[Relation], scale: float, height: float) -> tuple[Nodes, float]:
    """Return the objects of the relations by index, on an ellipse in the order of their angles, and its height."""
    used = viz.drawn_objects(record, relations)
    if not relations:
        used = [index for index in used if not record.objects[index].is_nothing]
    boxes = {index: viz.corners(record.objects[index].bbox, scale, (WIDTH, height)) for index in used}
    middles = {index: viz.middle(box) for index, box in boxes.items()}
    centre = [sum(point[axis] for point in middles.values()) / max(len(middles), 1) for axis in (0, 1)]
    order = sorted(middles, key=lambda i: math.atan2(middles[i][1] - centre[1], middles[i][0] - centre[0]))
    names, letters = viz.object_names(record.objects), viz.font(_TEXT)
    graph_height = 110.0 + 34 * max(len(used) - 1, 0)
    room = viz.TextPlacer(WIDTH, height, list(boxes.values()))
    nodes = {}
    for index in used:
        name = viz.fit(names[index], letters, WIDTH / 3)
        width = letters.getlength(name) + 12
        left, top, right, bottom = boxes[index]
        spots = [
            (x, y) for y in (top - 9, bottom + 9, top + 9, bottom - 9) for x in (left + width / 2, right - width / 2)
        ]
        angle = -math.pi + 2 * math.pi * order.index(index) / len(order)
        x, y = WIDTH / 2 + 0.36 * WIDTH * math.cos(angle), graph_height / 2 + (graph_height / 2 - 20) * math.sin(angle)
        x = min(max(x, width / 2 + 1), WIDTH - width / 2 - 1)
        pill = (x - width / 2, y - _PILL / 2, x + width / 2, y + _PILL / 2)
        node: Values = {"index": index, "name": name, "category": record.objects[index].category, "box": boxes[index]}
        nodes[index] = node | {"colour": viz.colour_of(index), "tag": room.place((width, 18), spots), "pill": pill}
    return nodes, graph_height


def _edges(relations: Sequence[Relation], nodes: Nodes, height: float) -> list[Values]:
    letters = viz.font(_TEXT)
    room = viz.TextPlacer(WIDTH, height, taken=[node["pill"] for node in nodes.values()])
    between, edges = Counter[tuple[int, int]](), []
    for relation in relations:
        subject, object_ = nodes[relation.subject], nodes[relation.object]
        pair, pills = (relation.subject, relation.object), (subject["pill"], object_["pill"])
        linked = viz.curve(*pills, bend=0.2 + 0.16 * between[pair])
        between[pair] += 1
        seen = [p for p in linked if not any(a - 2 <= p[0] <= c + 2 and b - 2 <= p[1] <= d + 2 for a, b, c, d in pills)]
        linked = seen if len(seen) > 5 else linked
        text = viz.fit(relation.predicate, letters, WIDTH / 2)
        size = (letters.getlength(text) + 12, _TEXT + 4.0)
        same = relation.subject == relation.object or not any(object_["box"])
        over = [viz.middle(subject["box"])] if same else viz.curve(subject["box"], object_["box"], 24)
        heads = ["" if same else polyline(viz.arrow_head(points, size)) for points, size in ((over, 13), (linked, 11))]
        edge: Values = {"subject": subject, "object": object_, "predicate": relation.predicate}
        edge |= {"confidence": relation.confidence, "on_image": polyline(over), "image_head": heads[0]}
        edge |= {"in_graph": polyline(linked), "graph_head": heads[1]}
        edges.append(edge | {"text_box": room.place(size, viz.along(linked, size)), "text": text})
    return edges
