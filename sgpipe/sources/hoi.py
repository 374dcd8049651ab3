"""HICO-DET, V-COCO and Open Images, each in the two formats in which it is published.

HOIA format, which QPIC, RLIP and others use: the boxes of an image, and relations between their
indices. It names classes by numbers only. Box pairs (instances_train2015.json,
instances_vcoco_train.json): parallel lists of human box, object box and names. Open Images: HOIA
with `rel_annotations`, as RLIPv2 has it, or vrd-train-anno.json.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, read_text
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    ProblemCounts,
    require_format,
)
from sgpipe.sources.fields import FieldError
from sgpipe.sources.plugin import Source
from sgpipe.sources.vocabulary import category_names, official_relation_names, relation_names

_Fill: TypeAlias = Callable[[Record, object], None]

_TITLES = {"hico": "HICO-DET", "vcoco": "V-COCO", "open_images": "Open Images"}
_IMAGES_CHECKED = 2000
_ENOUGH = 3  # wrong relations that may be faults of single images, which become error rows
_OTHER_CLASSES = "hoia"  # the dataset of files in HOIA format with classes of their own
# object_id of a relation without an object, and category_id of the box that stands for it
_NOTHING = -1
_BACKGROUND = "background"  # the first object name in V-COCO's file
# By dataset: the keys of an image's objects and verbs, and of the lists of images and of verb
# names.
_PAIR_KEYS = {
    "hico": ("object", "verb", "annotation", "verbs"),
    "vcoco": ("objects", "actions", "annotations", "classes"),
}


@dataclass(frozen=True)
class HoiaSchema:
    """How a dataset's HOIA files are to be read: class names and predicates by category_id.

    Attributes:
        key: of the list of relations.
        objectless: whether a relation may have no object.
    """

    key: str
    objects: Mapping[int, str]
    relations: Mapping[int, str]
    objectless: bool = False

    @property
    def classes(self) -> DatasetClasses:
        """All names in order, including the name of the missing object."""
        nothing = (NO_OBJECT,) if self.objectless else ()
        return DatasetClasses((*self.objects.values(), *nothing), tuple(self.relations.values()))

    @property
    def class_list(self) -> dict[str, dict[str, str]]:
        """All names by number, as files list their classes."""
        parts = {"objects": self.objects, "relations": self.relations}
        return {
            key: {str(number): name for number, name in names.items()}
            for key, names in parts.items()
        }

    @classmethod
    def of_class_list(cls, content: Any) -> HoiaSchema:
        """Return the inverse of `class_list`.

        Raises:
            ValueError, TypeError, KeyError: the form is wrong.
        """
        objects = _names_by_number(content["objects"])
        relations = _names_by_number(content["relations"])
        return cls("hoi_annotation", objects, relations)


def _names_by_number(names: Any) -> dict[int, str]:
    """Return names by their numbers, those of a list from 1."""
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names, 1)
    table = dict(sorted((int(number), name) for number, name in pairs))
    if not table or not all(isinstance(name, str) and name.strip() for name in table.values()):
        raise ValueError("a name is missing")
    if len(set(table.values())) < len(table):
        raise ValueError("a name occurs twice")
    return table


HICO = HoiaSchema("hoi_annotation", category_names("coco"), relation_names("hico"))
VCOCO = HoiaSchema(
    "hoi_annotation", category_names("coco"), relation_names("vcoco"), objectless=True
)
OPEN_IMAGES = HoiaSchema(
    "rel_annotations", category_names("open_images"), relation_names("open_images")
)


def read_classes(path: Path) -> HoiaSchema:
    """Read `{"objects": {number: name}, "relations": {number: name}}`, or lists of names, which
    count from 1.
    """
    try:
        content = json.loads(read_text(path, "classes file"))
        return HoiaSchema.of_class_list(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f'classes file {path}: expected {{"objects": [names], "relations": [names]}}, or names'
            f" by their numbers ({fields.clean(str(error))[:80]})"
        ) from None


def check_classes(
    annotations: Location, schema: HoiaSchema, dataset: str, classes: Path | None = None
) -> None:
    """Check that the relations of a HOIA file are possible with its classes.

    Raises:
        UserError: most relations of a HOIA file are impossible with these classes.
    """
    title = classes or _TITLES[dataset]
    possible = _hico_interactions(schema) if dataset == "hico" else None
    wrong = 0
    total = 0
    for _, item in islice(JsonStream(annotations), _IMAGES_CHECKED):
        with suppress(FieldError):  # it makes an error row
            for verb, thing in _verbs_and_classes(item, schema.key):
                total += 1
                wrong += not _is_possible(verb, thing, schema, possible)
    if wrong >= _ENOUGH and 2 * wrong > total:
        raise UserError(
            f"the classes of {annotations} are not those of {title}: {wrong:,} of {total:,}"
            " relations are impossible; list its classes in a file and pass --classes FILE"
        )


def _hico_interactions(schema: HoiaSchema) -> set[tuple[int, int]]:
    """Return the verbs and classes of HICO-DET's 600 interactions."""
    # Every other source does without this module.
    from rlip_model.evaluation.hico_classes import CLASSES, class_numbers

    verbs = list(schema.relations)
    things = list(schema.objects)
    numbers = CLASSES.labels(class_numbers())[:, 1:].tolist()
    return {(verbs[verb], things[thing]) for thing, verb in numbers}


