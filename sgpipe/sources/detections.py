"""Detection annotations as columns: a COCO-like file, cleaned, without a Python object per box.

25 million boxes are held in a few flat arrays, at about 41 bytes per box. After the whole file has
been read, numpy sorts them by image, clips and filters them; they become Arrow records, a slice of
images at a time.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, TypeAlias, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.errors import ImageError, UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.images import read_size
from sgpipe.records import SCHEMA
from sgpipe.sources import fields
from sgpipe.sources.annotated import CLIP_TOLERANCE, ProblemCounts, add_name
from sgpipe.sources.fields import FieldError
from sgpipe.storage.source_index import write_index
from sgpipe.utils import boxes as geometry

_Numbers: TypeAlias = NDArray[np.integer[Any]]
_Added = TypeVar("_Added")

MAX_CAPTIONS = 1000  # of an image; a hundred thousand would keep a worker for minutes
_SLICE = 8192


class Origin(TypedDict, total=False):
    """Where the images, boxes and captions of a split come from; notes say what is doubtful."""

    annotations: str
    captions: str
    annotations_sha256: str
    captions_sha256: str
    notes: list[str]


@dataclass
class Detections:
    """Images and boxes of one split while its annotation file is being read.

    Methods that add an item raise a FieldError if it is malformed; `attempt` counts it.

    Attributes:
        pending_ids: images whose boxes were read before them, and their provisional rows.
        outlines: segmentations, many on disk.
        outline_ends: where that of each box ends.
    """

    dataset: str
    split: str
    categories: dict[int, str] = field(default_factory=dict)
    problems: ProblemCounts = field(default_factory=Counter)
    position: dict[str, int] = field(default_factory=dict)
    file_names: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    captions: dict[int, list[str]] = field(default_factory=dict)
    blank_captions: Counter[int] = field(default_factory=Counter)
    sizes: array[int] = field(default_factory=lambda: array("i"))
    box_rows: array[int] = field(default_factory=lambda: array("i"))
    pending_ids: dict[str, int] = field(default_factory=dict)
    box_categories: array[int] = field(default_factory=lambda: array("i"))
    box_crowds: array[int] = field(default_factory=lambda: array("b"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    outlines: IO[bytes] = field(default_factory=partial(SpooledTemporaryFile, 64 << 20))
    outline_ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def attempt(self, add: Callable[..., _Added], *values: object) -> _Added | None:
        """Return what `add` returns; None if the item is malformed."""
        try:
            return add(*values)
        except FieldError:
            self.problems["malformed"] += 1
            return None

    def add_image(self, item: object, reason: str = "") -> int | None:
        """Add an entry of `images`; return its row.

        One with the id of another one is counted and left out.

        Args:
            reason: why the image cannot be used, which makes an error row, as does a missing file
                name or size.
        """
        image_id = fields.required_id(item, "id")
        if image_id in self.position:
            self.problems["duplicate_images"] += 1
            return None
        row = self.position[image_id] = len(self.file_names)
        name = fields.mapping(item).get("file_name")
        size = fields.size(item)
        if reason:
            self.errors[row] = f"source: {reason}"
        elif not isinstance(name, str) or not name:
            self.errors[row] = "source: the annotation has no file_name"
        elif not all(size):
            self.errors[row] = "source: the annotation has no valid width and height"
        self.file_names.append(fields.clean(name) if isinstance(name, str) else "")
        self.sizes.extend(size)
        return row

    def add_box(self, item: object) -> None:
        """Add an entry of `annotations`."""
        image_id = fields.required_id(item)
        row = self.position.get(image_id)
        if row is None:  # annotations are before images: use a provisional row below zero
            row = -1 - self.pending_ids.setdefault(image_id, len(self.pending_ids))
        keys = ("category_id", "bbox", "iscrowd", "segmentation")
        self.add_row_box(row, *map(fields.mapping(item).get, keys))

    def add_row_box(
        self, row: int, category: object, bbox: object, crowd: Any, segmentation: object = None
    ) -> None:
        """Add a box of the image in a row."""
        try:
            number = fields.whole(category)
            is_crowd = bool(int(crowd or 0))
            if not isinstance(bbox, list):
                raise TypeError
            x, y, width, height = (float(value) for value in bbox)
        except (TypeError, ValueError, OverflowError):
            raise FieldError("one of its annotations has no valid category_id and bbox") from None
        self.box_rows.append(row)
        self.box_categories.append(number)
        self.box_crowds.append(is_crowd)
        self.boxes.extend((x, y, width, height))
        written = self.outlines.write(json.dumps(segmentation).encode()) if segmentation else 0
        self.outline_ends.append(self.outline_ends[-1] + written)

    def add_category(self, item: object) -> None:
        """Add an entry of `categories`, by its exact name.

        Raises:
            UserError: an id has two names.
        """
        category = fields.integer(item, "id")
        name = fields.required_id(item, "name")
        if not name.strip():
            raise FieldError("'name' is blank")
        add_name(self.categories, category, name)

    def add_caption(self, item: object) -> None:
        """Add an entry of a COCO captions file; captions of unlisted images are counted."""
        image_id = fields.required_id(item)
        text = fields.text(item, "caption")
        row = self.position.get(image_id)
        if row is None:
            self.problems["unlisted_captions"] += 1
        else:
            self.add_text(row, text)

    def add_text(self, row: int, text: object) -> None:
        """Add a caption of the image in a row; blank ones are counted."""
        cleaned = fields.single_line(fields.text({"caption": text}, "caption"))
        if cleaned:
            self.captions.setdefault(row, []).append(cleaned)
        else:
            self.blank_captions[row] += 1

    def segmentation(self, box: int, size: Sequence[int], problems: ProblemCounts) -> str | None:
        """Return the segmentation of a box of an image of a `size`, as `fields.segmentation`."""
        start, stop = self.outline_ends[box : box + 2]
        if start == stop:
            return None
        self.outlines.seek(start)
        outline = json.loads(self.outlines.read(stop - start))
        width, height = size
        return fields.segmentation(outline, width, height, problems)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the records in file order, in tables of at most 8,192 rows. Call it once, after all
        has been added.
        """
        self.settle_rows()
        ids = list(self.position)
        self.position.clear()  # it takes more than the ids, and all rows are known
        order = self._usable_boxes()
        rows = np.asarray(self.box_rows)[order]
        starts = np.searchsorted(rows, np.arange(len(ids) + 1))
        for start in range(0, len(ids), _SLICE):
            part = range(start, min(start + _SLICE, len(ids)))
            boxes = slice(starts[part.start], starts[part.stop])
            objects = self._objects(order[boxes], rows[boxes], part)
            yield self._table(ids[part.start : part.stop], part, objects)

    def _usable_boxes(self) -> _Numbers:
        """Return the boxes of known images and categories, sorted by image.

        In place, and in few bytes per box, as these arrays are most of the memory that a run needs
        at first.
        """
        rows = np.asarray(self.box_rows)
        unlisted = rows < 0
        self.problems["unknown_image"] = int(unlisted.sum())
        categories = np.fromiter(self.categories, np.int32, len(self.categories))
        unusable = np.isin(self.box_categories, categories, invert=True)
        self.problems["unknown_category"] = int((unusable & ~unlisted).sum())
        unusable |= unlisted
        rows[unusable] = len(self.file_names)  # behind all images
        usable = len(rows) - int(unusable.sum())
        order = np.argsort(rows, kind="stable")[:usable]
        return order.astype(np.min_scalar_type(len(rows)))

    def _table(self, ids: Sequence[str], part: range, objects: pa.Array) -> pa.Table:
        """Return the records of the rows of `part`, which have these ids and objects."""
        captions = []
        left_out = []
        for row in part:
            texts = self.captions.get(row, [])
            limited = limit_captions(texts)
            captions.append([{"text": text, "scope": "image", "boxes": []} for text in limited])
            left_out.append({"captions": self.blank_captions[row] + len(texts) - len(limited)})
        errors = [self.errors.get(row) for row in part]
        columns = {
            "image_id": ids,
            "dataset": [self.dataset] * len(part),
            "split": [self.split] * len(part),
            "file_name": self.file_names[part.start : part.stop],
            "width": self.sizes[2 * part.start : 2 * part.stop : 2],
            "height": self.sizes[2 * part.start + 1 : 2 * part.stop : 2],
            "objects": objects,
            "captions": captions,
            "status": ["error" if error else "ok" for error in errors],
            "error": errors,
            "left_out": left_out,
        }
        return pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in columns]))

    def settle_rows(self) -> None:
        """Replace the provisional rows of boxes that were read before their images; of unlisted
        ones by -1.
        """
        if not self.pending_ids:
            return
        rows = np.asarray(self.box_rows)
        pending = np.flatnonzero(rows < 0)
        rows_of_ids = [self.position.get(image_id, -1) for image_id in self.pending_ids]
        rows[pending] = np.array(rows_of_ids)[-1 - rows[pending]]
        self.pending_ids.clear()

    def _objects(self, boxes: _Numbers, rows: _Numbers, part: range) -> pa.Array:
        """Return the clipped, different objects of each image of `part`.

        Args:
            boxes: of these images; of two that are equal, one becomes an object.
            rows: of the images of the boxes.
        """
        sizes = np.asarray(self.sizes).reshape(-1, 2)[rows].astype(np.float64)
        # An error row has no size to clip to: its boxes are not degenerate.
        is_sized = (sizes > 0).all(1)
        xywh = np.asarray(self.boxes).reshape(-1, 4)[boxes]
        is_finite = np.isfinite(xywh).all(1)
        with np.errstate(over="ignore", invalid="ignore"):
            xywh, is_inside, overhang = geometry.clip_xywh(xywh, sizes)
        inside = np.flatnonzero(is_inside)
        self.problems["unsized_image"] += int((~is_sized).sum())
        self.problems["not_finite"] += int((~is_finite & is_sized).sum())
        self.problems["degenerate"] += int((~is_inside & is_finite & is_sized).sum())
        self.problems["clipped"] += int((overhang[inside] > CLIP_TOLERANCE).sum())
        different = inside[self._different(boxes[inside], rows[inside], xywh[inside])]
        self.problems["duplicate_boxes"] += len(inside) - len(different)
        rows = rows[different]
        structs = self._structs(boxes[different], rows, xywh[different])
        offsets = np.searchsorted(rows, np.arange(part.start, part.stop + 1)).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, structs)

    def _different(self, boxes: _Numbers, rows: _Numbers, xywh: NDArray[np.float64]) -> _Numbers:
        """Return the indices of boxes without those that are equal to another one.

        Of boxes that are equal to a hundredth of a pixel, the smallest stays, whatever their order.
        """
        category = np.asarray(self.box_categories)[boxes]
        crowd = np.asarray(self.box_crowds)[boxes]
        order = np.lexsort(xywh.T)
        with np.errstate(over="ignore", invalid="ignore"):
            hundredths = np.round(xywh * 100).astype(np.int64)
        key = np.column_stack([rows, category, crowd, hundredths])
        _, first = np.unique(key[order], axis=0, return_index=True)
        return np.sort(order[first])

    def _structs(
        self, boxes: _Numbers, rows: _Numbers, xywh: NDArray[np.float64]
    ) -> pa.StructArray:
        """Return boxes as objects of the schema."""
        category = np.asarray(self.box_categories)[boxes]
        crowd = np.asarray(self.box_crowds)[boxes].astype(bool)
        self.problems["crowd"] += int(crowd.sum())
        outlines = []
        for box, row in zip(boxes.tolist(), rows.tolist(), strict=True):
            size = self.sizes[2 * row : 2 * row + 2]
            outlines.append(self.segmentation(box, size, self.problems))
        offsets = np.arange(0, xywh.size + 1, 4, dtype=np.int32)
        columns = {
            "category": pa.array(map(self.categories.get, category.tolist()), pa.string()),
            "category_id": pa.array(category, pa.int32()),
            "bbox": pa.ListArray.from_arrays(offsets, xywh.ravel()),
            "iscrowd": pa.array(crowd),
            "origin": pa.array(["annotation"] * len(boxes), pa.string()),
            "segmentation": pa.array(outlines, pa.string()),
        }
        kinds = list(SCHEMA.field("objects").type.value_type)
        arrays = []
        for kind in kinds:
            values = columns.get(kind.name, pa.nulls(len(boxes), kind.type))
            arrays.append(values.cast(kind.type))
        return pa.StructArray.from_arrays(arrays, fields=kinds)


def size_or_reason(root: ImageRoot, name: str) -> tuple[tuple[int, int], str]:
    """Return width and height of an image as displayed, or zeros and why there are none."""
    try:
        return read_size(root, name, upright=True), ""
    except ImageError as error:
        return (0, 0), fields.clean(str(error))


def limit_captions(texts: list[str]) -> list[str]:
    """Return at most `MAX_CAPTIONS` different captions of an image, in their order; hashes decide,
    not the order.
    """
    if len(texts) <= MAX_CAPTIONS:
        return texts
    different = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    chosen = set(different[:MAX_CAPTIONS])
    return [text for text in dict.fromkeys(texts) if text in chosen]


def write_detections(path: Path, detections: Detections, meta: Mapping[str, object]) -> None:
    """Write the source index of a split, with `meta`, the categories and the problem counts."""
    if not detections.file_names:
        raise UserError(f"{meta['annotations']} lists no images")

    def complete_meta() -> dict[str, object]:  # after the last table
        return {
            **meta,
            "categories": [name for _, name in sorted(detections.categories.items())],
            "category_ids": sorted(detections.categories),
            "problems": dict(+detections.problems),
        }

    write_index(path, detections.tables(), complete_meta)
