"""Scene graphs: Visual Genome's scene_graphs.json, and RLIPv2's pseudo-labels, which its training reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.records import Box, Record, Relation

# RLIPv2's name of a dataset, and its first object and relation ids, which keep files of several datasets apart.
_PUBLISHED = {"coco": ("coco2017", 10_000_000), "objects365": ("o365", 20_000_000)}
_OBJECTS365 = "o365"


@dataclass
class _Numbers:
    """Consecutive ids of objects and relations."""

    first: int
    objects: Iterator[int] = field(init=False)
    relations: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self.objects, self.relations = count(self.first), count(self.first)


def write_visual_genome(rows: ExportRows, out: Path) -> None:
    """scene_graphs_SPLIT.json and image_data_SPLIT.json; each relation also has its confidence."""
    numbers = _Numbers(1)
    for split in rows.splits:
        write_json(out / f"scene_graphs_{split}.json", _graphs(rows, split, numbers))
        images = (
            {"image_id": as_number(r.image_id), "width": r.width, "height": r.height} for r in rows.records(split)
        )
        write_json(out / f"image_data_{split}.json", images)


def write_rlipv2(rows: ExportRows, out: Path) -> None:
    """SPLIT.json and, for Objects365, image_id_to_filepath.json, which locates its images."""
    datasets: dict[str, _Numbers] = {}
    for split in rows.splits:
        write_json(out / f"{split}.json", _pseudo_labels(rows, split, datasets))
    if _OBJECTS365 in datasets:
        records = (record for split in rows.splits for record in rows.records(split))
        paths = ((r.image_id, r.file_name) for r in records if _published(r.dataset)[0] == _OBJECTS365)
        write_json(out / "image_id_to_filepath.json", Members(paths))


def _graphs(rows: ExportRows, split: str, numbers: _Numbers) -> Iterator[dict[str, Any]]:
    for record in rows.records(split, "objects", "relations"):
        graph = _graph(rows, record, numbers)
        for thing in graph["objects"]:
            thing["names"] = [thing["names"]]
        yield _image(record) | graph


def _pseudo_labels(rows: ExportRows, split: str, datasets: dict[str, _Numbers]) -> Iterator[dict[str, Any]]:
    for record in rows.records(split, "objects", "relations"):
        name, first = _published(record.dataset)
        numbers = datasets.setdefault(name, _Numbers(first))
        origin = {"dataset": name, "data_split": _data_split(record, name)}
        yield _image(record) | origin | _graph(rows, record, numbers)


def _published(dataset: str) -> tuple[str, int]:
    return _PUBLISHED.get(dataset, (dataset, 1))


def _data_split(record: Record, dataset: str) -> str:
    """For COCO the folder of the image, where the published training looks for it; otherwise the split."""
    folder = record.file_name.rpartition("/")[0].rpartition("/")[2]
    return (folder or f"{record.split}2017") if dataset == "coco2017" else record.split


def _image(record: Record) -> dict[str, Any]:
    return {
        "image_id": as_number(record.image_id),
        "file_name": record.file_name,
        "width": record.width,
        "height": record.height,
    }


def _graph(rows: ExportRows, record: Record, numbers: _Numbers) -> dict[str, Any]:
    """The objects and relations of an image, without crowds and without blank names, which readers drop."""
    indices = rows.renumber(record, [not box.iscrowd and bool(box.category.strip()) for box in record.objects])
    things = [_thing(record.objects[index], next(numbers.objects)) for index in indices]
    relations = rows.relations(record, indices)
    named = [relation for relation in relations if relation.predicate.strip()]
    rows.left_out["relations that the format cannot hold"] += len(relations) - len(named)
    return {"objects": things, "relationships": [_relationship(r, things, next(numbers.relations)) for r in named]}


def _thing(box: Box, number: int) -> dict[str, Any]:
    sides = {key: plain(value) for key, value in zip("xywh", box.bbox, strict=True)}
    return {"object_id": number, **sides, "names": box.category}


def _relationship(relation: Relation, things: list[dict[str, Any]], number: int) -> dict[str, Any]:
    ends = {"subject_id": relation.subject, "object_id": relation.object}
    named = {key: things[index]["object_id"] for key, index in ends.items()}
    confidence = {} if relation.confidence is None else {"confidence": relation.confidence}
    return {"relationship_id": number, "predicate": relation.predicate, **named, **confidence}
