"""COCO's instances and captions files, and two forms of relations: RelTR's file of triplets, and SGG-Benchmark's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.records import Box, Record
from sgpipe.sources.coco import NO_RELATION
from sgpipe.sources.vocabulary import category_names


def write_coco(rows: ExportRows, out: Path) -> None:
    """Write instances_SPLIT.json and, if the images have captions, captions_SPLIT.json; no relations."""
    _Instances(rows, with_nothing=False).write(out, "instances_{}.json")
    rows.left_out["relations that the format cannot hold"] += sum(
        shard.counts.get("relations", 0) for shard in rows.manifest.shards
    )
    for split in rows.splits:
        captions = _captions(rows, split)
        if (first := next(captions, None)) is not None:
            images = (image for image, _ in _images(rows, split))
            pairs = [("images", images), ("annotations", chain([first], captions))]
            write_json(out / f"captions_{split}.json", Members(pairs))


def write_coco_relations(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json (instances) and rel.json: triplets by split and image; their object indices skip crowds."""
    _Instances(rows, with_nothing=True).write(out, "{}.json")
    numbers = _number_predicates(rows)
    splits = [(split, Members(_triplets(rows, split, numbers))) for split in rows.splits]
    write_json(out / "rel.json", Members([*splits, ("rel_categories", [NO_RELATION, *numbers])]))


def write_sgg_benchmark(rows: ExportRows, out: Path) -> None:
    """Write SPLIT/_annotations.coco.json: instances with `rel_annotations`, which refer to the ids of `annotations`.

    SGG-Benchmark takes class and predicate 0 for the background, so numbers of both begin at 1. It ignores confidences.
    """
    numbers = _number_predicates(rows)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    instances = _Instances(rows, with_nothing=True, positive=True)
    for split in rows.splits:
        (out / split).mkdir()
        members = instances.members(split)
        members.insert(2, ("rel_annotations", _rel_annotations(rows, split, numbers)))
        write_json(out / split / "_annotations.coco.json", Members([*members, ("rel_categories", categories)]))


def _number_predicates(rows: ExportRows) -> dict[str, int]:
    """The numbers of all predicates, from 1; those of a closed list in its order."""
    names = rows.manifest.run.get("labels")
    predicates = names["relations"] if names else sorted(rows.census.predicates)
    return {name: number for number, name in enumerate(predicates, 1)}


class _Instances:
    """Instances files of all splits with the same class ids."""

    def __init__(self, rows: ExportRows, *, with_nothing: bool, positive: bool = False) -> None:
        """Args:
        with_nothing: include the placeholder for the missing object of a relation.
        positive: number the classes from 1 if the run has a number below that.
        """
        names = rows.manifest.run.get("labels")
        self._rows = rows
        self._with_nothing = with_nothing
        seen = rows.census.categories
        if not with_nothing:
            rows.left_out["objects that the format cannot hold"] += rows.census.nothing.total()
            seen = seen - rows.census.nothing
        self._numbers = number_categories(seen, names and names["objects"], positive=positive)
        self._categories = [{"id": number, "name": name} for name, number in self._numbers.items()]

    def write(self, out: Path, file_name: str) -> None:
        for split in self._rows.splits:
            write_json(out / file_name.format(split), Members(self.members(split)))

    def members(self, split: str) -> list[tuple[str, Any]]:
        """The content of the file of a split."""
        images = (image for image, _ in _images(self._rows, split))
        return [("images", images), ("annotations", self._annotations(split)), ("categories", self._categories)]

    def _annotations(self, split: str) -> Iterator[dict[str, Any]]:
        numbers = count(1)
        for image, record in _images(self._rows, split, "objects"):
            for box in record.objects:
                if self._with_nothing or not box.is_nothing:
                    yield self._annotation(next(numbers), image["id"], box)

    def _annotation(self, number: int, image_id: int, box: Box) -> dict[str, Any]:
        _, _, width, height = box.bbox
        return {
            "id": number,
            "image_id": image_id,
            "category_id": self._numbers[box.category],
            "bbox": [plain(value) for value in box.bbox],
            "area": plain(width * height),
            "iscrowd": int(box.iscrowd),
            "segmentation": [],
        }


def _images(rows: ExportRows, split: str, *columns: str) -> Iterator[tuple[dict[str, Any], Record]]:
    """COCO's entry of each image, and its record. Ids that are not numbers go to `image_id`, and `id` counts."""
    for number, record in enumerate(rows.records(split, *columns), 1):
        image: dict[str, Any] = {"id": as_number(record.image_id)}
        if not rows.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        yield image | {"file_name": record.file_name, "width": record.width, "height": record.height}, record


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
        for ids in (known, *map(_official, _OFFICIAL)):
            kept = {name: number for name, number in ids.items() if name in classes}
            fits = not positive or all(number > 0 for number in kept.values())
            if fits and known.items() <= kept.items() and len(kept) == len(classes):
                return kept
    return {name: number for number, name in enumerate(classes if names else sorted(classes), 1)}


def _official(dataset: str) -> dict[str, int]:
    return {name: number for number, name in category_names(dataset).items()}
