"""COCO instances and captions files, and datasets in the same format, also with relations.

`read_coco` reads columns, to be labelled. `coco_relations_source` and `coco_source` read records,
to be imported, which keep all boxes in file order, as RelTR's triplets refer to them by position.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.images import image_exists
from sgpipe.records import Box, Caption, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    ProblemCounts,
    error_row,
    require_format,
)
from sgpipe.sources.detections import Detections, Origin
from sgpipe.sources.fields import FieldError, JsonObject
from sgpipe.sources.plugin import Source

_Add: TypeAlias = Callable[[object], object]

# RelTR's relation category 0; at any other position it is a predicate like others
NO_RELATION = "__background__"
_PROBES = 200  # file names tried to choose a layout
_LAYOUTS = (2, 0, 1, 3)  # leading folders that are left out
_PER_RELATION = 4  # numbers of one in `CocoInstances.relations`


def read_coco(
    annotations: Location | str, captions: Location | str | None, *, dataset: str, split: str
) -> tuple[Detections, Origin]:
    """Read an instances file and, if given, a captions file; also return their paths and hashes."""
    detections = Detections(dataset, split)
    origin = Origin(
        annotations=str(annotations),
        captions=str(captions or ""),
        annotations_sha256=_read_instances(annotations, detections).sha256,
    )
    if captions is not None:
        origin["captions_sha256"] = _read_captions(captions, detections).sha256
    return detections, origin


def _read_instances(path: Location | str, detections: Detections, **further: _Add) -> JsonStream:
    """Read a file.

    Args:
        further: what adds the items of other arrays.

    Raises:
        UserError: it is another file, or an id has two names.
    """
    add: dict[str, _Add] = {
        "images": detections.add_image,
        "annotations": detections.add_box,
        "categories": detections.add_category,
        **further,
    }
    stream = JsonStream(path)
    seen = dict.fromkeys(add, 0)
    for key, item in stream:
        if key in add:
            seen[key] += 1
            try:
                detections.attempt(add[key], item)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    lacks_boxes = seen["annotations"] and not detections.boxes
    if not (seen["images"] and seen["categories"]) or lacks_boxes:
        lacks = "images, no categories, or no annotation with image_id, category_id and bbox"
        raise UserError(f"{path} is not a COCO instances file: it has no {lacks}")
    return stream


def _read_captions(path: Location | str, detections: Detections) -> JsonStream:
    stream = JsonStream(path)
    for key, item in stream:
        if key == "annotations":
            detections.attempt(detections.add_caption, item)
    if not detections.captions:
        raise UserError(
            f"{path} has no caption for any annotated image: is it a captions file of this split?"
        )
    return stream


def locate_images(detections: Detections, root: ImagePlace) -> bool:
    """Rewrite Objects365's file names to the layout of the images below `root`.

    The annotations say "images/v1/patch8/objects365_v1_00420917.jpg"; the downloads unpack to
    "patch8/…", and mirrors use other layouts. The one that finds most of the first images is used;
    if none does, that of the downloads.

    Returns:
        Whether an image was found.
    """
    names = [name.split("/") for name in detections.file_names]

    def count_images(layout: int) -> int:
        return sum(image_exists(root, "/".join(name[layout:])) for name in names[:_PROBES])

    images = {layout: count_images(layout) for layout in _LAYOUTS}
    best = max(_LAYOUTS, key=images.__getitem__)
    detections.file_names = ["/".join(name[best:] or name) for name in names]
    return images[best] > 0


def coco_relations_source(
    annotations: Location, relations: Location | None, split: str
) -> AnnotationSource:
    """Return the images of an instances file, including those without relations, with the relations
    of their boxes.

    Args:
        relations: rel.json, `{split: {image id: [[subject, object, relation], …]},
            "rel_categories": [names]}`. Subject and object are positions among the image's boxes in
            the order of the instances file, without crowds. None: the instances file has them,
            `"rel_annotations": [{"subject_id", "object_id", "predicate_id", "image_id"}]` with ids
            of its `annotations`, and `"rel_categories": [{"id", "name"}]`.
    """
    require_format(annotations, "coco", "coco-rel")
    instances = load_coco_instances(annotations)
    names = instances.predicates
    related: Mapping[str, object] = instances.relations
    if relations is not None:
        names, related = _read_triplets(relations, split)
    elif not instances.with_relations or (related and not names):
        raise UserError(
            f"{annotations} has no rel_annotations or no rel_categories: give its relations by"
            " --relations rel.json"
        )
    predicates = dict(sorted(names.items()))
    if predicates.get(0) == NO_RELATION:
        del predicates[0]

    def relations_of(number: str, record: Record) -> list[Relation]:
        if relations is None:
            return instances.related(number, instances.boxes_of(number), predicates)
        ends = (index for index, box in enumerate(record.objects) if not box.iscrowd)
        triplets = [fields.numbers(triplet, 3) for triplet in fields.array(related, number)]
        return annotated.relations_of(triplets, predicates, dict(enumerate(ends)))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        problems.update(instances.problems)
        problems["unlisted_images"] += len(related.keys() - instances.position.keys())
        for number in instances.position:
            record = instances.record(number, "coco_rel", split, problems)
            if record.ok and number in related:
                with error_row(record):
                    record.relations = relations_of(number, record)
            yield record

    files = {"annotations": annotations}
    if relations is not None:
        files["relations"] = relations
    objects = tuple(name for _, name in sorted(instances.categories.items()))
    classes = DatasetClasses(objects, tuple(predicates.values()))
    return AnnotationSource("coco_rel", split, read, files, classes=classes, boxes="xywh")


def _read_triplets(path: Location, split: str) -> tuple[dict[int, str], JsonObject]:
    """Return the predicates of rel.json by number, and the triplets of a split by image id."""
    require_format(path, "triplets")
    names: list[str] = []
    splits: dict[str, JsonObject] = {}
    for key, value in JsonStream(path):
        if isinstance(value, dict):
            splits[key] = value
        if key == "rel_categories":
            names.append(fields.clean(str(value)))
    if split not in splits:
        choices = " or ".join(map(fields.single_line, sorted(splits))) or "NAME"
        raise UserError(f"{path} has no split {split!r}: pass --split {choices}")
    return dict(enumerate(names)), splits[split]


def coco_source(
    annotations: Location, split: str, captions: Location | None = None
) -> AnnotationSource:
    """Return COCO's objects and captions, without relations."""
    require_format(annotations, "coco", "coco-rel")
    files = {"annotations": annotations}
    if captions:
        require_format(captions, "captions")
        files["captions"] = captions

    def read(problems: ProblemCounts) -> Iterator[Record]:
        instances = load_coco_instances(annotations)
        numbers = sum(map(len, instances.relations.values()))
        problems["ignored_relations"] += numbers // _PER_RELATION
        if captions:
            _read_captions(captions, instances)
        problems.update(instances.problems)
        for number, row in instances.position.items():
            record = instances.record(number, "coco", split, problems)
            if record.ok:
                record.captions = list(map(Caption, instances.captions.get(row, [])))
            yield record

    return AnnotationSource("coco", split, read, files, boxes="xywh")


