"""The scene graphs of SVG (Synthetic Visual Genome).

A file is `{image id: {"width", "height", "objects": {id: object}}}`. An object has `name`, `bbox`
(xyxy), `attributes`, `segmentation` and `relations`, [{"object": id, "name"}]
(github.com/jamespark3922/SyntheticVG: svg/datasets/sg.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.records import Attribute, Box, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import NO_CATEGORY_ID, AnnotationSource, ProblemCounts, error_row


def svg_source(annotations: Location, split: str) -> AnnotationSource:
    """Return SVG's scene graphs."""

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for key, item in JsonStream(annotations):
            objects = item.get("objects") if isinstance(item, Mapping) else None
            if not isinstance(objects, Mapping):
                problems["malformed"] += 1
                continue
            image_id = fields.clean(key)
            record = Record(image_id, "svg", split, f"{image_id}.jpg", *fields.size(item))
            with error_row(record):
                _add_objects(record, objects, problems)
                annotated.drop_nameless(record, problems)
            yield record

    return AnnotationSource("svg", split, read, {"annotations": annotations}, boxes="xyxy")


def _add_objects(record: Record, objects: Mapping[str, Any], problems: ProblemCounts) -> None:
    """Add objects with their relations. Raises FieldError: a value is missing or malformed."""
    indices = {object_id: index for index, object_id in enumerate(objects)}
    for subject, entry in enumerate(objects.values()):
        bbox = fields.corners(fields.required(entry, "bbox"))
        box = Box(fields.text(entry, "name"), NO_CATEGORY_ID, bbox)
        words = _listed(entry, "attributes")
        box.attributes = [Attribute(fields.clean(str(word))) for word in words]
        box.segmentation = fields.segmentation(
            entry.get("segmentation"), record.width, record.height, problems
        )
        record.objects.append(box)
        for relation in _listed(entry, "relations"):
            object_id = str(relation.get("object")) if isinstance(relation, Mapping) else ""
            if object_id not in indices:
                problems["unknown_object"] += 1
                continue
            predicate = fields.text(relation, "name")
            record.relations.append(Relation(subject, indices[object_id], predicate))


def _listed(entry: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list that may be missing. Raises FieldError: it is not a list."""
    return fields.array({key: entry.get(key) or []}, key)
