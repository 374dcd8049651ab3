"""HICO-DET in HOIA format: interactions of persons with COCO's objects, in HICO-DET's verbs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rlip_model.evaluation.hico_classes import CLASSES, PERSON, class_numbers
from sgpipe.evaluation.label_quality.synonyms import predicate_lemma
from sgpipe.export.rows import ExportRows, plain, write_json
from sgpipe.records import Box, Record
from sgpipe.sources.vocabulary import category_names, relation_names


def write_hico(rows: ExportRows, out: Path) -> None:
    """Write hico_SPLIT.json, without objects of other classes and relations other than the 600 interactions."""
    for split in rows.splits:
        write_json(out / f"hico_{split}.json", _items(rows, split))


def _items(rows: ExportRows, split: str) -> Iterator[dict[str, Any]]:
    numbers = {name: number for number, name in category_names("coco").items()}
    for record in rows.records(split, "objects", "relations"):
        usable = [box.category in numbers and not box.iscrowd for box in record.objects]
        indices = rows.renumber(record, usable)
        boxes = [record.objects[index] for index in indices]
        yield {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "width": record.width,
            "height": record.height,
            "annotations": [{"bbox": _corners(box), "category_id": numbers[box.category]} for box in boxes],
            "hoi_annotation": list(_interactions(rows, record, boxes, indices)),
        }


def _interactions(
    rows: ExportRows, record: Record, boxes: list[Box], indices: dict[int, int]
) -> Iterator[dict[str, int]]:
    for relation in rows.relations(record, indices):
        verb = _verb(relation.predicate)
        number = verb and _interaction(boxes[relation.subject].category, boxes[relation.object].category, verb)
        if verb and number:
            ends = {"subject_id": relation.subject, "object_id": relation.object}
            yield {**ends, "category_id": verb, "hoi_category_id": number}
        else:
            rows.left_out["relations that the format cannot hold"] += 1


@cache
def _verb(predicate: str) -> int | None:
    """HICO-DET's number of a verb in any inflection: "riding" is "ride"."""
    names = {name: number for number, name in relation_names("hico").items()}
    lemmas = {predicate_lemma(name): number for name, number in names.items()}
    return names.get(predicate) or lemmas.get(predicate_lemma(predicate))


@cache
def _interaction(subject: str, object_: str, verb: int) -> int | None:
    """The number of an interaction, 1 to 600; None if HICO-DET does not have it."""
    objects = list(category_names("coco").values())
    if subject != objects[PERSON]:
        return None
    interactions = CLASSES.labels(class_numbers())[:, 1:].tolist()
    interaction = [objects.index(object_), verb - 1]
    return interactions.index(interaction) + 1 if interaction in interactions else None


def _corners(box: Box) -> list[float | int]:
    x, y, width, height = box.bbox
    return [plain(value) for value in (x, y, x + width, y + height)]
