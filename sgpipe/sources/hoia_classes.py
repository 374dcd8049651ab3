"""The class lists of files in HOIA format, which name classes by numbers only, and whether a file can have them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from rlip_model.evaluation.hico_classes import CLASSES, class_numbers
from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.text_files import read_text
from sgpipe.records import NO_OBJECT
from sgpipe.sources.annotated import DatasetClasses, replace_surrogates
from sgpipe.sources.vocabulary import category_names, relation_names


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
        """The inverse of `class_list`. Names may also be lists, which count from 1.

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
_NAMES = ("name", "category", "category_name")  # keys under which exporters repeat the name of a category_id


def check_classes(annotations: Path, schema: HoiaSchema, dataset: str, classes: Path | None = None) -> None:
    """Refuse a file in HOIA format whose numbers belong to another list of classes.

    Args:
        dataset: what the classes belong to; of HICO-DET also the 600 interactions are known.
        classes: the file that they were read from.

    Raises UserError: a file beside it lists other classes, or most relations are impossible with these.
    """
    beside = annotations.with_name(f"{annotations.name.removesuffix('.gz').removesuffix('.json')}_classes.json")
    if classes is None and beside.is_file() and not _lists(beside, schema):
        raise UserError(
            f"{annotations} has the classes of {beside}, not those of {_TITLES[dataset]}: give --classes {beside}"
        )
    relations, wrong, seen = 0, list[str](), set[str]()
    for _, item in islice(JsonStream(annotations), _IMAGES_CHECKED):
        name = str(item.get("file_name")) if isinstance(item, Mapping) else ""
        if name in seen:
            continue
        seen.add(name)
        for fault in _faults(item, schema, hico_interactions() if dataset == "hico" else None):
            relations += 1
            wrong += [f"image {name!r}: {fault}"] if fault else []
    if len(wrong) >= _ENOUGH and 2 * len(wrong) > relations:
        owner = f"those of {classes}" if classes else f"those of {_TITLES[dataset]}"
        advice = "give the file that lists them" if classes else _ADVICE[dataset]
        raise UserError(
            f"the classes of {annotations} are not {owner}: {len(wrong):,} of {relations:,} relations are impossible "
            f"({replace_surrogates(wrong[0])}); {advice}"
        )


def _lists(path: Path, schema: HoiaSchema) -> bool:
    """Whether a file lists these classes."""
    try:
        return read_classes(path).class_list == schema.class_list
    except UserError:
        return False


_TITLES = {"hico": "HICO-DET", "vcoco": "V-COCO", "open_images": "Open Images"}
_OTHER = "list the classes in a file and give --classes FILE"
_ADVICE = {"hico": _OTHER, "vcoco": _OTHER, "open_images": "only files with the classes of Open Images can be imported"}


def _faults(item: Any, schema: HoiaSchema, possible: frozenset[tuple[int, int]] | None) -> Iterator[str]:
    """For each relation of an image why it is impossible, or "". Relations that cannot be read are left out."""
    boxes, relations = (item.get(key) if isinstance(item, Mapping) else None for key in ("annotations", schema.key))
    if not isinstance(boxes, list) or not isinstance(relations, list):
        return
    for relation in relations:
        if not isinstance(relation, Mapping) or not isinstance(index := relation.get("object_id"), int):
            continue
        box = boxes[index] if 0 <= index < len(boxes) else None
        yield _fault(relation, box if isinstance(box, Mapping) else None, schema, possible)


def _fault(
    relation: Mapping[str, Any],
    box: Mapping[str, Any] | None,
    schema: HoiaSchema,
    possible: frozenset[tuple[int, int]] | None,
) -> str:
    verb, object_ = relation.get("category_id"), box.get("category_id") if box else None
    if not isinstance(verb, int) or not isinstance(object_, int | None):
        return ""  # it makes an error row
    if verb not in schema.relations:
        return f"there is no relation {verb!r}"
    if object_ is not None and object_ not in schema.objects:
        return f"there is no object class {object_!r}"
    names = [(relation, schema.relations[verb]), (box or {}, schema.objects.get(object_ or 0, ""))]
    for entry, name in names:
        for given in (entry.get(key) for key in _NAMES):
            if isinstance(given, str) and _plain(given) != _plain(name):
                return f"category_id {entry.get('category_id')!r} is called {given!r}, not {name!r}"
    if possible is not None and object_ is not None and (verb, object_) not in possible:
        return f"{schema.relations[verb]!r} of {schema.objects[object_]!r} is not an interaction of HICO-DET"
    return ""


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


@cache
def hico_interactions() -> frozenset[tuple[int, int]]:
    """HICO-DET's 600 pairs of verb and object, by their numbers."""
    objects, verbs = list(HICO.objects), list(HICO.relations)
    pairs = CLASSES.labels(class_numbers())[:, 1:].tolist()
    return frozenset((verbs[verb], objects[object_]) for object_, verb in pairs)
