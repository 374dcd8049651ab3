"""HICO-DET, V-COCO and Open Images, each in the two formats in which it is published.

HOIA format, which QPIC, RLIP and others use: the boxes of an image, and relations between their indices. It names
classes by numbers only. Box pairs (instances_train2015.json, instances_vcoco_train.json): parallel lists of human
box, object box and names. Open Images: HOIA with `rel_annotations`, as RLIPv2 has it, or vrd-train-anno.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from rlip_model.evaluation.hico_classes import CLASSES, class_numbers
from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.text_files import read_text
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    FieldError,
    ProblemCounts,
    check_object_index,
    image_id_from_name,
    integer_field,
    list_field,
    mark_failed,
    parse_id,
    parse_numbers,
    parse_side,
    replace_objects,
    replace_surrogates,
    required_field,
    text_field,
    triplet_relations,
    xyxy_to_xywh,
)
from sgpipe.sources.formats import (
    HICO_HOIA,
    HICO_PAIRS,
    HOIA,
    OPEN_IMAGES_HOIA,
    OPEN_IMAGES_VRD,
    VCOCO_HOIA,
    VCOCO_PAIRS,
    require_format,
)
from sgpipe.sources.vocabulary import category_names, official_relation_names, relation_names


@dataclass(frozen=True)
class HoiaSchema:
    """How a dataset's HOIA files are to be read.

    Attributes:
        key: the key of the list of relations.
        objects, relations: class names and predicates by category_id.
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
        return {key: {str(number): name for number, name in names.items()} for key, names in parts.items()}

    @classmethod
    def of_class_list(cls, objects: Any, relations: Any) -> HoiaSchema:
        """Return the inverse of `class_list`. Names may also be lists, which count from 1.

        Raises ValueError, TypeError, AttributeError: another form, or a name is missing or occurs twice.
        """
        return cls("hoi_annotation", _numbered(objects), _numbered(relations))


def _numbered(names: Any) -> Mapping[int, str]:
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names, 1)
    numbered = dict(sorted((int(number), name) for number, name in pairs))
    if not numbered or not all(isinstance(name, str) and name.strip() for name in numbered.values()):
        raise ValueError("a name is missing")
    if len(set(numbered.values())) < len(numbered):
        raise ValueError("a name occurs twice")
    return numbered


HICO = HoiaSchema("hoi_annotation", category_names("coco"), relation_names("hico"))
VCOCO = HoiaSchema("hoi_annotation", category_names("coco"), relation_names("vcoco"), objectless=True)
OPEN_IMAGES = HoiaSchema("rel_annotations", category_names("open_images"), relation_names("open_images"))

_KEYS = (("objects", "relations"), ("idx_to_label", "idx_to_predicate"))


def read_classes(path: Path) -> HoiaSchema:
    """Read `{"objects": {number: name}, "relations": {number: name}}`, or lists of names, which count from 1.

    VG-SGG-dicts.json, with `idx_to_label` and `idx_to_predicate`, is accepted, too.

    Raises UserError: the file is missing or has another format.
    """
    try:
        content = json.loads(read_text(path, "classes file"))
        keys = next(keys for keys in _KEYS if keys[0] in content)
        return HoiaSchema.of_class_list(*(content[key] for key in keys))
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        raise UserError(
            f'classes file {path}: expected {{"objects": [names], "relations": [names]}}, or names by their numbers '
            f"({replace_surrogates(str(error))[:80]})"
        ) from None


_IMAGES_CHECKED = 2000
_ENOUGH = 3  # wrong relations that may be faults of single images, which become error rows
_TITLES = {"hico": "HICO-DET", "vcoco": "V-COCO", "open_images": "Open Images"}


def check_classes(annotations: Path, schema: HoiaSchema, dataset: str, classes: Path | None = None) -> None:
    """Refuse a file in HOIA format whose numbers belong to another list of classes.

    Args:
        dataset: what the classes belong to; of HICO-DET also the 600 interactions are known.
        classes: the file that they were read from.

    Raises UserError: a file beside it lists other classes, or most relations are impossible with these.
    """
    title = classes or _TITLES[dataset]
    beside = annotations.with_name(f"{annotations.name.removesuffix('.gz').removesuffix('.json')}_classes.json")
    if classes is None and beside.is_file() and not _lists(beside, schema):
        raise UserError(f"{annotations} has the classes of {beside}, not those of {title}: pass --classes {beside}")
    possible = hico_interactions() if dataset == "hico" else None
    items = islice(JsonStream(annotations), _IMAGES_CHECKED)
    faults = [fault for _, item in items for fault in _faults(item, schema, possible)]
    wrong = list(filter(None, faults))
    if len(wrong) >= _ENOUGH and 2 * len(wrong) > len(faults):
        raise UserError(
            f"the classes of {annotations} are not those of {title}: {len(wrong):,} of {len(faults):,} relations are "
            f"impossible ({wrong[0]}); list its classes in a file and pass --classes FILE"
        )


