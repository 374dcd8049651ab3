"""`sgpipe export --to coco`: instances and captions."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.records import Record
from sgpipe.sources.vocabulary import category_names


def write_coco(rows: ExportRows, out: Path) -> None:
    """Write instances_SPLIT.json and, if the images have captions, captions_SPLIT.json; no
    relations.
    """
    numbers = category_ids(rows, with_nothing=False)
    rows.left_out["relations that the format cannot hold"] += rows.totals["relations"]

    def captions(split: str) -> Iterator[dict[str, Any]]:
        ids = count(1)
        for image, record in coco_images(rows, split, "captions"):
            texts = [caption.text for caption in record.captions if caption.scope == "image"]
            rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(
                texts
            )
            yield from (
                {"id": next(ids), "image_id": image["id"], "caption": text} for text in texts
            )

    for split in rows.splits:
        members = instances(rows, split, numbers, with_nothing=False)
        write_json(out / f"instances_{split}.json", Members(members))
        written = captions(split)
        first = next(written, None)
        if first is not None:
            images = (image for image, _ in coco_images(rows, split))
            members = [("images", images), ("annotations", chain([first], written))]
            write_json(out / f"captions_{split}.json", Members(members))


def category_ids(rows: ExportRows, *, with_nothing: bool, positive: bool = False) -> dict[str, int]:
    """Return the ids of all classes; `with_nothing`: also of the placeholder for the missing object
    of a relation.
    """
    names = rows.manifest.run.get("labels")
    seen = rows.census.categories
    if not with_nothing:
        rows.left_out["objects that the format cannot hold"] += rows.census.nothing.total()
        seen = seen - rows.census.nothing
    return number_categories(seen, names and names["objects"], positive=positive)


def instances(
    rows: ExportRows, split: str, numbers: Mapping[str, int], *, with_nothing: bool
) -> list[tuple[str, Any]]:
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
        for image, record in coco_images(rows, split, "objects")
        for box in record.objects
        if with_nothing or not box.is_nothing
    )
    images = (image for image, _ in coco_images(rows, split))
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return [("images", images), ("annotations", annotations), ("categories", categories)]


def coco_images(
    rows: ExportRows, split: str, *columns: str
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield COCO's entry of each image, and its record. Ids that are not numbers become `image_id`,
    `id` a count.
    """
    for number, record in enumerate(rows.records(split, *columns), 1):
        image: dict[str, Any] = {"id": as_number(record.image_id)}
        if not rows.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        yield (
            image | {"file_name": record.file_name, "width": record.width, "height": record.height},
            record,
        )


def number_categories(
    seen: Collection[tuple[int, str]], names: Sequence[str] | None, *, positive: bool = False
) -> dict[str, int]:
    """Return an id for each class: that of the run if ids are unambiguous and known of all classes,
    or else that of the dataset that the classes belong to, or else a number from 1.

    `seen`: id and name of the class of every object; `names`: all classes in order, if the run
    knows them; `positive`: the form has no ids below 1.
    """
    own_ids = {name: number for number, name in sorted(seen)}
    classes = list(dict.fromkeys([*(names or ()), *own_ids]))
    is_unambiguous = len({number for number, _ in seen}) == len(own_ids) == len(seen)
    if is_unambiguous:
        for ids in (own_ids, *map(_official_ids, ("coco", "objects365", "open_images"))):
            chosen = {name: number for name, number in ids.items() if name in classes}
            is_complete = len(chosen) == len(classes) and own_ids.items() <= chosen.items()
            if is_complete and (not positive or min(chosen.values(), default=1) > 0):
                return chosen
    ordered = classes if names else sorted(classes)
    return {name: number for number, name in enumerate(ordered, 1)}


def _official_ids(dataset: str) -> dict[str, int]:
    return {name: number for number, name in category_names(dataset).items()}


COCO = Format("coco", write_coco, keeps=("captions",))
