"""HICO-DET in HOIA form: what persons do with COCO's objects, in HICO-DET's verbs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rlip_model.evaluation.hico_classes import CLASSES, PERSON, class_numbers
from sgpipe.evaluation.label_quality.synonyms import predicate_lemma
from sgpipe.export.rows import Labels, plain, write_json
from sgpipe.records import Box, Record
from sgpipe.sources.vocabulary import category_names, relation_names


def write_hico(labels: Labels, out: Path) -> None:
    """hico_SPLIT.json. Objects of other classes are left out, and what is none of the 600 interactions."""
    for split in labels.splits:
        write_json(out / f"hico_{split}.json", _items(labels, split))


def _items(labels: Labels, split: str) -> Iterator[dict[str, Any]]:
    numbers = {name: number for number, name in category_names("coco").items()}
    for record in labels.records(split, "objects", "relations"):
        usable = [box.category in numbers and not box.iscrowd for box in record.objects]
        places = labels.places(record, usable)
        boxes = [record.objects[index] for index in places]
        yield {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "width": record.width,
            "height": record.height,
            "annotations": [{"bbox": _corners(box), "category_id": numbers[box.category]} for box in boxes],
            "hoi_annotation": list(_interactions(labels, record, boxes, places)),
        }


def _interactions(labels: Labels, record: Record, boxes: list[Box], places: dict[int, int]) -> Iterator[dict[str, int]]:
    for relation in labels.relations(record, places):
        verb = _verb(relation.predicate)
        number = verb and _interaction(boxes[relation.subject].category, boxes[relation.object].category, verb)
        if verb and number:
            ends = {"subject_id": relation.subject, "object_id": relation.object}
            yield {**ends, "category_id": verb, "hoi_category_id": number}
        else:
            labels.left_out["relations that the form cannot hold"] += 1


@cache
def _verb(predicate: str) -> int | None:
    """HICO-DET's number of a verb, however it is inflected: "riding" is "ride"."""
    names = {name: number for number, name in relation_names("hico").items()}
    lemmas = {predicate_lemma(name): number for name, number in names.items()}
    return names.get(predicate) or lemmas.get(predicate_lemma(predicate))


@cache
def _interaction(subject: str, object_: str, verb: int) -> int | None:
    """The number of an interaction, 1 to 600; None: it is none of HICO-DET's."""
    objects = list(category_names("coco").values())
    if subject != objects[PERSON]:
        return None
    places = CLASSES.labels(class_numbers())[:, 1:].tolist()
    wanted = [objects.index(object_), verb - 1]
    return places.index(wanted) + 1 if wanted in places else None


def _corners(box: Box) -> list[float | int]:
    x, y, width, height = box.bbox
    return [plain(value) for value in (x, y, x + width, y + height)]
