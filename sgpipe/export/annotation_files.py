"""A run as annotation files: COCO with or without relations, Visual Genome, RLIPv2's pseudo-labels, and HICO-DET.

COCO: instances and captions, RelTR's file of triplets, and SGG-Benchmark's form. HICO-DET: HOIA's form, interactions of
persons with COCO's objects in HICO-DET's verbs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from rlip_model.evaluation.hico_classes import CLASSES, PERSON, class_numbers
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.records import Record
from sgpipe.sources.coco import NO_RELATION
from sgpipe.sources.vocabulary import category_names, relation_names
from sgpipe.utils.lemmas import predicate_lemma


def write_coco(rows: ExportRows, out: Path) -> None:
    """Write instances_SPLIT.json and, if the images have captions, captions_SPLIT.json; no relations."""
    numbers = _category_ids(rows, with_nothing=False)
    rows.left_out["relations that the format cannot hold"] += sum(
        shard.counts.get("relations", 0) for shard in rows.manifest.shards
    )
    for split in rows.splits:
        write_json(out / f"instances_{split}.json", Members(_instances(rows, split, numbers, with_nothing=False)))
        captions = _captions(rows, split)
        if (first := next(captions, None)) is not None:
            pairs = [("images", _entries(rows, split)), ("annotations", chain([first], captions))]
            write_json(out / f"captions_{split}.json", Members(pairs))


def write_coco_relations(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json (instances) and rel.json: triplets by split and image; their object indices skip crowds."""
    numbers, predicates = _category_ids(rows, with_nothing=True), _number_predicates(rows)
    for split in rows.splits:
        write_json(out / f"{split}.json", Members(_instances(rows, split, numbers, with_nothing=True)))
    splits = [(split, Members(_triplets(rows, split, predicates))) for split in rows.splits]
    write_json(out / "rel.json", Members([*splits, ("rel_categories", [NO_RELATION, *predicates])]))


def write_sgg_benchmark(rows: ExportRows, out: Path) -> None:
    """Write SPLIT/_annotations.coco.json: instances with `rel_annotations`, which refer to the ids of `annotations`.

    SGG-Benchmark takes class and predicate 0 for the background, so numbers of both begin at 1. It ignores confidences.
    """
    numbers, predicates = _category_ids(rows, with_nothing=True, positive=True), _number_predicates(rows)
    categories = [{"id": number, "name": name} for name, number in predicates.items()]
    for split in rows.splits:
        (out / split).mkdir()
        members = _instances(rows, split, numbers, with_nothing=True)
        members.insert(2, ("rel_annotations", _rel_annotations(rows, split, predicates)))
        write_json(out / split / "_annotations.coco.json", Members([*members, ("rel_categories", categories)]))


def _number_predicates(rows: ExportRows) -> dict[str, int]:
    """The numbers of all predicates, from 1; those of a closed list in its order."""
    names = rows.manifest.run.get("labels")
    predicates = names["relations"] if names else sorted(rows.census.predicates)
    return {name: number for number, name in enumerate(predicates, 1)}


def _category_ids(rows: ExportRows, *, with_nothing: bool, positive: bool = False) -> dict[str, int]:
    """The ids of all classes.

    Args:
        with_nothing: include the placeholder for the missing object of a relation.
        positive: number the classes from 1 if the run has a number below that.
    """
    names, seen = rows.manifest.run.get("labels"), rows.census.categories
    if not with_nothing:
        rows.left_out["objects that the format cannot hold"] += rows.census.nothing.total()
        seen = seen - rows.census.nothing
    return number_categories(seen, names and names["objects"], positive=positive)


def _instances(
    rows: ExportRows, split: str, numbers: Mapping[str, int], *, with_nothing: bool
) -> list[tuple[str, Any]]:
    """The content of the instances file of a split; `numbers`: of classes."""
    ids = count(1)
    annotations = (
        {
            "id": next(ids),
            "image_id": image["id"],
            "category_id": numbers[box.category],
            "bbox": [plain(value) for value in box.bbox],
            "area": plain(box.bbox[2] * box.bbox[3]),
            "iscrowd": int(box.iscrowd),
            "segmentation": json.loads(box.segmentation or "[]"),
        }
        for image, record in _images(rows, split, "objects")
        for box in record.objects
        if with_nothing or not box.is_nothing
    )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return [("images", _entries(rows, split)), ("annotations", annotations), ("categories", categories)]


