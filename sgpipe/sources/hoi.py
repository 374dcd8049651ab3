"""HICO-DET and V-COCO in HOIA form, as QPIC, RLIP and others use them: boxes, and relations between their indices.

HICO-DET and V-COCO as lists of box pairs (instances_train2015.json, instances_vcoco_train.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    FieldError,
    ProblemCounts,
    image_id_from_name,
    integer_field,
    list_field,
    mark_failed,
    parse_id,
    parse_side,
    replace_surrogates,
    required_field,
    text_field,
    xyxy_to_xywh,
)
from sgpipe.sources.formats import HICO_HOIA, HICO_PAIRS, HOIA, VCOCO_HOIA, VCOCO_PAIRS, require_format
from sgpipe.sources.vocabulary import category_names, official_relation_names, relation_names
from sgpipe.utils.json_stream import JsonStream

_NOTHING = -1  # the index of the object that a relation does not have, and the category_id of such an object


@dataclass(frozen=True)
class HoiaSchema:
    """What the numbers of a HOIA file mean.

    Attributes:
        key: what the list of relations is called.
        objects, relations: names by category_id.
        objectless: whether a relation may have no object.
    """

    key: str
    objects: Mapping[int, str]
    relations: Mapping[int, str]
    objectless: bool = False

    @property
    def classes(self) -> DatasetClasses:
        """All names, in order, and with them that of the missing object."""
        nothing = (NO_OBJECT,) if self.objectless else ()
        return DatasetClasses((*self.objects.values(), *nothing), tuple(self.relations.values()))


HICO = HoiaSchema("hoi_annotation", category_names("coco"), relation_names("hico"))
VCOCO = HoiaSchema("hoi_annotation", category_names("coco"), relation_names("vcoco"), objectless=True)


def hico_source(annotations: Path, split: str) -> AnnotationSource:
    """HICO-DET, in HOIA form or in that of instances_train2015.json. Raises UserError: the file is another."""
    form = require_format(annotations, HICO_HOIA, HICO_PAIRS, HOIA)
    if form is HICO_PAIRS:
        read = partial(read_hico_pairs, annotations, split)
    else:
        read = partial(read_hoia, annotations, HICO, "hico", split)
    return AnnotationSource("hico", split, read, {"annotations": annotations}, classes=HICO.classes)


def vcoco_source(annotations: Path, split: str) -> AnnotationSource:
    """V-COCO, in HOIA form or in that of instances_vcoco_train.json. Raises UserError: the file is another."""
    form = require_format(annotations, VCOCO_HOIA, VCOCO_PAIRS, HOIA)
    if form is VCOCO_PAIRS:
        read = partial(read_vcoco_pairs, annotations, split)
    else:
        read = partial(read_hoia, annotations, VCOCO, "vcoco", split)
    return AnnotationSource("vcoco", split, read, {"annotations": annotations}, classes=VCOCO.classes)


def read_hoia(
    annotations: Path, numbering: HoiaSchema, dataset: str, split: str, problems: ProblemCounts
) -> Iterator[Record]:
    """The images of a HOIA file. One whose indices or boxes are out of order is an error row, as none can be trusted.

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
            record.objects = [_box(entry, numbering.objects) for entry in list_field(item, "annotations")]
            record.relations = _relations(list_field(item, numbering.key), record, numbering)
        except FieldError as error:
            mark_failed(record, str(error))
        yield record


def _box(entry: Any, names: Mapping[int, str]) -> Box:
    category = integer_field(entry, "category_id")
    if category not in names:
        raise FieldError(f"category_id {category} of an object is none of the dataset's")
    return Box(names[category], category, xyxy_to_xywh(required_field(entry, "bbox")))


def _relations(entries: list[Any], record: Record, numbering: HoiaSchema) -> list[Relation]:
    """The relations; what they do not have is added to the record's objects."""
    annotated = len(record.objects)
    relations = []
    for entry in entries:
        subject, object_, verb = (integer_field(entry, key) for key in ("subject_id", "object_id", "category_id"))
        if verb not in numbering.relations:
            raise FieldError(f"category_id {verb} of a relation is none of the dataset's")
        if object_ == _NOTHING and numbering.objectless:
            if len(record.objects) == annotated:
                record.objects.append(Box(NO_OBJECT, _NOTHING, (0.0, 0.0, 0.0, 0.0)))
            object_ = annotated
        elif not 0 <= object_ < annotated:
            raise FieldError(f"object_id {object_} of a relation points to none of {annotated} objects")
        if not 0 <= subject < annotated:
            raise FieldError(f"subject_id {subject} of a relation points to none of {annotated} objects")
        relations.append(Relation(subject, object_, numbering.relations[verb]))
    return relations