def _lists(path: Path, schema: HoiaSchema) -> bool:
    """Return whether a file lists these classes."""
    try:
        return read_classes(path).class_list == schema.class_list
    except UserError:
        return False


def _faults(item: Any, schema: HoiaSchema, possible: frozenset[tuple[int, int]] | None) -> Iterator[str]:
    """Yield why it is impossible, or "", for each relation of an image that can be read."""
    parts: list[Any] = [item.get(key) if isinstance(item, Mapping) else None for key in ("annotations", schema.key)]
    boxes, relations = parts if all(isinstance(part, list) for part in parts) else ([], [])
    for relation in relations:
        try:
            index, verb = (integer_field(relation, key) for key in ("object_id", "category_id"))
            object_ = integer_field(boxes[index], "category_id") if 0 <= index < len(boxes) else None
        except FieldError:  # it makes an error row
            continue
        if verb not in schema.relations:
            yield f"relation {verb!r} does not exist"
        elif object_ is not None and object_ not in schema.objects:
            yield f"object class {object_!r} does not exist"
        elif possible is not None and object_ is not None and (verb, object_) not in possible:
            yield f"{schema.relations[verb]!r} of {schema.objects[object_]!r} is not an interaction of HICO-DET"
        else:
            yield ""


@cache
def hico_interactions() -> frozenset[tuple[int, int]]:
    """HICO-DET's 600 pairs of verb and object, by their numbers."""
    objects, verbs = list(HICO.objects), list(HICO.relations)
    pairs = CLASSES.labels(class_numbers())[:, 1:].tolist()
    return frozenset((verbs[verb], objects[object_]) for object_, verb in pairs)


OTHER_CLASSES = "hoia"  # the dataset of files in HOIA format with classes of their own
_NOTHING = -1  # object_id of a relation without an object, and category_id of the box that stands for it


def hico_source(annotations: Path, split: str, classes: Path | None = None) -> AnnotationSource:
    """HICO-DET in HOIA format or as box pairs, or a file in HOIA format with the classes of another file.

    Raises UserError: the file is of another format, or of other classes.
    """
    return _source(annotations, split, classes, "hico", HICO, (HICO_HOIA, HICO_PAIRS, HOIA))


def vcoco_source(annotations: Path, split: str, classes: Path | None = None) -> AnnotationSource:
    """V-COCO in HOIA format or as box pairs; otherwise as `hico_source`."""
    return _source(annotations, split, classes, "vcoco", VCOCO, (VCOCO_HOIA, VCOCO_PAIRS, HOIA))


def _source(
    annotations: Path,
    split: str,
    classes: Path | None,
    dataset: str,
    schema: HoiaSchema,
    formats: tuple[str, ...],
) -> AnnotationSource:
    file_format = require_format(annotations, *formats)
    files = {"annotations": annotations}
    if file_format in (HICO_PAIRS, VCOCO_PAIRS):
        if classes is not None:
            raise UserError(f"{annotations} names its classes itself; omit --classes")
        pairs = read_hico_pairs if file_format is HICO_PAIRS else read_vcoco_pairs
        return AnnotationSource(
            dataset, split, partial(pairs, annotations, split), files, classes=schema.classes, boxes="xyxy"
        )
    if classes is None:
        check_classes(annotations, schema, dataset)
    else:
        own = replace(read_classes(classes), objectless=schema.objectless)
        dataset, schema = (dataset, schema) if own == schema else (OTHER_CLASSES, own)
        check_classes(annotations, schema, dataset, classes)
        files["classes"] = classes
    read = partial(read_hoia, annotations, schema, dataset, split)
    return AnnotationSource(dataset, split, read, files, classes=schema.classes, boxes="xyxy")


def read_hoia(
    annotations: Path, schema: HoiaSchema, dataset: str, split: str, problems: ProblemCounts
) -> Iterator[Record]:
    """The images of a HOIA file. One with an invalid index or box is an error row: none of its indices can be trusted.

    Raises UserError: the file is missing, cut short or not JSON.
    """
    for _, item in JsonStream(annotations):
        try:
            name = text_field(item, "file_name")
        except FieldError:
            problems["malformed"] += 1
            continue
        number = parse_id(item.get("image_id")) or image_id_from_name(name)
        record = Record(number, dataset, split, name, parse_side(item.get("width")), parse_side(item.get("height")))
        try:
            record.objects = [_box(entry, schema.objects) for entry in list_field(item, "annotations")]
            record.relations = _relations(list_field(item, schema.key), record, schema)
        except FieldError as error:
            mark_failed(record, str(error))
        yield record


