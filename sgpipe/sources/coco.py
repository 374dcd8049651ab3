"""COCO instances and captions files, and datasets in the same format, also with relations.

`read_coco` reads columns, to be labelled. `coco_relations_source` and `coco_source` read records, to be imported, which
keep all boxes in file order, as RelTR's triplets refer to them by position.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.images import image_exists
from sgpipe.records import Box, Caption, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts, error_row, require_format
from sgpipe.sources.detections import Detections, Segmentations
from sgpipe.sources.fields import FieldError


def read_coco(
    annotations: Location | str,
    captions: Location | str | None,
    *,
    dataset: str,
    split: str,
    names: Mapping[int, str] | None = None,
) -> tuple[Detections, dict[str, Any]]:
    """Read an instances file and, if given, a captions file; also return their paths and hashes.

    `names` replace the category names of the file (Objects365's have spelling errors).
    """
    detections = Detections(dataset, split)
    add: dict[str, Callable[[Any], Any]] = {"images": detections.add_image, "annotations": detections.add_box}
    add["categories"] = detections.add_category
    stream, seen = JsonStream(annotations), dict.fromkeys(add, 0)
    for key, item in stream:
        if key in add:
            seen[key] += 1
            try:
                add[key](item)
            except UserError as error:
                raise UserError(f"{annotations}: {error}") from None
    if not (seen["images"] and seen["categories"]) or (seen["annotations"] and not detections.boxes):
        lacks = "images, no categories, or no annotation with image_id, category_id and bbox"
        raise UserError(f"{annotations} is not a COCO instances file: it has no {lacks}")
    detections.categories.update({k: v for k, v in (names or {}).items() if k in detections.categories})
    origin = {"annotations": str(annotations), "captions": str(captions or ""), "annotations_sha256": stream.sha256}
    if captions is not None:
        stream = JsonStream(captions)
        for key, item in stream:
            if key == "annotations":
                detections.add_caption(item)
        if not detections.captions:
            raise UserError(f"{captions} has no caption for any annotated image: is it a captions file of this split?")
        origin["captions_sha256"] = stream.sha256
    return detections, origin


_PROBES = 200  # file names tried to choose a layout
_LAYOUTS = (2, 0, 1, 3)  # leading folders that are left out


def locate_images(detections: Detections, root: ImagePlace) -> bool:
    """Rewrite Objects365's file names to the layout of the images below `root`; False if no image is found.

    The annotations say "images/v1/patch8/objects365_v1_00420917.jpg"; the downloads unpack to "patch8/…", and mirrors
    use other layouts. The one that finds most of the first images is used; if none does, that of the downloads.
    """
    names = [name.split("/") for name in detections.file_names]
    found = [sum(image_exists(root, "/".join(name[out:])) for name in names[:_PROBES]) for out in _LAYOUTS]
    best = _LAYOUTS[found.index(max(found))]
    detections.file_names = ["/".join(name[best:] or name) for name in names]
    return max(found) > 0


NO_RELATION = "__background__"  # RelTR's relation category 0; at any other position it is a predicate like others


def coco_relations_source(annotations: Path, relations: Path | None, split: str) -> AnnotationSource:
    """Return the images of an instances file, including those without relations, with the relations of their boxes.

    `relations`: rel.json, `{split: {image id: [[subject, object, relation], …]}, "rel_categories": [names]}`. Subject
    and object are positions among the image's boxes in the order of the instances file, without crowds. None: the
    instances file has them, `"rel_annotations": [{"subject_id", "object_id", "predicate_id", "image_id"}]` with ids of
    its `annotations`, and `"rel_categories": [{"id", "name"}]`.
    """
    require_format(annotations, "coco", "coco-rel")
    instances = load_coco_instances(annotations)
    names, related = instances.predicates, instances.relations
    if relations is not None:
        require_format(relations, "triplets")
        stream = JsonStream(relations)
        names = dict(enumerate(fields.clean(str(item)) for key, item in stream if key == "rel_categories"))
        splits = {key: value for key, value in stream.scalars.items() if isinstance(value, dict)}
        if split not in splits:
            choices = " or ".join(map(fields.single_line, sorted(splits))) or "NAME"
            raise UserError(f"{relations} has no split {split!r}: pass --split {choices}")
        related = splits[split]
    elif not instances.with_relations:
        raise UserError(f"{annotations} has no rel_annotations: give its relations by --relations rel.json")
    names = {number: name for number, name in sorted(names.items()) if (number, name) != (0, NO_RELATION)}

    def read(problems: ProblemCounts) -> Iterator[Record]:
        problems.update(instances.problems)
        problems["unlisted_images"] += len(related.keys() - instances.images.keys())
        for number in instances.images:
            record = instances.record(number, "coco_rel", split, problems)
            with error_row(record):
                if record.ok and number in related and relations is None:
                    record.relations = instances.related(number, names)
                elif record.ok and number in related:
                    ends = (index for index, box in enumerate(record.objects) if not box.iscrowd)
                    rows = [fields.numbers(each, 3) for each in fields.array(related, number)]
                    record.relations = annotated.relations_of(rows, names, dict(enumerate(ends)))
            yield record

    files = {"annotations": annotations} | ({} if relations is None else {"relations": relations})
    classes = DatasetClasses(tuple(name for _, name in sorted(instances.names.items())), tuple(names.values()))
    return AnnotationSource("coco_rel", split, read, files, classes=classes, boxes="xywh")


def coco_source(annotations: Path, split: str, captions: Path | None = None) -> AnnotationSource:
    """Return COCO's objects and captions, without relations."""
    require_format(annotations, "coco", "coco-rel")
    if captions:
        require_format(captions, "captions")

    def read(problems: ProblemCounts) -> Iterator[Record]:
        instances = load_coco_instances(annotations)
        problems.update(instances.problems)
        problems["ignored_relations"] += sum(map(len, instances.relations.values())) // _PER_RELATION
        texts: dict[str, list[Caption]] = {}
        for key, item in JsonStream(captions) if captions else ():
            if key == "annotations":
                try:
                    caption = Caption(fields.text(item, "caption"))
                    texts.setdefault(fields.identifier(fields.required(item, "image_id")) or "", []).append(caption)
                except FieldError:
                    problems["malformed"] += 1
        if texts and not texts.keys() & instances.images.keys():
            raise UserError(f"{captions} has no caption for any annotated image: is it of another split?")
        problems["unlisted_captions"] += sum(len(texts[number]) for number in texts.keys() - instances.images.keys())
        for number in instances.images:
            record = instances.record(number, "coco", split, problems)
            record.captions = texts.get(number, []) if record.ok else []
            yield record

    files = {"annotations": annotations} | ({"captions": captions} if captions else {})
    return AnnotationSource("coco", split, read, files, boxes="xywh")


_PER_BOX, _PER_RELATION = 8, 4  # numbers of a box in `CocoInstances.boxes`, and of a relation


@dataclass
class CocoInstances:
    """The content of an instances file, by the image ids of the file.

    `boxes`: category, x, y, width, height, the crowd flag, the number in `segmentations` and the id (or NaN) of each,
    one after the other. `relations`: subject, object (ids of boxes), predicate and confidence (or NaN), likewise.
    """

    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # file name, width and height
    ids: dict[str, str] = field(default_factory=dict)  # `image_id` of exported files, which need not be a number
    boxes: dict[str, array[float]] = field(default_factory=dict)
    segmentations: Segmentations = field(default_factory=Segmentations)
    relations: dict[str, array[float]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    predicates: dict[int, str] = field(default_factory=dict)
    with_relations: bool = False
    broken: set[str] = field(default_factory=set)  # with an unreadable box, so that relations refer to wrong ones
    problems: ProblemCounts = field(default_factory=ProblemCounts)

    def add(self, key: str, item: Any) -> None:
        """Add an item of an array of the file. Raises FieldError: it is malformed; UserError: an id has two names."""
        match key:
            case "images":
                number = fields.identifier(fields.required(item, "id"))
                if number is None:
                    raise FieldError("'id' is not a number or text")
                if number in self.images:
                    self.problems["duplicate_images"] += 1
                    return
                self.images[number] = fields.text(item, "file_name"), *fields.size(item)
                if "image_id" in item:
                    self.ids[number] = fields.text(item, "image_id")
            case "annotations":
                values, box_id = fields.numbers(fields.required(item, "bbox"), 4), item.get("id")
                boxes = _of_image(self.boxes, item)
                box_id = box_id if isinstance(box_id, int | float) else math.nan
                mask = self.segmentations.append(item.get("segmentation"))
                boxes.extend((fields.integer(item, "category_id"), *values, bool(item.get("iscrowd")), mask, box_id))
            case "rel_annotations":
                ends = [fields.required(item, key) for key in ("subject_id", "object_id", "predicate_id")]
                values, score = fields.numbers(ends, 3), fields.confidence(item.get("confidence"))
                _of_image(self.relations, item).extend((*values, math.nan if score is None else score))
            case "categories" | "rel_categories":
                names = self.names if key == "categories" else self.predicates
                annotated.add_name(names, fields.integer(item, "id"), fields.text(item, "name"))

    def record(self, number: str, dataset: str, split: str, problems: ProblemCounts) -> Record:
        """Return an image with its objects, or an error row; `number` is its id in the file."""
        record = Record(self.ids.get(number, number), dataset, split, *self.images[number])
        with error_row(record):
            record.objects = list(self.objects(number, problems))
        return record

    def objects(self, number: str, problems: ProblemCounts) -> Iterator[Box]:
        """Yield the objects of an image. Raises FieldError: one is unreadable."""
        if number in self.broken:
            raise FieldError("one of its annotations has no valid category_id and bbox")
        values = self.boxes.get(number, array("d"))
        for start in range(0, len(values), _PER_BOX):
            category, x, y, width, height, crowd, mask, _ = values[start : start + _PER_BOX]
            if category not in self.names:
                raise FieldError(f"category_id {int(category)} of an object is not in the file's categories")
            outline = self.segmentations.read(int(mask), self.images[number][1:], problems)
            bbox = (x, y, width, height)
            yield Box(self.names[int(category)], int(category), bbox, bool(crowd), segmentation=outline)

    def related(self, number: str, predicates: Mapping[int, str]) -> list[Relation]:
        """Return the relations of an image. Raises FieldError: an end is not one of its boxes, or no such predicate."""
        ids = self.boxes.get(number, array("d"))[_PER_BOX - 1 :: _PER_BOX]
        values = iter(self.relations[number])
        rows = (
            [*ends, None if math.isnan(score) else score]
            for *ends, score in zip(*[values] * _PER_RELATION, strict=True)
        )
        return annotated.relations_of(rows, predicates, {box: index for index, box in enumerate(ids)})


def _of_image(values: dict[str, array[float]], item: Any) -> array[float]:
    return values.setdefault(fields.identifier(fields.required(item, "image_id")) or "", array("d"))


def load_coco_instances(path: Path) -> CocoInstances:
    """Read an instances file. Raises UserError, also if an id has two names."""
    instances, stream = CocoInstances(), JsonStream(path)
    for key, item in stream:
        try:
            instances.add(key, item)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except FieldError:
            instances.problems["malformed"] += 1
            if key == "annotations" and isinstance(item, Mapping):
                instances.broken.add(fields.identifier(item.get("image_id")) or "")
    instances.with_relations = "rel_annotations" in stream.arrays
    unlisted = instances.boxes.keys() - instances.images.keys()
    instances.problems["unknown_image"] = sum(len(instances.boxes[number]) // _PER_BOX for number in unlisted)
    return instances
