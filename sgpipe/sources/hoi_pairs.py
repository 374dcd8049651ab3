"""HICO-DET and V-COCO as lists of box pairs (instances_train2015.json, instances_vcoco_train.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import ProblemCounts, fail, picture_id
from sgpipe.sources.fields import FieldError, clean, required, side, word, xyxy_to_xywh
from sgpipe.sources.json_stream import JsonStream
from sgpipe.vocabulary import category_names, official_relation_names

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
        "object", "verb", _objects(annotations, arrays), _relations(annotations, arrays, "verbs", "hico")
    )
    for image, name, size in zip(images, names, sizes, strict=True):
        width, height = size if isinstance(size, list) and len(size) == 2 else (0, 0)
        name = clean(str(name))
        record = Record(picture_id(name), "hico", split, name, side(width), side(height))
        yield _with_pairs(record, image, columns)


def read_vcoco_pairs(annotations: Path, split: str, problems: ProblemCounts) -> Iterator[Record]:
    """The images of a file in the form of instances_vcoco_train.json, which gives no sizes.

    Raises UserError: the file is missing, not JSON, or its names are not V-COCO's.
    """
    arrays = _arrays(annotations)
    verbs = _relations(annotations, arrays, "classes", "vcoco")
    columns = _Columns("objects", "actions", _objects(annotations, arrays), verbs)
    for image in arrays.get("annotations", []):
        try:
            name = word(image, "file_name")
        except FieldError:
            problems["malformed"] += 1
            continue
        yield _with_pairs(Record(picture_id(name), "vcoco", split, name, 0, 0), image, columns)


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


def _relations(path: Path, arrays: Mapping[str, list[Any]], key: str, dataset: str) -> list[str]:
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
        lists = [required(image, key) for key in ("boxes_h", "boxes_o", columns.objects, columns.relations)]
        for human, thing, category, verb in zip(*lists, strict=True):
            name = _pick(columns.object_names, category, columns.objects)
            ends = place("person", human), place(name, thing)
            record.relations.append(Relation(*ends, _pick(columns.relation_names, verb, columns.relations)))
    except FieldError as error:
        return fail(record, str(error))
    except (TypeError, ValueError):
        return fail(record, "its lists of pairs differ in length")
    return record


def _pick(names: Sequence[str], index: Any, key: str) -> str:
    if not isinstance(index, int) or not 0 <= index < len(names) or names[index] == _NONE:
        raise FieldError(f"{key!r} holds {index!r}, which stands for none of its names")
    return names[index]
