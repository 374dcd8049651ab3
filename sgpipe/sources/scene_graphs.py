"""Scene graphs in Visual Genome's format, and RLIPv2's pseudo-labels of COCO and Objects365, which extend it.

A relation refers to its objects by id, or contains them. Pseudo-labels have confidences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.images import image_exists
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import (
    AnnotationSource,
    FieldError,
    ProblemCounts,
    integer_field,
    mark_failed,
    parse_confidence,
    parse_id,
    parse_numbers,
    parse_side,
    replace_objects,
    replace_surrogates,
    required_field,
    text_field,
)
from sgpipe.sources.formats import PSEUDO_LABELS, SCENE_GRAPHS, require_format

_NO_CATEGORY_ID = 0  # category_id of classes that have only a name


def iter_graphs(path: Path) -> Iterator[Any]:
    """The scene graphs of a file, which may also consist of a single one.

    Raises UserError: the file is missing, cut short or not JSON.
    """
    stream, single = JsonStream(path), dict[str, Any]()
    for array, item in stream:
        if array == "":
            yield item
        else:
            single.setdefault(array, []).append(item)
    if single:
        yield {**stream.scalars, **single}


def graph_record(item: Any, dataset: str, split: str, problems: ProblemCounts) -> Record | None:
    """A scene graph as a record, with unchanged names and predicates; None if it has no image id.

    Unreadable objects and relations are counted as malformed, relations of unlisted objects as unknown_object.
    """
    image_id = parse_id(item.get("image_id")) if isinstance(item, Mapping) else None
    if image_id is None:
        problems["malformed"] += 1
        return None
    name = replace_surrogates(str(item.get("file_name") or f"{image_id}.jpg"))
    record = Record(image_id, dataset, split, name, parse_side(item.get("width")), parse_side(item.get("height")))
    relationships = _items(item, "relationships", problems)
    inline = (end for entry in relationships for end in _inline_objects(entry))
    indices: dict[int, int] = {}
    for thing in (*_items(item, "objects", problems), *inline):
        _add_object(record, indices, thing, problems)
    for entry in relationships:
        _add_relation(record, indices, entry, problems)
    return record


def drop_nameless(record: Record, problems: ProblemCounts) -> None:
    """Drop relations with a blank predicate and objects with a blank name."""
    named = [relation for relation in record.relations if relation.predicate.strip()]
    if nameless := len(record.relations) - len(named):
        problems["nameless"] += nameless
    record.relations = named
    boxes = [box if box.category.strip() else None for box in record.objects]
    if nameless := boxes.count(None):
        problems["nameless"] += nameless
        replace_objects(record, boxes, problems)


def _items(item: Mapping[str, Any], key: str, problems: ProblemCounts) -> list[Any]:
    items = item.get(key) or []
    if isinstance(items, list):
        return items
    problems["malformed"] += 1
    return []


def _inline_objects(entry: Any) -> Iterator[Any]:
    """The objects that a relation contains."""
    if isinstance(entry, Mapping):
        yield from (entry[end] for end in ("subject", "object") if isinstance(entry.get(end), Mapping))


def _add_object(record: Record, indices: dict[int, int], thing: Any, problems: ProblemCounts) -> None:
    try:
        number = integer_field(thing, "object_id")
        x, y, width, height = parse_numbers([required_field(thing, key) for key in "xywh"], 4)
        box = Box(_name(thing), _NO_CATEGORY_ID, (x, y, width, height))
    except FieldError:
        problems["malformed"] += 1
        return
    if number in indices:  # the last object of an id counts, as in RLIPv2's preprocessing
        record.objects[indices[number]] = box
    else:
        indices[number] = len(record.objects)
        record.objects.append(box)


def _name(thing: Any) -> str:
    """The name of an object, from `name`, `names`, or the first of a list of `names`. Raises FieldError."""
    if "name" in thing:
        return text_field(thing, "name")
    names = required_field(thing, "names")
    return text_field({"names": names[0]} if isinstance(names, list) and names else thing, "names")


def _add_relation(record: Record, indices: dict[int, int], entry: Any, problems: ProblemCounts) -> None:
    try:
        predicate, confidence = text_field(entry, "predicate"), parse_confidence(entry.get("confidence"))
        ends = [_object_id(entry, end) for end in ("subject", "object")]
    except FieldError:
        problems["malformed"] += 1
        return
    if all(end in indices for end in ends):
        record.relations.append(Relation(indices[ends[0]], indices[ends[1]], predicate, confidence))
    else:
        problems["unknown_object"] += 1


def _object_id(entry: Any, end: str) -> int:
    inline = entry.get(end)
    return integer_field(inline, "object_id") if isinstance(inline, Mapping) else integer_field(entry, f"{end}_id")


@dataclass(frozen=True)
class PseudoLabels:
    """A file of pseudo-labels.

    Attributes:
        image_paths: Objects365's image_id_to_filepath.json, required for its images: their ids do not give file names.
    """

    annotations: Path
    images: ImagePlace
    split: str
    image_paths: Path | None = None

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or of another format."""
        require_format(self.annotations, PSEUDO_LABELS, SCENE_GRAPHS)
        files = {"annotations": self.annotations, "image_paths": self.image_paths}
        return AnnotationSource(
            dataset="rlipv2",
            split=self.split,
            read=self.records,
            files={role: path for role, path in files.items() if path},
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """The images in file order, with unchanged relations."""
        paths = _image_paths(self.image_paths)
        for item in iter_graphs(self.annotations):
            dataset = replace_surrogates(str(item.get("dataset") or "rlipv2")) if isinstance(item, Mapping) else ""
            record = graph_record(item, dataset, self.split, problems)
            if record is None:
                continue
            drop_nameless(record, problems)
            yield self._located(record, item, paths)

    def _located(self, record: Record, item: Mapping[str, Any], paths: Mapping[str, Any]) -> Record:
        """The record with the file name of its image, which depends on the dataset."""
        if "file_name" in item:
            return record
        if record.dataset in ("o365", "objects365"):
            if not paths:
                raise UserError(
                    f"{self.annotations}: image {record.image_id} is of Objects365, whose image ids do not give file "
                    "names: give --image-paths image_id_to_filepath.json"
                )
            if record.image_id not in paths:
                return mark_failed(record, f"{self.image_paths} has no path for the image")
            record.file_name = replace_surrogates(paths[record.image_id])
        elif record.dataset.startswith("coco"):
            name, folder = f"{record.image_id:0>12}.jpg", replace_surrogates(str(item.get("data_split") or "train2017"))
            record.file_name = next((n for n in (f"{folder}/{name}", name) if image_exists(self.images, n)), name)
        return record


def _image_paths(path: Path | None) -> Mapping[str, Any]:
    """Raises UserError: the file is missing or not an object {image id: path}."""
    if path is None:
        return {}
    stream = JsonStream(path)
    if any(True for _ in stream) or not all(isinstance(name, str) for name in stream.scalars.values()):
        raise UserError(f"{path} is not an image_id_to_filepath.json: expected an object {{image id: path}}")
    return stream.scalars
