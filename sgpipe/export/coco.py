"""`sgpipe export --to coco`: instances and captions."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TypeAlias

from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.records import Record
from sgpipe.sources.vocabulary import category_names

Entry: TypeAlias = dict[str, object]

_OFFICIAL = ("coco", "objects365", "open_images")


def write_coco(rows: ExportRows, out: Path) -> None:
    """Write instances_SPLIT.json and, if the images have captions, captions_SPLIT.json; no
    relations.
    """
    numbers = category_ids(rows, with_nothing=False)
    rows.left_out["relations that the format cannot hold"] += rows.totals["relations"]
    for split in rows.splits:
        members = instances(rows, split, numbers, with_nothing=False)
        write_json(out / f"instances_{split}.json", Members(members))
        captions = _captions(rows, split)
        first = next(captions, None)
        if first is not None:
            images = (image for image, _ in coco_images(rows, split))
            members = [("images", images), ("annotations", chain([first], captions))]
            write_json(out / f"captions_{split}.json", Members(members))


def _captions(rows: ExportRows, split: str) -> Iterator[Entry]:
    ids = count(1)
    for image, record in coco_images(rows, split, "captions"):
        for caption in record.captions:
            if caption.scope == "image":
                yield {"id": next(ids), "image_id": image["id"], "caption": caption.text}
            else:
                rows.left_out["captions that the format cannot hold"] += 1


def category_ids(rows: ExportRows, *, with_nothing: bool, positive: bool = False) -> dict[str, int]:
    """Return the ids of all classes.

    Args:
        with_nothing: also of the placeholder for the missing object of a relation.
        positive: the format has no ids below 1.
    """
    labels = rows.manifest.run.get("labels")
    seen = rows.census.categories
    if not with_nothing:
        rows.left_out["objects that the format cannot hold"] += rows.census.nothing.total()
        seen = seen - rows.census.nothing
    return number_categories(seen, labels and labels["objects"], positive=positive)


def instances(
    rows: ExportRows, split: str, numbers: Mapping[str, int], *, with_nothing: bool
) -> list[tuple[str, object]]:
    images = (image for image, _ in coco_images(rows, split))
    annotations = _annotations(rows, split, numbers, with_nothing)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return [("images", images), ("annotations", annotations), ("categories", categories)]


def _annotations(
    rows: ExportRows, split: str, numbers: Mapping[str, int], with_nothing: bool
) -> Iterator[Entry]:
    ids = count(1)
    for image, record in coco_images(rows, split, "objects"):
        for box in record.objects:
            if box.is_nothing and not with_nothing:
                continue
            yield {
                "id": next(ids),
                "image_id": image["id"],
                "category_id": numbers[box.category],
                "bbox": list(map(plain, box.bbox)),
                "area": plain(box.bbox[2] * box.bbox[3]),
                "iscrowd": int(box.iscrowd),
                "segmentation": json.loads(box.segmentation) if box.segmentation else [],
            }


def coco_images(rows: ExportRows, split: str, *columns: str) -> Iterator[tuple[Entry, Record]]:
    """Yield COCO's entry of each image, and its record. Ids that are not numbers become `image_id`,
    `id` a count.
    """
    for number, record in enumerate(rows.records(split, *columns), 1):
        image: Entry = {"id": as_number(record.image_id)}
        if not rows.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        image |= {"file_name": record.file_name, "width": record.width, "height": record.height}
        yield image, record


def number_categories(
    seen: Collection[tuple[int, str]], names: Sequence[str] | None, *, positive: bool = False
) -> dict[str, int]:
    """Return an id for each class: that of the run if ids are unambiguous and known of all classes,
    or else that of the dataset that the classes belong to, or else a number from 1.

    Args:
        seen: id and name of the class of every object.
        names: all classes in order, if the run knows them.
        positive: the format has no ids below 1.
    """
    ids_of_run = {name: number for number, name in sorted(seen)}
    classes = dict.fromkeys([*names, *ids_of_run] if names else sorted(ids_of_run))
    distinct_ids = set(ids_of_run.values())
    if len(distinct_ids) == len(ids_of_run) == len(seen):
        for ids in (ids_of_run, *map(_official_ids, _OFFICIAL)):
            is_complete = classes.keys() <= ids.keys()
            agrees = ids_of_run.items() <= ids.items()
            chosen = {name: number for name, number in ids.items() if name in classes}
            fits = not positive or min(chosen.values(), default=1) > 0
            if is_complete and agrees and fits:
                return chosen
    return dict(zip(classes, count(1), strict=False))


def _official_ids(dataset: str) -> dict[str, int]:
    return {name: number for number, name in category_names(dataset).items()}


COCO = Format("coco", write_coco, keeps=("captions",))