def _images(rows: ExportRows, split: str, *columns: str) -> Iterator[tuple[dict[str, Any], Record]]:
    """COCO's entry of each image, and its record. Ids that are not numbers go to `image_id`, and `id` counts."""
    for number, record in enumerate(rows.records(split, *columns), 1):
        image: dict[str, Any] = {"id": as_number(record.image_id)}
        if not rows.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        yield image | {"file_name": record.file_name, "width": record.width, "height": record.height}, record


def _entries(rows: ExportRows, split: str) -> Iterator[dict[str, Any]]:
    return (image for image, _ in _images(rows, split))


def _captions(rows: ExportRows, split: str) -> Iterator[dict[str, Any]]:
    numbers = count(1)
    for image, record in _images(rows, split, "captions"):
        for caption in record.captions:
            if caption.scope == "image":
                yield {"id": next(numbers), "image_id": image["id"], "caption": caption.text}
            else:
                rows.left_out["captions that the format cannot hold"] += 1


def _triplets(rows: ExportRows, split: str, numbers: dict[str, int]) -> Iterator[tuple[str, list[list[int]]]]:
    for image, record in _images(rows, split, "objects", "relations"):
        counted = (index for index, box in enumerate(record.objects) if not box.iscrowd)
        indices = {index: new for new, index in enumerate(counted)}
        relations = rows.relations(record, indices)
        yield str(image["id"]), [[item.subject, item.object, numbers[item.predicate]] for item in relations]