@dataclass
class CocoInstances(Detections):
    """An instances file to be imported: all boxes in file order, and relations.

    Attributes:
        ids: `image_id` of exported files, which need not be a number.
        box_ids: numbers, or NaN.
        with_relations: the file has a list of them, which may be empty.
        broken: images with an unreadable box, so that relations refer to wrong ones.
        image_boxes: which boxes each row has.
        relations: by ids of images; subject, object (ids of boxes), predicate and confidence (or
            NaN) of each, one after the other.
    """

    ids: dict[str, str] = field(default_factory=dict)
    box_ids: array[float] = field(default_factory=lambda: array("d"))
    with_relations: bool = False
    broken: set[str] = field(default_factory=set)
    image_boxes: Sequence[NDArray[np.int64]] = ()
    predicates: dict[int, str] = field(default_factory=dict)
    relations: dict[str, array[float]] = field(default_factory=dict)

    def add_image(self, item: object, reason: str = "") -> int | None:
        row = super().add_image(item, reason)
        if row is not None and "image_id" in fields.mapping(item):
            self.ids[fields.required_id(item, "id")] = fields.text(item, "image_id")
        return row

    def add_box(self, item: object) -> None:
        try:
            super().add_box(item)
        except FieldError:
            self.broken.add(fields.required_id(item))
            raise
        box_id = fields.mapping(item).get("id")
        if not isinstance(box_id, int | float) or abs(box_id) >= 2**63:
            box_id = math.nan
        self.box_ids.append(box_id)

    def add_text(self, row: int, text: object) -> None:
        """Add a caption of the image in a row, as it is."""
        self.captions.setdefault(row, []).append(str(text))

    def add_relation(self, item: object) -> None:
        """Add an entry of `rel_annotations`."""
        ends = [fields.required(item, key) for key in ("subject_id", "object_id", "predicate_id")]
        values = fields.numbers(ends, 3)
        score = fields.confidence(fields.mapping(item).get("confidence"))
        relations = self.relations.setdefault(fields.required_id(item), array("d"))
        relations.extend((*values, math.nan if score is None else score))

    def add_category(self, item: object) -> None:
        """Add an entry of `categories`, also a blank one, as exports have.

        Raises:
            UserError: an id has two names.
        """
        category = fields.integer(item, "id")
        annotated.add_name(self.categories, category, fields.required_id(item, "name"))

    def add_predicate(self, item: object) -> None:
        """Add an entry of `rel_categories`.

        Raises:
            UserError: an id has two names.
        """
        annotated.add_name(self.predicates, fields.integer(item, "id"), fields.text(item, "name"))

    def record(self, number: str, dataset: str, split: str, problems: ProblemCounts) -> Record:
        """Return an image with its objects, or an error row; `number` is its id in the file."""
        row = self.position[number]
        width, height = self.sizes[2 * row : 2 * row + 2]
        record = Record(
            self.ids.get(number, number), dataset, split, self.file_names[row], width, height
        )
        with error_row(record):
            if not record.file_name:
                raise FieldError("the annotation has no file_name")
            if number in self.broken:
                raise FieldError("one of its annotations has no valid category_id and bbox")
            record.objects = list(self.objects(self.boxes_of(number), (width, height), problems))
        return record

    def boxes_of(self, number: str) -> list[int]:
        return self.image_boxes[self.position[number]].tolist()

    def objects(
        self, boxes: Iterable[int], size: Sequence[int], problems: ProblemCounts
    ) -> Iterator[Box]:
        """Yield boxes of an image of a `size` as objects.

        Raises:
            FieldError: a class is not listed.
        """
        for box in boxes:
            category = self.box_categories[box]
            if category not in self.categories:
                raise FieldError(
                    f"category_id {category} of an object is not in the file's categories"
                )
            x, y, width, height = self.boxes[4 * box : 4 * box + 4]
            yield Box(
                self.categories[category],
                category,
                (x, y, width, height),
                bool(self.box_crowds[box]),
                segmentation=self.segmentation(box, size, problems),
            )

    def related(
        self, number: str, boxes: Sequence[int], predicates: Mapping[int, str]
    ) -> list[Relation]:
        """Return the relations of an image.

        Raises:
            FieldError: an end is not one of its boxes, or there is no such predicate.
        """
        ends = {self.box_ids[box]: index for index, box in enumerate(boxes)}
        rows = []
        values = np.reshape(self.relations.get(number, ()), (-1, _PER_RELATION)).tolist()
        for subject, object_, predicate, score in values:
            rows.append((subject, object_, predicate, None if math.isnan(score) else score))
        return annotated.relations_of(rows, predicates, ends)


def load_coco_instances(path: Location) -> CocoInstances:
    """Read an instances file. Raises UserError, also if an id has two names."""
    instances = CocoInstances("", "")
    further = {"rel_annotations": instances.add_relation, "rel_categories": instances.add_predicate}
    stream = _read_instances(path, instances, **further)
    instances.with_relations = "rel_annotations" in stream.arrays
    instances.settle_rows()
    rows = np.asarray(instances.box_rows)
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(len(instances.position)))
    unlisted, *instances.image_boxes = np.split(order, starts)
    instances.problems["unknown_image"] = len(unlisted)
    return instances


COCO = Source("coco", open=coco_source, is_unsplit=False)
COCO_RELATIONS = Source("coco-rel", open=coco_relations_source, is_unsplit=False)
