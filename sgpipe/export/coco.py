"""COCO's instances and captions files, and RelTR's file of relation triplets beside them.

Numbers for the classes of objects, where a form tells them by number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from sgpipe.export.rows import Labels, Members, as_number, plain, write_json
from sgpipe.records import Box, Record
from sgpipe.sources.coco_relations import NO_RELATION
from sgpipe.sources.vocabulary import category_names


def write_coco(labels: Labels, out: Path) -> None:
    """instances_SPLIT.json and, if there are captions of images, captions_SPLIT.json; no relations."""
    _Instances(labels, with_nothing=False).write(out, "instances_{}.json")
    labels.left_out["relations that the form cannot hold"] += labels.census.predicates.total()
    for split in labels.splits:
        captions = _captions(labels, split)
        if (first := next(captions, None)) is not None:
            images = (image for image, _ in _images(labels, split))
            pairs = [("images", images), ("annotations", chain([first], captions))]
            write_json(out / f"captions_{split}.json", Members(pairs))


def write_coco_relations(labels: Labels, out: Path) -> None:
    """SPLIT.json, instances, and rel.json: triplets by split and image, whose objects count without crowds."""
    _Instances(labels, with_nothing=True).write(out, "{}.json")
    names = labels.manifest.run.get("labels")
    predicates = names["relations"] if names else sorted(labels.census.predicates)
    numbers = {predicate: number for number, predicate in enumerate(predicates, 1)}
    splits = [(split, Members(_triplets(labels, split, numbers))) for split in labels.splits]
    write_json(out / "rel.json", Members([*splits, ("rel_categories", [NO_RELATION, *predicates])]))


class _Instances:
    """Instances files of all splits, with the same numbers of classes."""

    def __init__(self, labels: Labels, *, with_nothing: bool) -> None:
        """with_nothing: write what stands for the missing object of a relation, too."""
        names = labels.manifest.run.get("labels")
        self._labels = labels
        self._with_nothing = with_nothing
        self._numbers = number_categories(labels.census.categories, names and names["objects"])
        self._categories = [{"id": number, "name": name} for name, number in self._numbers.items()]

    def write(self, out: Path, file_name: str) -> None:
        for split in self._labels.splits:
            images = (image for image, _ in _images(self._labels, split))
            members = [
                ("images", images),
                ("annotations", self._annotations(split)),
                ("categories", self._categories),
            ]
            write_json(out / file_name.format(split), Members(members))

    def _annotations(self, split: str) -> Iterator[dict[str, Any]]:
        numbers = count(1)
        for image, record in _images(self._labels, split, "objects"):
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


def _images(labels: Labels, split: str, *columns: str) -> Iterator[tuple[dict[str, Any], Record]]:
    """An image as COCO files list it, and its record. Where ids are no numbers, they are kept under another key."""
    for number, record in enumerate(labels.records(split, *columns), 1):
        image: dict[str, Any] = {"id": as_number(record.image_id)}
        if not labels.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        yield image | {"file_name": record.file_name, "width": record.width, "height": record.height}, record


def _captions(labels: Labels, split: str) -> Iterator[dict[str, Any]]:
    numbers = count(1)
    for image, record in _images(labels, split, "captions"):
        for caption in record.captions:
            if caption.scope == "image":
                yield {"id": next(numbers), "image_id": image["id"], "caption": caption.text}
            else:
                labels.left_out["captions that the form cannot hold"] += 1


def _triplets(labels: Labels, split: str, numbers: dict[str, int]) -> Iterator[tuple[str, list[list[int]]]]:
    for image, record in _images(labels, split, "objects", "relations"):
        counted = (index for index, box in enumerate(record.objects) if not box.iscrowd)
        places = {index: place for place, index in enumerate(counted)}
        relations = labels.relations(record, places)
        yield str(image["id"]), [[item.subject, item.object, numbers[item.predicate]] for item in relations]


_OFFICIAL = ("coco", "objects365", "open_images")


def number_categories(seen: Collection[tuple[int, str]], names: Sequence[str] | None) -> dict[str, int]:
    """A number for each class, also for those that no object has.

    The ids that the run has are kept where ids and names are the same thing, and no class remains without; or else
    the ids of the dataset whose classes they are; or else classes count from 1.

    Args:
        seen: the id and the name of every object.
        names: all classes in their order, where the run knows them; ids of those without objects are not known.
    """
    known = {name: number for number, name in sorted(seen)}
    wanted = list(dict.fromkeys([*(names or ()), *known]))
    if len({number for number, _ in seen}) == len(known) == len(seen):
        for ids in (known, *map(_official, _OFFICIAL)):
            if known.items() <= ids.items() and set(wanted) <= ids.keys():
                return {name: number for name, number in ids.items() if name in wanted}
    return {name: number for number, name in enumerate(wanted if names else sorted(wanted), 1)}


def _official(dataset: str) -> dict[str, int]:
    return {name: number for number, name in category_names(dataset).items()}
