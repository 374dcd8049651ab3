"""Detection annotations as columns: a COCO-like file, cleaned, without a Python object per box.

25 million boxes are held in a few flat arrays, at about 41 bytes per box. After the whole file has been read, numpy
sorts them by image, clips and filters them; they become Arrow records, a slice of images at a time.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa

from sgpipe.errors import ImageError, UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.images import read_upright_size
from sgpipe.records import SCHEMA
from sgpipe.sources import fields
from sgpipe.sources.annotated import CLIP_TOLERANCE, ProblemCounts, add_name
from sgpipe.sources.fields import FieldError
from sgpipe.storage.source_index import write_index
from sgpipe.utils.boxes import clip_xywh

_SLICE = 8192


class Segmentations:
    """The segmentation of each box of a COCO file, on disk if they are many."""

    def __init__(self) -> None:
        self._file, self._ends = SpooledTemporaryFile(max_size=64 << 20), array("q", [0])  # noqa: SIM115

    def append(self, value: Any) -> int:
        """Add that of the next box as the file has it (None or empty: it has none); return the number of the box."""
        self._ends.append(self._ends[-1] + (self._file.write(json.dumps(value).encode()) if value else 0))
        return len(self._ends) - 2

    def read(self, box: int, size: Sequence[int], problems: ProblemCounts) -> str | None:
        """Return the segmentation of a box, as `parse_segmentation`; `size`: width and height of the image."""
        start, stop = self._ends[box : box + 2]
        if start == stop:
            return None
        self._file.seek(start)
        return fields.segmentation(json.loads(self._file.read(stop - start)), size[0], size[1], problems)


@dataclass
class Detections:
    """Images and boxes of one split while its annotation file is being read."""

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
    segmentations: Segmentations = field(default_factory=Segmentations)

    def add_image(self, item: Any, reason: str = "") -> int | None:
        """Add an entry of `images`, an error row if there is a `reason`, or no file name or size; returns its row.

        One without a valid id, or with the id of another one, is counted and left out.
        """
        image_id = fields.identifier(item.get("id")) if isinstance(item, dict) else None
        if image_id is None:
            self.problems["malformed"] += 1
            return None
        if image_id in self.position:
            self.problems["duplicate_images"] += 1
            return None
        row = self.position[image_id] = len(self.file_names)
        name = item.get("file_name")
        width, height = fields.size(item)
        if reason:
            self.errors[row] = f"source: {reason}"
        elif not isinstance(name, str) or not name:
            self.errors[row] = "source: the annotation has no file_name"
        elif not width or not height:
            self.errors[row] = "source: the annotation has no valid width and height"
        self.file_names.append(fields.clean(name) if isinstance(name, str) else "")
        self.sizes.extend((width, height))
        return row

    def add_box(self, item: Any) -> None:
        """Add an entry of `annotations`; an unreadable one is counted as malformed."""
        image_id = fields.identifier(item.get("image_id")) if isinstance(item, dict) else None
        if image_id is None:
            self.problems["malformed"] += 1
            return
        row = self.position.get(image_id)
        if row is None:  # the file may list annotations before images: use a provisional row below zero
            row = -1 - self.pending_ids.setdefault(image_id, len(self.pending_ids))
        self.add_row_box(row, *map(item.get, ("category_id", "bbox", "iscrowd", "segmentation")))

    def add_row_box(self, row: int, category: Any, bbox: Any, crowd: Any, segmentation: Any = None) -> None:
        """Add a box of the image in a row; an unreadable one is counted as malformed."""
        try:
            number, is_crowd = fields.whole(category), bool(int(crowd or 0))
            if not isinstance(bbox, list):
                raise TypeError
            x, y, width, height = (float(value) for value in bbox)
        except (TypeError, ValueError, OverflowError):
            self.problems["malformed"] += 1
            return
        self.box_rows.append(row)
        self.box_categories.append(number)
        self.box_crowds.append(is_crowd)
        self.boxes.extend((x, y, width, height))
        self.segmentations.append(segmentation)

    def add_category(self, item: Any) -> None:
        """Add an entry of `categories`, by its exact name. Raises UserError: an id has two names."""
        try:
            category, name = fields.integer(item, "id"), fields.clean(str(fields.required(item, "name")))
        except FieldError:
            category, name = 0, ""
        if name.strip():
            add_name(self.categories, category, name)
        else:
            self.problems["malformed"] += 1

    def add_caption(self, item: Any) -> None:
        """Add an entry of a COCO captions file; captions of unlisted images are counted."""
        try:
            image_id, text = fields.identifier(fields.required(item, "image_id")), fields.required(item, "caption")
        except FieldError:
            self.problems["malformed"] += 1
            return
        if (row := self.position.get(image_id or "")) is None:
            self.problems["unlisted_captions"] += 1
        else:
            self.add_text(row, text)

    def add_text(self, row: int, text: Any) -> None:
        """Add a caption of the image in a row; blank ones are counted."""
        if not isinstance(text, str):
            self.problems["malformed"] += 1
        elif cleaned := fields.single_line(text):
            self.captions.setdefault(row, []).append(cleaned)
        else:
            self.blank_captions[row] += 1

    def tables(self) -> Iterator[pa.Table]:
        """Yield the records in file order, in tables of at most 8,192 rows. Call it once, after all has been added."""
        self.settle_rows()
        ids = list(self.position)
        self.position.clear()  # it takes more than the ids, and all rows are known
        # Boxes of known images and categories are sorted by image: in place, and in few bytes per box, as these arrays
        # are most of the memory that a run needs at first.
        rows = np.asarray(self.box_rows)
        unlisted = rows < 0
        self.problems["unknown_image"] = int(unlisted.sum())
        categories = np.fromiter(self.categories, np.int32, len(self.categories))
        unknown = np.isin(self.box_categories, categories, invert=True)
        self.problems["unknown_category"] = int((unknown & ~unlisted).sum())
        unknown |= unlisted
        rows[unknown] = len(self.file_names)  # behind all images
        kept = len(rows) - int(unknown.sum())
        order = np.argsort(rows, kind="stable")[:kept].astype(np.min_scalar_type(len(rows)))
        rows = rows[order]
        del unlisted, unknown
        starts = np.searchsorted(rows, np.arange(len(self.file_names) + 1))
        for start in range(0, len(ids), _SLICE):
            part = range(start, min(start + _SLICE, len(ids)))
            these = slice(starts[part.start], starts[part.stop])
            objects = self._objects(order[these], rows[these], part)
            errors = [self.errors.get(row) for row in part]
            texts = [limit_captions(self.captions.get(row, [])) for row in part]
            left_out = [
                {"captions": self.blank_captions[row] + len(self.captions.get(row, [])) - len(own)}
                for row, own in zip(part, texts, strict=True)
            ]
            columns = {
                "image_id": ids[part.start : part.stop],
                **{"dataset": [self.dataset] * len(part), "split": [self.split] * len(part)},
                "file_name": self.file_names[part.start : part.stop],
                "width": self.sizes[2 * part.start : 2 * part.stop : 2],
                "height": self.sizes[2 * part.start + 1 : 2 * part.stop : 2],
                "objects": objects,
                "captions": [[{"text": text, "scope": "image", "boxes": []} for text in own] for own in texts],
                "status": ["error" if error else "ok" for error in errors],
                **{"error": errors, "left_out": left_out},
            }
            yield pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in columns]))

    def settle_rows(self) -> None:
        """Replace the provisional rows of boxes that were read before their images; of unlisted ones by -1."""
        if not self.pending_ids:
            return
        rows = np.asarray(self.box_rows)
        pending = np.flatnonzero(rows < 0)
        listed = np.array([self.position.get(image_id, -1) for image_id in self.pending_ids], np.int64)
        rows[pending] = listed[-1 - rows[pending]]
        self.pending_ids.clear()

    def _objects(self, which: np.ndarray, rows: np.ndarray, part: range) -> pa.Array:
        """Return a list of objects for each image of `part`: boxes clipped, without degenerate ones and duplicates.

        `which`: the indices of its boxes, by image; `rows`: the image of each.
        """
        category, crowd = np.asarray(self.box_categories)[which], np.asarray(self.box_crowds)[which].astype(bool)
        sizes = np.asarray(self.sizes).reshape(-1, 2)[rows].astype(np.float64)
        sized = (sizes > 0).all(1)  # an error row has no size to clip to: its boxes are not degenerate
        with np.errstate(over="ignore", invalid="ignore"):
            clipped, is_inside, overhang = clip_xywh(np.asarray(self.boxes).reshape(-1, 4)[which], sizes)
            inside = np.flatnonzero(is_inside)
            self.problems["unsized_image"] += int((~sized).sum())
            self.problems["degenerate"] += int((~is_inside & sized).sum())
            self.problems["clipped"] += int((overhang[inside] > CLIP_TOLERANCE).sum())
            rows, category, crowd, xywh = rows[inside], category[inside], crowd[inside], clipped[inside]
            which = which[inside]
            # Of boxes that are equal to a hundredth of a pixel, the smallest stays, whatever their order.
            order = np.lexsort(xywh.T)
            key = np.column_stack([rows, category, crowd, np.round(xywh * 100).astype(np.int64)])
            _, first = np.unique(key[order], axis=0, return_index=True)
        kept = np.sort(order[first])
        self.problems["duplicate_boxes"] += len(rows) - len(kept)
        rows, category, crowd, xywh, which = rows[kept], category[kept], crowd[kept], xywh[kept], which[kept]
        self.problems["crowd"] += int(crowd.sum())
        struct = SCHEMA.field("objects").type.value_type
        places = zip(which.tolist(), rows.tolist(), strict=True)
        outlines = [
            self.segmentations.read(box, self.sizes[2 * row : 2 * row + 2], self.problems) for box, row in places
        ]
        known = {
            "category": pa.array([self.categories[number] for number in category.tolist()], pa.string()),
            "category_id": pa.array(category, pa.int32()),
            "bbox": pa.ListArray.from_arrays(np.arange(0, xywh.size + 1, 4, dtype=np.int32), xywh.ravel()),
            "iscrowd": pa.array(crowd),
            "origin": pa.array(["annotation"] * len(rows), pa.string()),
            "segmentation": pa.array(outlines, pa.string()),
        }
        columns = [
            known[each.name].cast(each.type) if each.name in known else pa.nulls(len(rows), each.type)
            for each in struct
        ]
        offsets = np.searchsorted(rows, np.arange(part.start, part.stop + 1)).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(struct)))


def size_or_reason(root: ImageRoot, name: str) -> tuple[tuple[int, int], str]:
    """Return width and height of an image as displayed, or zeros and why there are none."""
    try:
        return read_upright_size(root, name), ""
    except ImageError as error:
        return (0, 0), fields.clean(str(error))


MAX_CAPTIONS = 1000  # of an image; a hundred thousand would keep a worker for minutes


def limit_captions(texts: list[str]) -> list[str]:
    """Return at most `MAX_CAPTIONS` different captions of an image, in their order; hashes decide, not the order."""
    if len(texts) <= MAX_CAPTIONS:
        return texts
    different = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    kept = set(different[:MAX_CAPTIONS])
    return [text for text in dict.fromkeys(texts) if text in kept]


def write_detections(path: Path, detections: Detections, meta: Mapping[str, Any]) -> None:
    """Write the source index of a split, with `meta`, the categories and the problem counts."""
    if not detections.file_names:
        raise UserError(f"{meta['annotations']} lists no images")
    write_index(
        path,
        detections.tables(),
        lambda: {
            **meta,
            "categories": [name for _, name in sorted(detections.categories.items())],
            "category_ids": sorted(detections.categories),
            "problems": dict(+detections.problems),  # complete only after the last table
        },
    )