_NONE = "background"  # V-COCO's file lists it first


@dataclass(frozen=True)
class _Columns:
    """What the parallel lists of an image are called, and the names that their numbers stand for."""

    objects: str
    relations: str
    object_names: Sequence[str]
    relation_names: Sequence[str]


def read_hico_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """The images of a file in the form of instances_train2015.json.

    Raises UserError: the file is missing, not JSON, or its lists and names are not HICO-DET's.
    """
    arrays = _arrays(annotations)
    images, names, sizes = (arrays.get(key, []) for key in ("annotation", "filenames", "size"))
    if not len(images) == len(names) == len(sizes):
        raise UserError(f"{annotations}: 'annotation', 'filenames' and 'size' differ in length: it is damaged")
    columns = _Columns(
        "object", "verb", _objects(annotations, arrays), _pair_relations(annotations, arrays, "verbs", "hico")
    )
    for image, name, size in zip(images, names, sizes, strict=True):
        width, height = size if isinstance(size, list) and len(size) == 2 else (0, 0)
        name = replace_surrogates(str(name))
        record = Record(image_id_from_name(name), "hico", split, name, parse_side(width), parse_side(height))
        yield _with_pairs(record, image, columns)


def read_vcoco_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """The images of a file in the form of instances_vcoco_train.json, which gives no sizes.

    Raises UserError: the file is missing, not JSON, or its names are not V-COCO's.
    """
    arrays = _arrays(annotations)
    verbs = _pair_relations(annotations, arrays, "classes", "vcoco")
    columns = _Columns("objects", "actions", _objects(annotations, arrays), verbs)
    for image in arrays.get("annotations", []):
        try:
            name = text_field(image, "file_name")
        except FieldError:
            problems["malformed"] += 1
            continue
        yield _with_pairs(Record(image_id_from_name(name), "vcoco", split, name, 0, 0), image, columns)


def _arrays(path: Path) -> dict[str, list[Any]]:
    arrays: dict[str, list[Any]] = {}
    for key, item in JsonStream(path):
        arrays.setdefault(key, []).append(item)
    return arrays


def _objects(path: Path, arrays: Mapping[str, list[Any]]) -> list[str]:
    """The file's object names, worded as COCO does."""
    names = [str(name).replace("_", " ") for name in arrays.get("objects", [])]
    if not names:
        raise UserError(_missing(path, "objects"))
    if unknown := [name for name in names if name not in (_NONE, *category_names("coco").values())]:
        raise UserError(f"{path}: its list 'objects' holds {unknown[0]!r}, which is no class of COCO")
    return names


def _pair_relations(path: Path, arrays: Mapping[str, list[Any]], key: str, dataset: str) -> list[str]:
    """The file's relation names, worded as sgpipe does."""
    ours, names = official_relation_names(dataset), [str(name).replace(" ", "_") for name in arrays.get(key, [])]
    if not names:
        raise UserError(_missing(path, key))
    if unknown := [name for name in names if name not in ours]:
        raise UserError(f"{path}: its list {key!r} holds {unknown[0]!r}, which is no relation of the dataset")
    return [ours[name] for name in names]


def _missing(path: Path, key: str) -> str:
    return f"{path} has no list {key!r} of names: it is damaged or of another version"


def _with_pairs(record: Record, image: Any, columns: _Columns) -> Record:
    """The record with its pairs of boxes; boxes of one class that are equal become one object."""
    ids = {name: number for number, name in category_names("coco").items()}
    places: dict[tuple[Any, ...], int] = {}

    def place(name: str, bbox: Any) -> int:
        box = Box(name, ids[name], xyxy_to_xywh(bbox))
        index = places.setdefault((name, *box.bbox), len(record.objects))
        if index == len(record.objects):
            record.objects.append(box)
        return index

    try:
        lists = [required_field(image, key) for key in ("boxes_h", "boxes_o", columns.objects, columns.relations)]
        for human, thing, category, verb in zip(*lists, strict=True):
            name = _pick(columns.object_names, category, columns.objects)
            ends = place("person", human), place(name, thing)
            record.relations.append(Relation(*ends, _pick(columns.relation_names, verb, columns.relations)))
    except FieldError as error:
        return mark_failed(record, str(error))
    except (TypeError, ValueError):
        return mark_failed(record, "its lists of pairs differ in length")
    return record


def _pick(names: Sequence[str], index: Any, key: str) -> str:
    if not isinstance(index, int) or not 0 <= index < len(names) or names[index] == _NONE:
        raise FieldError(f"{key!r} holds {index!r}, which stands for none of its names")
    return names[index]
