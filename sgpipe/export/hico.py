"""`sgpipe export --to hico`: HICO-DET's interactions in HOIA format."""

from collections import Counter
from functools import lru_cache
from pathlib import Path

from rlip_model.evaluation.hico_classes import CLASSES, PERSON, class_numbers
from sgpipe.export.fields import corners, image_fields
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, write_json
from sgpipe.records import Record, Relation
from sgpipe.sources.vocabulary import category_names, relation_names
from sgpipe.utils.console import count
from sgpipe.utils.lemmas import predicate_lemma

_LISTED_PREDICATES = 5
_CACHED_PREDICATES = 1 << 14
_NO_VERB = "relations whose predicate is none of HICO-DET's verbs"
_NO_INTERACTION = "relations that are none of HICO-DET's 600 interactions"


def write_hico(rows: ExportRows, out: Path) -> None:
    """Write hico_SPLIT.json, without objects of other classes and relations other than the 600
    interactions.
    """
    categories = {name: number for number, name in category_names("coco").items()}
    verbs = relation_names("hico")
    interactions = _interaction_numbers(list(categories))
    renamed = Counter[tuple[str, str]]()

    def interaction(relation: Relation, subject: str, object_: str) -> dict[str, float] | None:
        verb = verb_number(relation.predicate)
        if verb is None:
            rows.left_out[_NO_VERB] += 1
            return None
        number = interactions.get((subject, object_, verb))
        if number is None:
            rows.left_out[_NO_INTERACTION] += 1
            return None
        if verbs[verb] != relation.predicate:
            renamed[relation.predicate, verbs[verb]] += 1
        ends = {"subject_id": relation.subject, "object_id": relation.object}
        score = {} if relation.confidence is None else {"score": relation.confidence}
        return {**ends, "category_id": verb, "hoi_category_id": number, **score}

    def item(record: Record) -> dict[str, object]:
        usable = [box.category in categories and not box.iscrowd for box in record.objects]
        indices = rows.renumber(record, usable)
        boxes = [record.objects[index] for index in indices]
        triplets = []
        for relation in rows.relations(record, indices):
            subject = boxes[relation.subject].category
            object_ = boxes[relation.object].category
            triplets.append(interaction(relation, subject, object_))
        annotations = []
        for box in boxes:
            annotations.append({"bbox": corners(box), "category_id": categories[box.category]})
        return {
            **image_fields(record),
            "image_id": record.image_id,  # also where it is a number
            "annotations": annotations,
            "hoi_annotation": list(filter(None, triplets)),
        }

    for split in rows.splits:
        write_json(
            out / f"hico_{split}.json", map(item, rows.records(split, "objects", "relations"))
        )
    rows.note = _describe_renamed(renamed)


@lru_cache(_CACHED_PREDICATES)
def verb_number(predicate: str) -> int | None:
    """Return the number of the verb of HICO-DET that a predicate names in any inflection
    ("riding"), or None.
    """
    numbers = {name: number for number, name in relation_names("hico").items()}
    if predicate in numbers:
        return numbers[predicate]
    lemmas = {predicate_lemma(name): number for name, number in numbers.items()}
    return lemmas.get(predicate_lemma(predicate))


def _describe_renamed(renamed: Counter[tuple[str, str]]) -> str:
    """Say which predicates became verbs, the most frequent first; "": none."""
    if not renamed:
        return ""
    frequent = renamed.most_common(_LISTED_PREDICATES)
    names = [f"{predicate} → {verb} ({number:,})" for (predicate, verb), number in frequent]
    further = len(renamed) - len(frequent)
    if further:
        names.append(count(further, "other predicate"))
    return f"{count(renamed.total(), 'relation')} renamed to HICO-DET's verbs: {', '.join(names)}"


def _interaction_numbers(names: list[str]) -> dict[tuple[str, str, int], int]:
    """Return the numbers of the interactions by the class of the subject, that of the object, and
    the verb's number.
    """
    labels = CLASSES.labels(class_numbers()).tolist()
    return {
        (names[PERSON], names[object_], verb + 1): number
        for number, (_, object_, verb) in enumerate(labels, 1)
    }


HICO = Format("hico", write_hico)
