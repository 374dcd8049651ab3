"""The scene graphs of SVG (Synthetic Visual Genome).

A file is `{image id: {"width", "height", "objects": {id: object}}}`. An object has `name`, `bbox`
(xyxy), `attributes`, `segmentation` and `relations`, [{"object": id, "name"}]
(github.com/jamespark3922/SyntheticVG: svg/datasets/sg.py).
"""

from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.records import Attribute, Box, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import NO_CATEGORY_ID, AnnotationSource, ProblemCounts
from sgpipe.sources.plugin import Source

_Graph: TypeAlias = tuple[str, object]  # the id of an image, and what the file says of it


def svg_source(annotations: Location, split: str) -> AnnotationSource:
    """Return SVG's scene graphs."""

    def start(graph: _Graph) -> Record:
        key, item = graph
        fields.members(item, "objects")
        image_id = fields.clean(key)
        return Record(image_id, "svg", split, f"{image_id}.jpg", *fields.size(item))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        fill = partial(_add_objects, problems)
        return annotated.read_records(JsonStream(annotations), start, fill, problems)

    return AnnotationSource("svg", split, read, {"annotations": annotations}, boxes="xyxy")


def _add_objects(problems: ProblemCounts, record: Record, graph: _Graph) -> None:
    """Add objects with their relations.

    Raises:
        FieldError: a value is missing or malformed.
    """
    objects = fields.members(graph[1], "objects")
    indices = {object_id: index for index, object_id in enumerate(objects)}
    for subject, entry in enumerate(objects.values()):
        record.objects.append(_read_box(entry, record, problems))
        for relation in _listed(entry, "relations"):
            object_id = str(fields.mapping(relation).get("object"))
            if object_id not in indices:
                problems["unknown_object"] += 1
                continue
            predicate = fields.text(relation, "name")
            record.relations.append(Relation(subject, indices[object_id], predicate))
    annotated.drop_nameless(record, problems)


def _read_box(entry: object, record: Record, problems: ProblemCounts) -> Box:
    bbox = fields.corners(fields.required(entry, "bbox"))
    box = Box(fields.text(entry, "name"), NO_CATEGORY_ID, bbox)
    words = _listed(entry, "attributes")
    box.attributes = [Attribute(fields.clean(str(word))) for word in words]
    outline = fields.mapping(entry).get("segmentation")
    box.segmentation = fields.segmentation(outline, record.width, record.height, problems)
    return box


def _listed(entry: object, key: str) -> list[object]:
    """Return a list that may be missing.

    Raises:
        FieldError: it is not a list.
    """
    return fields.array({key: fields.mapping(entry).get(key) or []}, key)


SVG = Source("svg", open=svg_source)