def _verbs_and_classes(item: object, key: str) -> Iterator[tuple[int, int | None]]:
    """Yield the verb of each relation of an image, and the class of its object, if it has one."""
    boxes = fields.array(item, "annotations")
    for relation in fields.array(item, key):
        index = fields.integer(relation, "object_id")
        verb = fields.integer(relation, "category_id")
        has_object = 0 <= index < len(boxes)
        yield verb, fields.integer(boxes[index], "category_id") if has_object else None


def _is_possible(
    verb: int, thing: int | None, schema: HoiaSchema, possible: Collection[tuple[int, int]] | None
) -> bool:
    if verb not in schema.relations or thing is None:
        return verb in schema.relations
    return thing in schema.objects and (possible is None or (verb, thing) in possible)


def hico_source(annotations: Location, split: str, classes: Path | None = None) -> AnnotationSource:
    """Return HICO-DET in HOIA format or as box pairs, or a file in HOIA format with the classes of
    another file.
    """
    return _source(annotations, split, classes, "hico", HICO)


def vcoco_source(
    annotations: Location, split: str, classes: Path | None = None
) -> AnnotationSource:
    """Return V-COCO in HOIA format or as box pairs; otherwise as `hico_source`."""
    return _source(annotations, split, classes, "vcoco", VCOCO)


def _source(
    annotations: Location, split: str, classes: Path | None, dataset: str, schema: HoiaSchema
) -> AnnotationSource:
    files = {"annotations": annotations}
    pairs = f"{dataset} pairs"
    is_pairs = require_format(annotations, dataset, pairs, "hoia") == pairs
    if is_pairs and classes is not None:
        raise UserError(f"{annotations} names its classes itself; omit --classes")
    if classes is not None:
        listed = replace(read_classes(classes), objectless=schema.objectless)
        if listed != schema:
            dataset = _OTHER_CLASSES
        schema = listed
        files["classes"] = classes
    if not is_pairs:
        check_classes(annotations, schema, dataset, classes)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        if is_pairs:
            pairs_of_images, fill = _read_pairs(annotations, dataset)
            return _records(pairs_of_images, fill, dataset, split, problems)
        items = (item for _, item in JsonStream(annotations))
        return _records(items, partial(_fill, schema), dataset, split, problems)

    return AnnotationSource(dataset, split, read, files, classes=schema.classes, boxes="xyxy")


def _records(
    items: Iterable[object], fill: _Fill, dataset: str, split: str, problems: ProblemCounts
) -> Iterator[Record]:
    """Yield images, to which `fill` adds objects and relations."""

    def start(item: object) -> Record:
        name = fields.text(item, "file_name")
        number = fields.identifier(fields.mapping(item).get("image_id"))
        image_id = number or annotated.image_id_from_name(name)
        return Record(image_id, dataset, split, name, *fields.size(item))

    return annotated.read_records(items, start, fill, problems)


