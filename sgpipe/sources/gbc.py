"""GBC: graphs of captions and their boxes, without relations.

A file has one graph a line, or all in an array. Boxes are parts of the image
(github.com/apple/ml-gbc: src/gbc/data/graph/gbc_graph.py, bbox/bbox.py).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream, json_lines
from sgpipe.files.locations import Location
from sgpipe.images import read_size
from sgpipe.records import Box, Caption, Record, Scope
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import NO_CATEGORY_ID, AnnotationSource, ProblemCounts
from sgpipe.sources.fields import FieldError
from sgpipe.sources.plugin import Source

_SIDES = ("left", "top", "right", "bottom")
_SCOPES: tuple[Scope, ...] = ("image", "box", "pair")  # by how many boxes a caption is about


def gbc_source(annotations: Location, images: ImagePlace, split: str) -> AnnotationSource:
    """Return GBC's graphs.

    Entities are objects named by the edge that leads to them. `descs` are captions: those of
    entities of the box, of relations of the pair, others of the image; those of compositions are
    left out.
    """

    def read(problems: ProblemCounts) -> Iterator[Record]:
        file_names = set[int]()  # hashes: there may be millions

        def fill(record: Record, item: object) -> None:
            has_path = bool(fields.mapping(item).get("img_path"))
            number = hash(record.file_name)
            if number in file_names and not has_path:
                raise FieldError(
                    f"an earlier image has the file name {record.file_name}, too: set img_path"
                )
            file_names.add(number)
            record.width, record.height = _image_size(item, images, record.file_name)
            vertices = fields.array(item, "vertices")
            indices = _add_entities(record, vertices, problems)
            record.captions = _captions(vertices, indices, problems)

        items = _iter_items(annotations)
        return annotated.read_records(items, lambda item: _record(item, split), fill, problems)

    return AnnotationSource("gbc", split, read, {"annotations": annotations})


def _iter_items(annotations: Location) -> Iterator[object]:
    if ".jsonl" in annotations.name:
        return json_lines(annotations)
    return (item for _, item in JsonStream(annotations))


def _record(item: object, split: str) -> Record:
    """Return the record of an image, by its path or its address on the web.

    Raises:
        FieldError: there is neither, or there are no vertices.
    """
    fields.array(item, "vertices")
    path = fields.mapping(item).get("img_path")
    if path:
        # Names of files repeat in other folders.
        file_name = fields.text(item, "img_path")
        image_id = file_name.removesuffix(PurePosixPath(file_name).suffix)
    else:
        image_id = fields.text(item, "img_url")
        file_name = image_id.partition("?")[0].rpartition("/")[2]
    return Record(image_id, "gbc", split, file_name, 0, 0)


def _image_size(item: object, images: ImagePlace, file_name: str) -> tuple[int, int]:
    size = fields.mapping(item).get("img_size") or [0, 0]
    width, height = map(fields.side, fields.numbers(size, 2))
    if width and height:
        return width, height
    return read_size(images, file_name)


def _add_entities(
    record: Record, vertices: list[object], problems: ProblemCounts
) -> dict[str, int]:
    """Add the entities of a graph as objects; return their indices by vertex id.

    Raises:
        FieldError: a value is missing or malformed.
    """
    indices: dict[str, int] = {}
    for vertex in vertices:
        if fields.required(vertex, "label") != "entity":
            continue
        box = _read_box(vertex, record)
        if not box.category.strip():
            problems["nameless"] += 1
            continue
        indices[fields.text(vertex, "vertex_id")] = len(record.objects)
        record.objects.append(box)
    return indices


def _read_box(vertex: object, record: Record) -> Box:
    """Return an entity as an object, named by the first edge that leads to it."""
    bbox = fields.required(vertex, "bbox")
    edges = fields.array(vertex, "in_edges", default=[])
    x, y, width, height = fields.corners([fields.required(bbox, side) for side in _SIDES])
    phrase = fields.text(vertex, "vertex_id")
    if edges:
        phrase = fields.text(edges[0], "text")
    name = re.sub(r"[ _]\d+$", "", phrase) or phrase  # of several, they are numbered
    return Box(
        name,
        NO_CATEGORY_ID,
        (x * record.width, y * record.height, width * record.width, height * record.height),
        origin="grounded",
        score=fields.confidence(fields.mapping(bbox).get("confidence")),
        phrase=phrase,
    )


def _captions(
    vertices: list[object], indices: Mapping[str, int], problems: ProblemCounts
) -> list[Caption]:
    """Return the captions of a graph, whose entities have these indices.

    Raises:
        FieldError: a value is missing or malformed.
    """
    captions: list[Caption] = []
    for vertex in vertices:
        texts = [fields.text(caption, "text") for caption in fields.array(vertex, "descs")]
        boxes = _boxes_of(vertex, indices)
        if fields.required(vertex, "label") == "composition":
            problems["compositions"] += len(texts)
        elif boxes is not None:
            scope = _SCOPES[len(boxes)]
            captions += [Caption(text, scope, list(boxes)) for text in texts]
    return captions


def _boxes_of(vertex: object, indices: Mapping[str, int]) -> list[int] | None:
    """Return the objects that the captions of a vertex are about, none: the image.

    None: an object that was left out.
    """
    edges = fields.array(vertex, "out_edges", default=[])
    targets = [fields.text(edge, "target") for edge in edges]
    label = fields.required(vertex, "label")
    if label == "entity":
        index = indices.get(fields.text(vertex, "vertex_id"))
        return None if index is None else [index]
    ends = [indices[target] for target in targets if target in indices]
    return ends if label == "relation" and len(ends) == 2 else []


GBC = Source("gbc", open=gbc_source)
