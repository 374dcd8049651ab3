"""`sgpipe export --to vg150`: the HDF5 file of VG150 and its companions."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sgpipe.errors import add_filename, import_extra
from sgpipe.export.fields import unique_id
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import base_split
from sgpipe.sources.vg150 import BOX_SCALE, VALIDATION_IMAGES

Numbers: TypeAlias = Mapping[str, int]  # by name, from 1

_ATTRIBUTES = 10  # of an object, at most
_COLUMNS = {
    "boxes_1024": 4,
    "labels": 1,
    "attributes": _ATTRIBUTES,
    "relationships": 2,
    "predicates": 1,
}
_OF_IMAGES = ("split", "img_to_first_box", "img_to_last_box", "img_to_first_rel", "img_to_last_rel")


def write_vg150(rows: ExportRows, out: Path) -> None:
    """Write VG-SGG-with-attri.h5, VG-SGG-dicts-with-attri.json and image_data.json.

    The split val is the first images of the HDF5 file, where loaders look for it.
    """
    import_extra("h5py", "vg150")
    splits = sorted(rows.splits, key=_place_of_split)
    attributes = _count_attributes(rows, splits)
    attribute_names = sorted(attributes)
    _write_names(out / "VG-SGG-dicts-with-attri.json", rows, attribute_names, attributes)
    write_json(out / "image_data.json", _image_data(rows, splits))
    tables = _Tables(rows, _numbers(attribute_names))
    for record in _records(rows, splits, "objects", "relations"):
        tables.add(record)
    tables.write(out / "VG-SGG-with-attri.h5")
    rows.note = (
        f"the first {tables.readable_validation_images:,} images are the split val: give"
        f" num_val_im={tables.readable_validation_images} to loaders"
    )


def _place_of_split(split: str) -> int:
    """Return where the images of a split are in the file: val first, test last."""
    return {"val": 0, "test": 2}.get(base_split(split), 1)


def _records(rows: ExportRows, splits: Iterable[str], *columns: str) -> Iterator[Record]:
    for split in splits:
        yield from rows.records(split, *columns)


def _count_attributes(rows: ExportRows, splits: Iterable[str]) -> Counter[str]:
    counts = Counter[str]()
    for record in _records(rows, splits, "objects"):
        for box in record.objects:
            counts.update(attribute.name for attribute in box.attributes)
    return counts


def _numbers(names: Iterable[str]) -> Numbers:
    return {name: number for number, name in enumerate(names, 1)}


def _write_names(
    path: Path, rows: ExportRows, attribute_names: Sequence[str], attributes: Counter[str]
) -> None:
    """Write the numbers of classes, predicates and attributes, and how often each occurs."""
    classes = Counter[str]()
    for (_, name), number in rows.census.categories.items():
        classes[name] += number
    class_names, predicate_names = rows.names
    tables: dict[str, Mapping[str, object]] = {}
    for kind, counted, names, counts in (
        ("label", "object", class_names, classes),
        ("predicate", "predicate", predicate_names, rows.census.predicates),
        ("attribute", "attribute", attribute_names, attributes),
    ):
        numbers = _numbers(names)
        tables[f"{kind}_to_idx"] = numbers
        tables[f"idx_to_{kind}"] = {str(number): name for name, number in numbers.items()}
        tables[f"{counted}_count"] = {name: counts[name] for name in names}
    write_json(path, Members(tables.items()))


def _image_data(rows: ExportRows, splits: Iterable[str]) -> Iterator[dict[str, object]]:
    seen = set[str]()
    for record in _records(rows, splits):
        yield {
            "image_id": unique_id(record, seen),
            "width": record.width,
            "height": record.height,
            "file_name": record.file_name,
        }


class _Tables:
    """The arrays of the HDF5 file, to which images are added.

    Attributes:
        readable_validation_images: how many images of the split val loaders read.
    """

    def __init__(self, rows: ExportRows, attributes: Numbers) -> None:
        self._rows = rows
        classes, predicates = rows.names
        self._classes = _numbers(classes)
        self._predicates = _numbers(predicates)
        self._attributes = attributes
        self._integers = {
            name: array("q") for name in (*_OF_IMAGES, *_COLUMNS) if name != "boxes_1024"
        }
        self._boxes = array("d")
        self.readable_validation_images = 0

    def add(self, record: Record) -> None:
        usable = [
            not box.iscrowd and not box.is_nothing and min(box.bbox[2:]) > 0
            for box in record.objects
        ]
        indices = self._rows.renumber(record, usable)
        relations = self._rows.relations(record, indices)
        first_box = len(self._integers["labels"])
        first_relation = len(self._integers["predicates"])
        scale = BOX_SCALE / max(record.width, record.height)
        for index in indices:
            self._add_box(record.objects[index], scale)
        for relation in relations:
            self._add_relation(relation, first_box)
        self._add_range("box", first_box, len(indices))
        self._add_range("rel", first_relation, len(relations))
        self._add_split(base_split(record.split), is_read=bool(indices and relations))

    def _add_box(self, box: Box, scale: float) -> None:
        x, y, width, height = (value * scale for value in box.bbox)
        self._boxes.extend((x + width / 2, y + height / 2, width, height))
        self._integers["labels"].append(self._classes[box.category])
        numbers = [self._attributes[attribute.name] for attribute in box.attributes]
        too_many = len(numbers[_ATTRIBUTES:])
        self._rows.left_out["attributes that the format cannot hold"] += too_many
        padded = numbers + [0] * _ATTRIBUTES
        self._integers["attributes"].extend(padded[:_ATTRIBUTES])

    def _add_relation(self, relation: Relation, first_box: int) -> None:
        ends = (first_box + relation.subject, first_box + relation.object)
        self._integers["relationships"].extend(ends)
        self._integers["predicates"].append(self._predicates[relation.predicate])

    def _add_range(self, kind: str, start: int, length: int) -> None:
        """Add where the boxes or relations of an image are: -1, if it has none."""
        self._integers[f"img_to_first_{kind}"].append(start if length else -1)
        self._integers[f"img_to_last_{kind}"].append(start + length - 1 if length else -1)

    def _add_split(self, split: str, *, is_read: bool) -> None:
        """Add the number of a split: 0 of train and val, 2 of test, 1 of images of val that no loader
        of VG150 reads; `sgpipe import` takes these for val, too.

        Args:
            is_read: loaders leave out images without boxes or relations.
        """
        if split == "test":
            number = 2
        elif split == "val" and not is_read:
            number = 1
        else:
            number = 0
        self._integers["split"].append(number)
        self.readable_validation_images += split == "val" and is_read

    def write(self, path: Path) -> None:
        import h5py

        with add_filename(path), h5py.File(path, "x") as file:
            for name in _OF_IMAGES:
                file[name] = np.array(self._integers[name])
            for name, width in _COLUMNS.items():
                values = self._boxes if name == "boxes_1024" else self._integers[name]
                file[name] = np.array(values).reshape(-1, width)
            file["boxes_512"] = file["boxes_1024"][()] / 2
            file["active_object_mask"] = np.ones_like(file["labels"], bool)
            file.attrs[VALIDATION_IMAGES] = self.readable_validation_images
        with path.open("rb+") as written:
            os.fsync(written.fileno())


VG150 = Format("vg150", write_vg150)