def _fill(schema: HoiaSchema, record: Record, item: object) -> None:
    for entry in fields.array(item, "annotations"):
        category = fields.integer(entry, "category_id")
        if category not in schema.objects:
            raise FieldError(
                f"category_id {category} of an object is not a category of the dataset"
            )
        bbox = fields.corners(fields.required(entry, "bbox"))
        record.objects.append(Box(schema.objects[category], category, bbox))
    rows: list[tuple[int, int | str, int]] = []
    indices = dict[int | str, int](enumerate(range(len(record.objects))))
    for entry in fields.array(item, schema.key):
        subject = fields.integer(entry, "subject_id")
        object_: int | str = fields.integer(entry, "object_id")
        verb = fields.integer(entry, "category_id")
        if object_ == _NOTHING and schema.objectless:
            object_ = NO_OBJECT
            indices[NO_OBJECT] = len(record.objects)
        rows.append((subject, object_, verb))
    if NO_OBJECT in indices:
        record.objects.append(Box(NO_OBJECT, _NOTHING, (0.0, 0.0, 0.0, 0.0)))
    record.relations = annotated.relations_of(rows, schema.relations, indices)


def _read_pairs(annotations: Location, dataset: str) -> tuple[Iterable[object], _Fill]:
    """Return the images of HICO-DET's instances_train2015.json or V-COCO's
    instances_vcoco_train.json.
    """
    arrays: dict[str, list[object]] = defaultdict(list)
    for key, item in JsonStream(annotations):
        arrays[key].append(item)
    objects, verbs, images, verb_names = _PAIR_KEYS[dataset]
    classes = (_BACKGROUND, *category_names("coco").values())
    things = {name.replace(" ", "_"): name for name in classes}
    names = {
        objects: _listed_names(annotations, arrays, "objects", things),
        verbs: _listed_names(annotations, arrays, verb_names, official_relation_names(dataset)),
    }
    items: Iterable[object] = arrays[images]
    if dataset == "hico":  # V-COCO's images have their names, and no sizes
        file_names = arrays["filenames"]
        sizes = arrays["size"]
        if not len(arrays[images]) == len(file_names) == len(sizes):
            raise UserError(f"{annotations}: 'annotation', 'filenames' and 'size' differ in length")
        items = map(_pairs_with_name, arrays[images], file_names, sizes)
    return items, partial(_fill_pairs, names)


def _pairs_with_name(item: object, file_name: object, size: object) -> object:
    """Return the pairs of an image of HICO-DET, which lists names and sizes beside them."""
    width, height = _pair(size)
    return {"content": item, "file_name": str(file_name), "width": width, "height": height}


def _listed_names(
    annotations: Location, arrays: Mapping[str, list[object]], key: str, known: Mapping[str, str]
) -> list[str]:
    """Return our names of those that a file lists."""
    listed = [str(name).replace(" ", "_") for name in arrays[key]]
    if not listed or not set(listed) <= known.keys():
        raise UserError(f"{annotations}: its list {key!r} does not have the names of the dataset")
    return [known[name] for name in listed]


def _pair(size: object) -> tuple[object, object]:
    """Return width and height, or zeros for what is not such a pair."""
    if not isinstance(size, list) or len(size) != 2:
        return 0, 0
    width, height = size
    return width, height


def _fill_pairs(names: Mapping[str, Sequence[str]], record: Record, item: object) -> None:
    """Add box pairs, whose indices are of `names`; equal boxes of one class become one object."""
    ids = {name: number for number, name in category_names("coco").items()}
    indices: dict[tuple[str, tuple[float, ...]], int] = {}

    def add_box(name: str, bbox: object) -> int:
        box = Box(name, ids[name], fields.corners(bbox))
        index = indices.setdefault((name, box.bbox), len(record.objects))
        if index == len(record.objects):
            record.objects.append(box)
        return index

    content = fields.mapping(item).get("content", item)
    lists = [fields.array(content, key) for key in ("boxes_h", "boxes_o", *names)]
    if len(set(map(len, lists))) > 1:
        raise FieldError("the lists of pairs differ in length")
    for human, thing, *numbers in zip(*lists, strict=True):
        name, verb = map(_name_of, names, names.values(), numbers)
        record.relations.append(Relation(add_box("person", human), add_box(name, thing), verb))