def _box(entry: Any, names: Mapping[int, str]) -> Box:
    category = integer_field(entry, "category_id")
    if category not in names:
        raise FieldError(f"category_id {category} of an object is not a category of the dataset")
    return Box(names[category], category, xyxy_to_xywh(required_field(entry, "bbox")))


def _relations(entries: list[Any], record: Record, schema: HoiaSchema) -> list[Relation]:
    """Return the relations of an image; a box that stands for missing objects is added to the record if needed."""
    annotated = len(record.objects)
    relations = []
    for entry in entries:
        subject, object_, verb = (integer_field(entry, key) for key in ("subject_id", "object_id", "category_id"))
        if verb not in schema.relations:
            raise FieldError(f"category_id {verb} of a relation is not a category of the dataset")
        if object_ == _NOTHING and schema.objectless:
            if len(record.objects) == annotated:
                record.objects.append(Box(NO_OBJECT, _NOTHING, (0.0, 0.0, 0.0, 0.0)))
            object_ = annotated
        else:
            check_object_index(object_, annotated, f"object_id {object_} of a relation")
        check_object_index(subject, annotated, f"subject_id {subject} of a relation")
        relations.append(Relation(subject, object_, schema.relations[verb]))
    return relations


_BACKGROUND = "background"  # the first object name in V-COCO's file
_OBJECTS = {name.replace(" ", "_"): name for name in (_BACKGROUND, *category_names("coco").values())}


@dataclass(frozen=True)
class _PairLists:
    """The keys of an image's parallel lists, and the names that their indices refer to."""

    objects: str
    relations: str
    object_names: Sequence[str]
    relation_names: Sequence[str]


def read_hico_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """Yield the images of HICO-DET's instances_train2015.json, or a file of the same format.

    Raises UserError: the file is missing, not JSON, or its names are not HICO-DET's.
    """
    arrays = _load_arrays(annotations)
    images, names, sizes = (arrays.get(key, []) for key in ("annotation", "filenames", "size"))
    if not len(images) == len(names) == len(sizes):
        raise UserError(f"{annotations}: 'annotation', 'filenames' and 'size' differ in length; the file is damaged")
    verbs = _names(annotations, arrays, "verbs", official_relation_names("hico"))
    lists = _PairLists("object", "verb", _names(annotations, arrays, "objects", _OBJECTS), verbs)
    for image, name, size in zip(images, names, sizes, strict=True):
        width, height = size if isinstance(size, list) and len(size) == 2 else (0, 0)
        name = replace_surrogates(str(name))
        record = Record(image_id_from_name(name), "hico", split, name, parse_side(width), parse_side(height))
        yield _add_pairs(record, image, lists)


def read_vcoco_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """Yield the images of V-COCO's instances_vcoco_train.json, or a file of the same format, which has no image sizes.

    Raises UserError: the file is missing, not JSON, or its names are not V-COCO's.
    """
    arrays = _load_arrays(annotations)
    verbs = _names(annotations, arrays, "classes", official_relation_names("vcoco"))
    lists = _PairLists("objects", "actions", _names(annotations, arrays, "objects", _OBJECTS), verbs)
    for image in arrays.get("annotations", []):
        try:
            name = text_field(image, "file_name")
        except FieldError:
            problems["malformed"] += 1
            continue
        yield _add_pairs(Record(image_id_from_name(name), "vcoco", split, name, 0, 0), image, lists)


def _load_arrays(path: Path) -> dict[str, list[Any]]:
    arrays: dict[str, list[Any]] = {}
    for key, item in JsonStream(path):
        arrays.setdefault(key, []).append(item)
    return arrays


def _names(path: Path, arrays: Mapping[str, list[Any]], key: str, known: Mapping[str, str]) -> list[str]:
    """Return the names of a list of the file in sgpipe's spelling; `known`: by the file's, with underscores."""
    names = [str(name).replace(" ", "_") for name in arrays.get(key, [])]
    if not names:
        raise UserError(f"{path} has no list {key!r}: the file is damaged or of another version")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{path}: its list {key!r} contains {unknown[0]!r}, which is not a name of the dataset")
    return [known[name] for name in names]


