"""VG150: the split of Visual Genome that benchmarks use, in VG-SGG.h5 or VG-SGG-with-attri.h5.

Row i of the image arrays is image i of image_data.json without four corrupted ones.
`img_to_first_box` and `img_to_last_box`, and the same of `rel`, are the first and the last row of
an image, or -1; `boxes_1024` is x and y of the centre, width and height, where 1024 is the longer
side of the image; `relationships` are rows of boxes. Labels, predicates and attributes count from 1
by VG-SGG-dicts(-with-attri).json. `split` is 2 for test; of the other images with boxes and
relations, the first 5,000 are for validation (github.com/KaihuaTang/Scene-Graph-Benchmark.pytorch:
maskrcnn_benchmark/data/datasets/visual_genome.py).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError, import_extra
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, open_stream, read_text
from sgpipe.images import read_size
from sgpipe.recipe import WHOLE
from sgpipe.records import Attribute, Box, Record
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts
from sgpipe.sources.fields import FieldError, JsonObject
from sgpipe.sources.plugin import Source
from sgpipe.sources.visual_genome import locate_image

Tables: TypeAlias = Mapping[str, NDArray[Any]]

BOX_SCALE = 1024
VALIDATION_IMAGES = "validation_images"  # an attribute of files that sgpipe wrote
_DEFAULT_VALIDATION_IMAGES = 5000
_CORRUPTED = ("1592", "1722", "4616", "4617")
# Tables by name, with their columns (0: one number); those of a group have one length.
_TABLES_OF_IMAGES = {
    "split": 0,
    "img_to_first_box": 0,
    "img_to_last_box": 0,
    "img_to_first_rel": 0,
    "img_to_last_rel": 0,
}
_TABLES_OF_BOXES = {"boxes_1024": 4, "labels": 1}
_TABLES_OF_RELATIONS = {"relationships": 2, "predicates": 1}
_GROUPS = (_TABLES_OF_IMAGES, _TABLES_OF_BOXES, _TABLES_OF_RELATIONS)


@dataclass(frozen=True)
class _Names:
    """The names of the numbers in the tables."""

    classes: Mapping[int, str]
    predicates: Mapping[int, str]
    attributes: Mapping[int, str]


def vg150_source(
    annotations: Location, dicts: Path, image_data: Path, images: ImagePlace, split: str
) -> AnnotationSource:
    """Return the images of a split: train, val or test, as benchmarks have them, or all.

    Args:
        dicts: VG-SGG-dicts.json or VG-SGG-dicts-with-attri.json.
        image_data: image_data.json, which lists the images.

    Raises:
        UserError: a file is missing or of another format, or there is no such split.
    """
    names = _read_names(dicts)
    tables, validation_images = _read_tables(annotations)
    items = _read_image_items(image_data, annotations, len(tables["split"]))
    rows = _rows_of_splits(tables, validation_images)
    if split not in rows:
        raise UserError(
            f"{annotations} has no split {split!r}: pass --split train, val, test or {WHOLE}"
        )

    def start(row: int) -> Record:
        image_id = fields.required_id(items[row])
        stated_name = fields.clean(str(items[row].get("file_name") or f"{image_id}.jpg"))
        file_name = locate_image(images, stated_name)
        return Record(image_id, "vg150", split, file_name, *fields.size(items[row]))

    def fill(record: Record, row: int) -> None:
        if not (record.width and record.height):
            record.width, record.height = read_size(images, record.file_name)
        _fill(record, tables, names, row)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        return annotated.read_records(rows[split].tolist(), start, fill, problems)

    files = {"annotations": annotations, "dicts": dicts, "image_data": image_data}
    classes = DatasetClasses(_in_order(names.classes), _in_order(names.predicates))
    return AnnotationSource("vg150", split, read, files, classes=classes)


def _in_order(names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[number] for number in sorted(names))


def _read_names(dicts: Path) -> _Names:
    try:
        content = json.loads(read_text(dicts, "dictionaries"))
        return _Names(
            _by_number(content["label_to_idx"]),
            _by_number(content["predicate_to_idx"]),
            _by_number(content.get("attribute_to_idx") or {}),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError(
            f"{dicts} is not VG-SGG-dicts.json: expected label_to_idx and predicate_to_idx"
        ) from None


def _by_number(numbers: Mapping[str, Any]) -> dict[int, str]:
    """Return names by number. Number 0 is the background, which has no name."""
    return {
        int(number): fields.clean(str(name)) for name, number in numbers.items() if int(number) > 0
    }


def _read_image_items(image_data: Path, annotations: Location, images: int) -> list[JsonObject]:
    """Return the items of image_data.json, one for each of the images.

    Raises:
        UserError: there are more or fewer.
    """
    items: list[JsonObject]
    items = [item for _, item in JsonStream(image_data) if isinstance(item, dict)]
    if len(items) != images:
        items = [
            item for item in items if fields.identifier(item.get("image_id")) not in _CORRUPTED
        ]
    if len(items) != images:
        raise UserError(
            f"{image_data} lists {len(items):,} images, but {annotations} has {images:,}"
        )
    return items


def _rows_of_splits(tables: Tables, validation_images: int) -> dict[str, NDArray[np.int64]]:
    """Return the rows of the images of each split."""
    number = tables["split"]
    is_train = number == 0
    has_graph = (tables["img_to_first_box"] >= 0) & (tables["img_to_first_rel"] >= 0)
    is_usable = is_train & has_graph
    is_val = (number == 1) | (is_usable & (np.cumsum(is_usable) <= validation_images))
    return {
        "train": np.flatnonzero(is_train & ~is_val),
        "val": np.flatnonzero(is_val),
        "test": np.flatnonzero(number == 2),
        WHOLE: np.arange(len(number)),
    }


def _read_tables(path: Location) -> tuple[Tables, int]:
    """Return the tables of the HDF5 file, boxes as x, y, width, height, and the number of
    validation images.
    """
    h5py = import_extra("h5py", "vg150")
    try:
        with h5py.File(path if isinstance(path, Path) else open_stream(path), "r") as file:
            tables = {name: file[name][()] for group in _GROUPS for name in group}
            boxes = tables["boxes_1024"]
            if "attributes" in file:
                tables["attributes"] = file["attributes"][()]
            else:
                tables["attributes"] = np.zeros((len(boxes), 0), int)
            validation_images = int(file.attrs.get(VALIDATION_IMAGES, _DEFAULT_VALIDATION_IMAGES))
        _check_tables(tables)
        # Of integers, rounded as in the benchmark's loader.
        boxes[:, :2] = boxes[:, :2] - boxes[:, 2:] / 2
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a whole VG-SGG.h5 ({str(error)[:120]})") from None
    return tables, validation_images


def _check_tables(tables: Tables) -> None:
    """Check the tables of a VG150 file.

    Raises:
        ValueError: a table has other rows, columns or types than expected.
    """
    for group in _GROUPS:
        rows = len(tables[next(iter(group))])
        for name, columns in group.items():
            shape = (rows, columns) if columns else (rows,)
            if tables[name].dtype.kind not in "iuf" or tables[name].shape != shape:
                raise ValueError(f"{name} has other rows, columns or types")
    attributes = tables["attributes"]
    if attributes.ndim != 2 or len(attributes) != len(tables["boxes_1024"]):
        raise ValueError("attributes are not those of the boxes")


def _fill(record: Record, tables: Tables, names: _Names, image: int) -> None:
    """Add the objects and relations of the image in a row.

    Raises:
        FieldError: a number has no name, or a row is missing or of another image.
    """
    box_rows = _span(tables, "box", "labels", image)
    relation_rows = _span(tables, "rel", "predicates", image)
    scale = max(record.width, record.height) / BOX_SCALE
    bboxes = (tables["boxes_1024"][box_rows] * scale).tolist()
    labels = tables["labels"][box_rows, 0].tolist()
    attributes = tables["attributes"][box_rows].tolist()
    for (x, y, w, h), label, padded in zip(bboxes, labels, attributes, strict=True):
        numbers = [number for number in padded if number]
        if label not in names.classes or not names.attributes.keys() >= set(numbers):
            raise FieldError(
                f"label {label} or attributes {numbers} of an object are not in the dictionaries"
            )
        words = [Attribute(names.attributes[number]) for number in numbers]
        record.objects.append(Box(names.classes[label], label, (x, y, w, h), attributes=words))
    ends = tables["relationships"][relation_rows]
    predicates = tables["predicates"][relation_rows]
    triplets = np.hstack([ends, predicates]).tolist()
    indices = {box_rows.start + index: index for index in range(len(record.objects))}
    record.relations = annotated.relations_of(triplets, names.predicates, indices)


def _span(tables: Tables, kind: str, table: str, image: int) -> slice:
    """Return the rows of a table that are of an image.

    Raises:
        FieldError: it lacks some.
    """
    first = int(tables[f"img_to_first_{kind}"][image])
    last = int(tables[f"img_to_last_{kind}"][image])
    if first < 0:
        return slice(0, 0)
    if not first <= last < len(tables[table]):
        raise FieldError(
            f"img_to_first_{kind} and img_to_last_{kind} are {first} and {last}: no rows of {table}"
        )
    return slice(first, last + 1)


VG150 = Source("vg150", open=vg150_source, has_own_splits=True)
