"""Random scene graphs, and graphs in the forms in which SVG and GBC are published."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as coco

from sgpipe.export.run import export_run
from sgpipe.records import Attribute, Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource
from tests.sgpipe.export.runs import imported
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

WIDTH = 12
HEIGHT = 8
NAMES = ("person", "dog", "grass", "n" * 300, 'ü "q", \u2028')


def rle(mask: np.ndarray) -> dict[str, Any]:
    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


@st.composite
def boxes(draw: Callable[..., Any]) -> Box:
    x, y = (draw(st.integers(0, 4 * HEIGHT - 2)) / 4 for _ in "xy")
    w, h = (draw(st.integers(1, int(4 * (HEIGHT - at)))) / 4 for at in (x, y))
    outline = [x, y, x + w, y, x + w, y + h]
    mask = np.array(
        draw(st.lists(st.booleans(), min_size=WIDTH * HEIGHT, max_size=WIDTH * HEIGHT))
    ).reshape(HEIGHT, -1)
    segmentation = draw(st.sampled_from([None, rle(mask), [outline], [outline, outline]]))
    crowd = draw(st.booleans())
    attributes = list(
        map(Attribute, draw(st.lists(st.sampled_from(["red", "a" * 300, "é"]), max_size=3)))
    )
    optional = {"attributes": attributes, "segmentation": segmentation and json.dumps(segmentation)}
    return Box(draw(st.sampled_from(NAMES)), 0, (x, y, w, h), crowd, **optional)


@st.composite
def graphs(draw: Callable[..., Any], splits: tuple[str, ...]) -> list[Record]:
    """Images of random objects and relations, also from an object to itself; confidences are
    none.
    """
    drawn = []
    for number in range(draw(st.integers(1, 4))):
        name = f"folder {number}/{number}.jpg"
        record = Record(str(number), "psg", draw(st.sampled_from(splits)), name, WIDTH, HEIGHT)
        record.objects = draw(st.lists(boxes(), max_size=4))
        if record.objects:
            ends = st.integers(0, len(record.objects) - 1)
            relation = st.builds(Relation, ends, ends, st.sampled_from(["on", "p" * 300, "über"]))
            record.relations = draw(st.lists(relation, max_size=4))
        drawn.append(record)
    return drawn


def round_trip(
    originals: list[Record], form: str, source: Callable[[Path, str], AnnotationSource]
) -> list[Record]:
    """The records of each split, exported and imported again."""
    with TemporaryDirectory() as folder:
        run = make_shards(Path(folder) / "run", sorted(originals, key=lambda record: record.split))
        out = export_run(run, form, Path(folder) / "out").root
        splits = sorted(set(values_of(originals, "split")))
        return [
            r for split in splits for r in imported(source(out, split), out, Path(folder) / split)
        ]


def bare(records: list[Record], **changes: object) -> list[Record]:
    """Records by split and id, with other values in their objects: what a form does not hold."""
    stripped = [
        replace(record, objects=[replace(box, category_id=0, **changes) for box in record.objects])
        for record in records
    ]
    return sorted(stripped, key=lambda record: (record.split, record.image_id))


def svg_form(records: list[Record]) -> dict[str, Any]:
    """Objects by ids that count down, so that they are not positions."""
    form = {}
    for record in records:
        things: dict[str, Any] = {}
        for index, box in enumerate(record.objects):
            x, y, w, h = box.bbox
            stated = [relation for relation in record.relations if relation.subject == index]
            things[str(100 - index)] = {
                "name": box.category,
                "bbox": [x, y, x + w, y + h],
                "attributes": values_of(box.attributes, "name"),
                "segmentation": box.segmentation and json.loads(box.segmentation),
                "relations": [
                    {"object": str(100 - item.object), "name": item.predicate} for item in stated
                ],
            }
        form[record.image_id] = {"width": record.width, "height": record.height, "objects": things}
    return form


def vertex(
    name: str, label: str, *texts: str, into: str | None = None, to: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "vertex_id": name,
        "bbox": {"left": 0.25, "top": 0.5, "right": 0.75, "bottom": 1.0, "confidence": 0.75},
        "label": label,
        "descs": [{"text": text, "label": "short"} for text in texts],
        "in_edges": [] if into is None else [{"source": "", "text": into, "target": name}],
        "out_edges": [{"source": name, "text": target, "target": target} for target in to],
    }


GRAPH = {
    "vertices": [
        vertex("", "image", "A horse and trees.", to=("horse", "trees", "[horse|trees]")),
        vertex("horse", "entity", "A brown horse.", into="brown horse"),
        vertex(
            "trees",
            "composition",
            "Tree 1 is left of tree 2.",
            into="trees",
            to=("trees_0", "trees_1"),
        ),
        vertex("trees_0", "entity", into="tree 1"),
        vertex("trees_1", "entity", into="tree 2"),
        vertex(
            "[horse|trees_0]", "relation", "The horse is under a tree.", to=("horse", "trees_0")
        ),
        vertex("[horse|trees]", "relation", "Trees are behind it.", to=("horse", "trees")),
    ],
    "img_path": "wiki/horses.jpg",
    "img_url": None,
    "img_size": [80, 40],
}