def _add_pairs(record: Record, image: Any, lists: _PairLists) -> Record:
    """Add the box pairs of an image to its record; equal boxes of one class become one object."""
    ids = {name: number for number, name in category_names("coco").items()}
    indices: dict[tuple[Any, ...], int] = {}

    def add_box(name: str, bbox: Any) -> int:
        box = Box(name, ids[name], xyxy_to_xywh(bbox))
        index = indices.setdefault((name, *box.bbox), len(record.objects))
        if index == len(record.objects):
            record.objects.append(box)
        return index

    try:
        values = [required_field(image, key) for key in ("boxes_h", "boxes_o", lists.objects, lists.relations)]
        for human, thing, category, verb in zip(*values, strict=True):
            name = _name_at(lists.object_names, category, lists.objects)
            ends = add_box("person", human), add_box(name, thing)
            record.relations.append(Relation(*ends, _name_at(lists.relation_names, verb, lists.relations)))
    except FieldError as error:
        return mark_failed(record, str(error))
    except (TypeError, ValueError):
        return mark_failed(record, "the lists of pairs differ in length")
    return record


def _name_at(names: Sequence[str], index: Any, key: str) -> str:
    if not isinstance(index, int) or not 0 <= index < len(names) or names[index] == _BACKGROUND:
        raise FieldError(f"{key!r} contains {index!r}, which is not the index of a name")
    return names[index]


@dataclass(frozen=True)
class OpenImages:
    """The relations of a split of Open Images.

    Attributes:
        categories: OI_SGG_trainval_test_categories_dict.json, `{"obj": [...], "rel": [...]}`: the classes to keep;
            None: all 601. The ids of the annotations always refer to all 601.
    """

    annotations: Path
    split: str
    categories: Path | None = None

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or of another format."""
        if require_format(self.annotations, OPEN_IMAGES_HOIA, OPEN_IMAGES_VRD) is OPEN_IMAGES_HOIA:
            check_classes(self.annotations, OPEN_IMAGES, "open_images")
        files = {"annotations": self.annotations, "categories": self.categories}
        return AnnotationSource(
            dataset="open_images",
            split=self.split,
            read=self.records,
            files={role: path for role, path in files.items() if path},
            classes=self._classes(),
            boxes="xyxy",
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """Yield the images in file order, with the objects of the classes to keep."""
        classes = self._classes()
        for record in self._read(problems):
            boxes = [box if box.category in classes.objects else None for box in record.objects]
            if dropped := boxes.count(None):
                problems["unknown_category"] += dropped
            replace_objects(record, boxes, problems)
            yield record

    def _read(self, problems: ProblemCounts) -> Iterator[Record]:
        if require_format(self.annotations, OPEN_IMAGES_HOIA, OPEN_IMAGES_VRD) is OPEN_IMAGES_HOIA:
            yield from read_hoia(self.annotations, OPEN_IMAGES, "open_images", self.split, problems)
            return
        for _, item in JsonStream(self.annotations):
            record = _vrd_record(item, self.split)
            if record is None:
                problems["malformed"] += 1
            else:
                yield record

    def _classes(self) -> DatasetClasses:
        everything = OPEN_IMAGES.classes
        if self.categories is None:
            return everything
        try:
            lists = json.loads(read_text(self.categories, "categories file"))
            chosen = DatasetClasses(tuple(lists["obj"]), tuple(lists["rel"]))
        except (ValueError, RecursionError, KeyError, TypeError):
            raise UserError(f'{self.categories}: expected {{"obj": [names], "rel": [names]}}') from None
        unknown = [name for name in chosen.objects if name not in everything.objects]
        if unknown or chosen.relations != everything.relations:
            what = f"its class {unknown[0]!r} is not one of the 601" if unknown else "its relations are not the 30"
            raise UserError(f"{self.categories} does not belong to Open Images V6: {what}")
        return chosen


def _vrd_record(item: Any, split: str) -> Record | None:
    """Return an image given as parallel lists of boxes and labels; None if it has no name."""
    try:
        name = text_field(item, "img_fn")
    except FieldError:
        return None
    record = Record(name, "open_images", split, f"{name}.jpg", 0, 0)
    try:
        width, height = parse_numbers(required_field(item, "img_size"), 2)
        record.width, record.height = parse_side(width), parse_side(height)
        pairs = zip(required_field(item, "bbox"), required_field(item, "det_labels"), strict=True)
        record.objects = [Box(OPEN_IMAGES.objects[label], int(label), xyxy_to_xywh(bbox)) for bbox, label in pairs]
        objects = range(len(record.objects))
        record.relations = triplet_relations(required_field(item, "rel"), OPEN_IMAGES.relations, objects)
    except FieldError as error:
        return mark_failed(record, str(error))
    except (TypeError, ValueError, KeyError):
        return mark_failed(record, "the labels are not one of the 601 classes per box")
    return record
