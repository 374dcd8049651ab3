"""HICO-DET and V-COCO, in the two formats in which they are published.

HOIA format, which QPIC, RLIP and others use: the boxes of an image, and relations between their indices.
Box pairs (instances_train2015.json, instances_vcoco_train.json): parallel lists of human box, object box and names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import (
    AnnotationSource,
    FieldError,
    ProblemCounts,
    check_object_index,
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
from sgpipe.sources.formats import (
    HICO_HOIA,
    HICO_PAIRS,
    HOIA,
    VCOCO_HOIA,
    VCOCO_PAIRS,
    AnnotationFormat,
    require_format,
)
from sgpipe.sources.hoia_classes import HICO as HICO
from sgpipe.sources.hoia_classes import OPEN_IMAGES as OPEN_IMAGES
from sgpipe.sources.hoia_classes import VCOCO as VCOCO
from sgpipe.sources.hoia_classes import HoiaSchema as HoiaSchema
from sgpipe.sources.hoia_classes import check_classes, read_classes
from sgpipe.sources.vocabulary import category_names, official_relation_names

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
    formats: tuple[AnnotationFormat, ...],
) -> AnnotationSource:
    file_format = require_format(annotations, *formats)
    files = {"annotations": annotations}
    if file_format in (HICO_PAIRS, VCOCO_PAIRS):
        if classes is not None:
            raise UserError(f"{annotations} names its classes itself; omit --classes")
        pairs = read_hico_pairs if file_format is HICO_PAIRS else read_vcoco_pairs
        return AnnotationSource(dataset, split, partial(pairs, annotations, split), files, classes=schema.classes)
    if classes is None:
        check_classes(annotations, schema, dataset)
    else:
        own = replace(read_classes(classes), objectless=schema.objectless)
        dataset, schema = (dataset, schema) if own == schema else (OTHER_CLASSES, own)
        check_classes(annotations, schema, dataset, classes)
        files["classes"] = classes
    read = partial(read_hoia, annotations, schema, dataset, split)
    return AnnotationSource(dataset, split, read, files, classes=schema.classes)


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
    """The relations of an image; a box that stands for missing objects is added to the record if needed."""
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


@dataclass(frozen=True)
class _PairLists:
    """The keys of an image's parallel lists, and the names that their indices refer to."""

    objects: str
    relations: str
    object_names: Sequence[str]
    relation_names: Sequence[str]


def read_hico_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """The images of HICO-DET's instances_train2015.json, or a file of the same format.

    Raises UserError: the file is missing, not JSON, or its names are not HICO-DET's.
    """
    arrays = _load_arrays(annotations)
    images, names, sizes = (arrays.get(key, []) for key in ("annotation", "filenames", "size"))
    if not len(images) == len(names) == len(sizes):
        raise UserError(f"{annotations}: 'annotation', 'filenames' and 'size' differ in length; the file is damaged")
    lists = _PairLists(
        "object", "verb", _object_names(annotations, arrays), _relation_names(annotations, arrays, "verbs", "hico")
    )
    for image, name, size in zip(images, names, sizes, strict=True):
        width, height = size if isinstance(size, list) and len(size) == 2 else (0, 0)
        name = replace_surrogates(str(name))
        record = Record(image_id_from_name(name), "hico", split, name, parse_side(width), parse_side(height))
        yield _add_pairs(record, image, lists)


def read_vcoco_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """The images of V-COCO's instances_vcoco_train.json, or a file of the same format, which has no image sizes.

    Raises UserError: the file is missing, not JSON, or its names are not V-COCO's.
    """
    arrays = _load_arrays(annotations)
    verbs = _relation_names(annotations, arrays, "classes", "vcoco")
    lists = _PairLists("objects", "actions", _object_names(annotations, arrays), verbs)
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


def _object_names(path: Path, arrays: Mapping[str, list[Any]]) -> list[str]:
    """The file's object names in COCO's spelling."""
    names = [str(name).replace("_", " ") for name in arrays.get("objects", [])]
    if not names:
        raise UserError(_missing_list(path, "objects"))
    if unknown := [name for name in names if name not in (_BACKGROUND, *category_names("coco").values())]:
        raise UserError(f"{path}: its list 'objects' contains {unknown[0]!r}, which is not a class of COCO")
    return names


def _relation_names(path: Path, arrays: Mapping[str, list[Any]], key: str, dataset: str) -> list[str]:
    """The file's relation names in sgpipe's spelling."""
    known, names = official_relation_names(dataset), [str(name).replace(" ", "_") for name in arrays.get(key, [])]
    if not names:
        raise UserError(_missing_list(path, key))
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{path}: its list {key!r} contains {unknown[0]!r}, which is not a relation of the dataset")
    return [known[name] for name in names]


def _missing_list(path: Path, key: str) -> str:
    return f"{path} has no list {key!r}: the file is damaged or of another version"


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