def _rel_annotations(rows: ExportRows, split: str, predicates: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Relations between the annotations of a split, which are numbered from 1 in the order of `_Instances`."""
    numbers, before = count(1), 1
    for image, record in _images(rows, split, "objects", "relations"):
        indices = {index: before + index for index in range(len(record.objects))}
        for item in rows.relations(record, indices):
            relation: dict[str, Any] = {
                "id": next(numbers),
                "image_id": image["id"],
                "subject_id": item.subject,
                "predicate_id": predicates[item.predicate],
                "object_id": item.object,
            }
            yield relation if item.confidence is None else relation | {"confidence": item.confidence}
        before += len(record.objects)


_OFFICIAL = ("coco", "objects365", "open_images")


def number_categories(
    seen: Collection[tuple[int, str]], names: Sequence[str] | None, *, positive: bool = False
) -> dict[str, int]:
    """An id for each class, including classes without objects.

    Classes keep the ids of the run if these are unambiguous and cover all classes; otherwise they get the ids of the
    dataset that they belong to; otherwise they count from 1.

    Args:
        seen: the id and the class name of every object.
        names: all classes in order, if the run knows them; classes without objects have no known id.
        positive: the form has no ids below 1.
    """
    known = {name: number for number, name in sorted(seen)}
    classes = list(dict.fromkeys([*(names or ()), *known]))
    if len({number for number, _ in seen}) == len(known) == len(seen):
        official = ({name: number for number, name in category_names(dataset).items()} for dataset in _OFFICIAL)
        for ids in (known, *official):
            kept = {name: number for name, number in ids.items() if name in classes}
            fits = not positive or all(number > 0 for number in kept.values())
            if fits and known.items() <= kept.items() and len(kept) == len(classes):
                return kept
    return {name: number for number, name in enumerate(classes if names else sorted(classes), 1)}


# RLIPv2's name of a dataset, and its first object and relation ids, which keep files of several datasets apart.
_PUBLISHED = {"coco": ("coco2017", 10_000_000), "objects365": ("o365", 20_000_000)}
_OBJECTS365 = "o365"


def write_visual_genome(rows: ExportRows, out: Path) -> None:
    """scene_graphs_SPLIT.json and image_data_SPLIT.json; each relation also has its confidence."""
    ids = count(1), count(1)
    for split in rows.splits:
        records = rows.records(split, "objects", "relations")
        graphs = (_image(record) | _graph(rows, record, ids, as_vg=True) for record in records)
        write_json(out / f"scene_graphs_{split}.json", graphs)
        images = (
            {"image_id": as_number(r.image_id), "width": r.width, "height": r.height} for r in rows.records(split)
        )
        write_json(out / f"image_data_{split}.json", images)


def write_rlipv2(rows: ExportRows, out: Path) -> None:
    """SPLIT.json and, for Objects365, image_id_to_filepath.json, which locates its images."""
    ids: dict[str, tuple[Iterator[int], Iterator[int]]] = {}
    for split in rows.splits:
        write_json(out / f"{split}.json", _pseudo_labels(rows, split, ids))
    if _OBJECTS365 in ids:
        records = (record for split in rows.splits for record in rows.records(split))
        paths = ((r.image_id, r.file_name) for r in records if _published(r.dataset)[0] == _OBJECTS365)
        write_json(out / "image_id_to_filepath.json", Members(paths))


def _pseudo_labels(
    rows: ExportRows, split: str, ids: dict[str, tuple[Iterator[int], Iterator[int]]]
) -> Iterator[dict[str, Any]]:
    for record in rows.records(split, "objects", "relations"):
        name, first = _published(record.dataset)
        of_dataset = ids.setdefault(name, (count(first), count(first)))
        # For COCO the folder of the image, where the published training looks for it.
        folder = record.file_name.rpartition("/")[0].rpartition("/")[2] or f"{record.split}2017"
        origin = {"dataset": name, "data_split": folder if name == "coco2017" else record.split}
        yield _image(record) | origin | _graph(rows, record, of_dataset)


def _published(dataset: str) -> tuple[str, int]:
    return _PUBLISHED.get(dataset, (dataset, 1))


def _image(record: Record) -> dict[str, Any]:
    return {
        "image_id": as_number(record.image_id),
        "file_name": record.file_name,
        "width": record.width,
        "height": record.height,
    }


def _graph(
    rows: ExportRows, record: Record, ids: tuple[Iterator[int], Iterator[int]], *, as_vg: bool = False
) -> dict[str, Any]:
    """The objects and relations of an image, without crowds and without blank names, which readers drop.

    Args:
        ids: of objects and of relations. as_vg: list the names of an object, and its attributes if it has any.
    """
    indices = rows.renumber(record, [not box.iscrowd and bool(box.category.strip()) for box in record.objects])
    things = []
    for box in (record.objects[index] for index in indices):
        sides = dict(zip("xywh", map(plain, box.bbox), strict=True))
        attributes = list(dict.fromkeys(each.name for each in box.attributes)) if as_vg else []
        things.append(
            {"object_id": next(ids[0]), **sides, "names": [box.category] if as_vg else box.category}
            | ({"attributes": attributes} if attributes else {})
        )
    relations = rows.relations(record, indices)
    named = [relation for relation in relations if relation.predicate.strip()]
    rows.left_out["relations that the format cannot hold"] += len(relations) - len(named)
    relationships = [
        {
            "relationship_id": next(ids[1]),
            "predicate": relation.predicate,
            "subject_id": things[relation.subject]["object_id"],
            "object_id": things[relation.object]["object_id"],
            **({} if relation.confidence is None else {"confidence": relation.confidence}),
        }
        for relation in named
    ]
    return {"objects": things, "relationships": relationships}


def write_hico(rows: ExportRows, out: Path) -> None:
    """Write hico_SPLIT.json, without objects of other classes and relations other than the 600 interactions."""
    for split in rows.splits:
        write_json(out / f"hico_{split}.json", _items(rows, split))


def _items(rows: ExportRows, split: str) -> Iterator[dict[str, Any]]:
    numbers = {name: number for number, name in category_names("coco").items()}
    for record in rows.records(split, "objects", "relations"):
        indices = rows.renumber(record, [box.category in numbers and not box.iscrowd for box in record.objects])
        boxes = [record.objects[index] for index in indices]
        interactions = []
        for relation in rows.relations(record, indices):
            verb = _verb(relation.predicate)
            number = verb and _interaction(boxes[relation.subject].category, boxes[relation.object].category, verb)
            if number:
                ends = {"subject_id": relation.subject, "object_id": relation.object}
                interactions.append({**ends, "category_id": verb, "hoi_category_id": number})
            else:
                rows.left_out["relations that the format cannot hold"] += 1
        yield {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "width": record.width,
            "height": record.height,
            "annotations": [
                {"bbox": [plain(x), plain(y), plain(x + w), plain(y + h)], "category_id": numbers[box.category]}
                for box in boxes
                for x, y, w, h in [box.bbox]
            ],
            "hoi_annotation": interactions,
        }


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