def _name_of(key: str, names: Sequence[str], index: object) -> str:
    """Return the name of an index.

    Raises:
        FieldError: it has none.
    """
    if not isinstance(index, int) or not 0 <= index < len(names) or names[index] == _BACKGROUND:
        raise FieldError(f"{key!r} contains {index!r}, which is not the index of a name")
    return names[index]


def open_images_source(
    annotations: Location, split: str, categories: Path | None = None
) -> AnnotationSource:
    """Return the relations of a split of Open Images.

    Args:
        categories: OI_SGG_trainval_test_categories_dict.json, `{"obj": [...], "rel": [...]}`, with
            some of the 601 classes. The ids of the annotations always refer to all of them.
    """
    is_hoia = require_format(annotations, "open-images", "open-images vrd") == "open-images"
    if is_hoia:
        check_classes(annotations, OPEN_IMAGES, "open_images")
    files = {"annotations": annotations}
    classes = OPEN_IMAGES.classes
    if categories is not None:
        files["categories"] = categories
        classes = _read_open_images_classes(categories)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        items = (item if is_hoia else _vrd_as_hoia(item) for _, item in JsonStream(annotations))
        for record in _records(items, partial(_fill, OPEN_IMAGES), "open_images", split, problems):
            boxes = [box if box.category in classes.objects else None for box in record.objects]
            problems["unknown_category"] += boxes.count(None)
            annotated.replace_objects(record, boxes, problems)
            yield record

    return AnnotationSource("open_images", split, read, files, classes=classes, boxes="xyxy")


def _read_open_images_classes(file: Path) -> DatasetClasses:
    """Return some of the classes of Open Images, and all of its relations. Raises UserError."""
    known = OPEN_IMAGES.classes
    with suppress(ValueError, RecursionError, KeyError, TypeError):
        lists = json.loads(read_text(file, "categories file"))
        classes = DatasetClasses(tuple(lists["obj"]), tuple(lists["rel"]))
        if set(classes.objects) <= set(known.objects) and classes.relations == known.relations:
            return classes
    raise UserError(
        f'{file}: expected {{"obj": [names], "rel": [names]}} of Open Images V6 and its 30'
        " relations"
    )


def _vrd_as_hoia(item: object) -> object:
    """Return an image of vrd-train-anno.json, with parallel lists of boxes and labels, as in HOIA
    format.
    """
    image = fields.mapping(item)
    name = image.get("img_fn")
    if not isinstance(name, str):
        return None
    width, height = _pair(image.get("img_size"))
    hoia = {"file_name": f"{name}.jpg", "image_id": name, "width": width, "height": height}
    boxes = image.get("bbox")
    labels = image.get("det_labels")
    relations = image.get("rel")
    if isinstance(boxes, list) and isinstance(labels, list) and len(boxes) == len(labels):
        pairs = zip(boxes, labels, strict=True)
        hoia["annotations"] = [{"bbox": box, "category_id": label} for box, label in pairs]
    if isinstance(relations, list):
        hoia["rel_annotations"] = list(map(_vrd_relation, relations))
    return hoia


def _vrd_relation(triplet: object) -> dict[str, object]:
    keys = ("subject_id", "object_id", "category_id")
    if not isinstance(triplet, list) or len(triplet) != len(keys):
        return {}
    return dict(zip(keys, triplet, strict=True))


HICO_SOURCE = Source("hico", open=hico_source, is_unsplit=False)
VCOCO_SOURCE = Source("vcoco", open=vcoco_source, is_unsplit=False, has_own_splits=True)
OPEN_IMAGES_SOURCE = Source("openimages", open=open_images_source, is_unsplit=False)
