"""GBC: graphs of captions and their boxes, without relations.

A file has one graph a line, or all in an array. Boxes are parts of the image
(github.com/apple/ml-gbc: src/gbc/data/graph/gbc_graph.py, bbox/bbox.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream, json_lines
from sgpipe.files.locations import Location
from sgpipe.images import read_size
from sgpipe.records import Box, Caption, Record, Scope
from sgpipe.sources import fields
from sgpipe.sources.annotated import NO_CATEGORY_ID, AnnotationSource, ProblemCounts, error_row
from sgpipe.sources.fields import FieldError

_SIDES = ("left", "top", "right", "bottom")


def gbc_source(annotations: Location, images: ImagePlace, split: str) -> AnnotationSource:
    """Return GBC's graphs.

    Entities are objects named by the edge that leads to them. `descs` are captions: those of
    entities of the box, of relations of the pair, others of the image; those of compositions are
    left out.
    """

    def read(problems: ProblemCounts) -> Iterator[Record]:
        file_names = set[int]()  # hashes: there may be millions
        for item in _iter_items(annotations):
            address = _image_address(item)
            if address is None or not isinstance(item.get("vertices"), list):
                problems["malformed"] += 1
                continue
            address = fields.clean(address)
            if item.get("img_path"):
                # Names of files repeat in other folders.
                image_id = address.removesuffix(PurePosixPath(address).suffix)
                file_name = address
            else:
                image_id = address
                file_name = address.partition("?")[0].rpartition("/")[2]
            record = Record(image_id, "gbc", split, file_name, 0, 0)
            with error_row(record):
                if hash(file_name) in file_names and not item.get("img_path"):
                    raise FieldError(
                        f"an earlier image has the file name {file_name}, too: set img_path"
                    )
                file_names.add(hash(file_name))
                record.width, record.height = _image_size(item, images, file_name)
                indices = _add_entities(record, item["vertices"], problems)
                _add_captions(record, item["vertices"], indices, problems)
            if not record.ok:
                record.captions = []
            yield record

    return AnnotationSource("gbc", split, read, {"annotations": annotations})


def _iter_items(annotations: Location) -> Iterator[Any]:
    if ".jsonl" in annotations.name:
        yield from json_lines(annotations)
    else:
        for _, item in JsonStream(annotations):
            yield item


def _image_address(item: Any) -> str | None:
    """Return the path of an image, or its address on the web."""
    if not isinstance(item, Mapping):
        return None
    address = item.get("img_path") or item.get("img_url")
    return address if isinstance(address, str) else None


def _image_size(item: Mapping[str, Any], images: ImagePlace, file_name: str) -> tuple[int, int]:
    width, height = map(fields.side, fields.numbers(item.get("img_size") or [0, 0], 2))
    if width and height:
        return width, height
    return read_size(images, file_name)


def _add_entities(
    record: Record, vertices: Sequence[Any], problems: ProblemCounts
) -> dict[str, int]:
    """Add the entities of a graph as objects; return their indices by vertex id.

    Raises:
        FieldError: a value is missing or malformed.
    """
    indices: dict[str, int] = {}
    for vertex in vertices:
        if fields.required(vertex, "label") != "entity":
            continue
        bbox = fields.required(vertex, "bbox")
        edges = fields.array({"in_edges": [], **vertex}, "in_edges")
        x, y, width, height = fields.corners([fields.required(bbox, side) for side in _SIDES])
        vertex_id = fields.text(vertex, "vertex_id")
        phrase = fields.text(edges[0], "text") if edges else vertex_id
        name = re.sub(r"[ _]\d+$", "", phrase) or phrase  # of several, they are numbered
        score = fields.confidence(bbox.get("confidence"))
        if not name.strip():
            problems["nameless"] += 1
            continue
        pixels = (
            x * record.width,
            y * record.height,
            width * record.width,
            height * record.height,
        )
        indices[vertex_id] = len(record.objects)
        record.objects.append(
            Box(name, NO_CATEGORY_ID, pixels, origin="grounded", score=score, phrase=phrase)
        )
    return indices


def _add_captions(
    record: Record,
    vertices: Sequence[Mapping[str, Any]],
    indices: Mapping[str, int],
    problems: ProblemCounts,
) -> None:
    """Add the captions of a graph, whose entities have these indices.

    Raises:
        FieldError: a value is missing or malformed.
    """
    for vertex in vertices:
        texts = [fields.text(caption, "text") for caption in fields.array(vertex, "descs")]
        edges = fields.array({"out_edges": [], **vertex}, "out_edges")
        targets = [fields.text(edge, "target") for edge in edges]
        label = vertex["label"]
        if label == "composition":
            problems["compositions"] += len(texts)
            continue
        if label == "entity" and vertex["vertex_id"] not in indices:
            continue
        ends = [indices[target] for target in targets if target in indices]
        scope: Scope = "image"
        boxes: list[int] = []
        if label == "entity":
            scope = "box"
            boxes = [indices[vertex["vertex_id"]]]
        elif label == "relation" and len(ends) == 2:
            scope = "pair"
            boxes = ends
        record.captions += [Caption(text, scope, list(boxes)) for text in texts]
