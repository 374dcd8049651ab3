"""COCO instances with a file of relation triplets, as RelTR keeps Visual Genome and Open Images."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource, ClassLists, ProblemCounts, fail
from sgpipe.sources.fields import FieldError, as_id, clean, line, numbers, required, side, whole, word
from sgpipe.sources.forms import COCO_INSTANCES, RELATION_TRIPLETS, require
from sgpipe.sources.json_stream import JsonStream

_NO_RELATION = "__background__"  # RelTR's first relation category
_PER_BOX = 5


@dataclass
class _Instances:
    """What an instances file says.

    `boxes` maps an image to category, x, y, width, height of each of its boxes. Of `broken` images one box cannot
    be read, so that relations may not mean the boxes that they count.
    """

    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    boxes: dict[str, array[float]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    problems: ProblemCounts = field(default_factory=ProblemCounts)


@dataclass(frozen=True)
class CocoRelations:
    """Where the instances and the relations lie.

    Attributes:
        relations: rel.json, `{split: {image id: [[subject, object, relation], ...]}, "rel_categories": [names]}`.
            Subject and object count the image's boxes in the order of the instances file, without crowds.
        split: which of the relations' splits the instances belong to.
    """

    annotations: Path
    relations: Path
    split: str

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or another than it should be."""
        require(self.annotations, COCO_INSTANCES)
        require(self.relations, RELATION_TRIPLETS)
        names, _ = self._triplets
        used = tuple(name for name in names if name != _NO_RELATION)
        return AnnotationSource(
            dataset="coco_rel",
            split=self.split,
            read=self.records,
            files={"annotations": self.annotations, "relations": self.relations},
            classes=ClassLists(tuple(name for _, name in sorted(self._instances.names.items())), used),
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """The images in file order; those without relations, too."""
        names, triplets = self._triplets
        instances = self._instances
        problems.update(instances.problems)
        problems["unlisted_images"] += len(triplets.keys() - instances.images.keys())
        for image_id, (file_name, width, height) in instances.images.items():
            record = Record(image_id, "coco_rel", self.split, file_name, width, height)
            try:
                record.objects = _objects(instances, image_id)
                record.relations = _relations(triplets.get(image_id, []), names, len(record.objects))
            except FieldError as error:
                fail(record, str(error))
            yield record

    @cached_property
    def _instances(self) -> _Instances:
        return _load_instances(self.annotations)

    @cached_property
    def _triplets(self) -> tuple[list[str], Mapping[str, Any]]:
        """The relations' names, and those of the split by image id."""
        stream = JsonStream(self.relations)
        names = [clean(str(item)) for key, item in stream if key == "rel_categories"]
        splits = {key: value for key, value in stream.scalars.items() if isinstance(value, dict)}
        if self.split not in splits:
            there = " or ".join(map(line, sorted(splits))) or "NAME"
            raise UserError(f"{self.relations} has no split {self.split!r}: say --split {there}")
        return names, splits[self.split]


def _load_instances(path: Path) -> _Instances:
    instances = _Instances()
    add = {"images": _add_image, "annotations": _add_box, "categories": _add_category}
    for key, item in JsonStream(path):
        if key in add:
            try:
                add[key](instances, item)
            except FieldError:
                instances.problems["malformed"] += 1
                if key == "annotations" and isinstance(item, Mapping):
                    instances.broken.add(as_id(item.get("image_id")) or "")
    return instances


def _add_image(instances: _Instances, item: Any) -> None:
    image_id = as_id(required(item, "id"))
    if image_id is None:
        raise FieldError("'id' is not an image id")
    instances.images[image_id] = word(item, "file_name"), side(item.get("width")), side(item.get("height"))


def _add_box(instances: _Instances, item: Any) -> None:
    if isinstance(item, Mapping) and item.get("iscrowd"):
        return
    values = numbers(required(item, "bbox"), 4)
    boxes = instances.boxes.setdefault(as_id(required(item, "image_id")) or "", array("d"))
    boxes.extend((whole(item, "category_id"), *values))


def _add_category(instances: _Instances, item: Any) -> None:
    instances.names[whole(item, "id")] = line(word(item, "name"))


def _objects(instances: _Instances, image_id: str) -> list[Box]:
    if image_id in instances.broken:
        raise FieldError("one of its annotations has no usable category_id and bbox")
    values = instances.boxes.get(image_id, array("d"))
    objects = []
    for start in range(0, len(values), _PER_BOX):
        category, x, y, width, height = values[start : start + _PER_BOX]
        if category not in instances.names:
            raise FieldError(f"category_id {int(category)} of an object is not among the file's categories")
        objects.append(Box(instances.names[int(category)], int(category), (x, y, width, height)))
    return objects


def _relations(triplets: Any, names: list[str], objects: int) -> list[Relation]:
    relations = []
    for triplet in triplets if isinstance(triplets, list) else [triplets]:
        subject, object_, label = numbers(triplet, 3)
        if subject not in range(objects) or object_ not in range(objects):
            raise FieldError(f"relation {triplet} points to none of {objects} objects")
        if label not in range(len(names)) or names[int(label)] == _NO_RELATION:
            raise FieldError(f"label {label:g} of a relation is none of the file's rel_categories")
        relations.append(Relation(int(subject), int(object_), names[int(label)]))
    return relations
