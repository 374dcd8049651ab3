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
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.errors import ImageError, UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.images import read_size
from sgpipe.records import SCHEMA, Box, Record
from sgpipe.sources import fields
from sgpipe.sources.annotated import CLIP_TOLERANCE, AnnotationSource, ProblemCounts, add_name
from sgpipe.sources.fields import FieldError
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.storage.source_index import write_index
from sgpipe.utils import BoxForm
from sgpipe.utils import boxes as geometry
from sgpipe.utils.console import count

_SLICE = 8192


MAX_CAPTIONS = 1000  # of an image; a hundred thousand would keep a worker for minutes


BOXES = 20_000
IMAGES = 500

# shares of boxes
_SOME = 0.1
_MANY = 0.25
_HARDLY = 0.01
_FITTING = 0.9  # share of boxes that lie in their images if their form can be found out
# boxes to doubt, and to be certain
_FEW = 3
_ENOUGH = 10
_SMALL_IMAGE = 32  # pixels; not all boxes of larger images lie in one pixel
_OPTION = "--set source.boxes="


_SHIFTS = (  # the axis of images or of classes, the step, and what would explain it
    (0, 1, "each caption were of the image before: check their image_id"),
    (0, -1, "each caption were of the next image: check their image_id"),
    (1, 1, "each box had the next category of the list: check category_id"),
    (1, -1, "each box had the previous category of the list: check category_id"),
)


@dataclass
class Detections:
    """Images and boxes of one split while its annotation file is being read.

    Methods that add an item raise a FieldError if it is malformed; `attempt` counts it.
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
    outlines: IO[bytes] = field(
        default_factory=partial(SpooledTemporaryFile, 64 << 20)
    )  # segmentations; many on disk
    outline_ends: array[int] = field(
        default_factory=lambda: array("q", [0])
    )  # where that of each box ends

    def attempt(self, add: Callable[..., Any], *values: Any) -> Any:
        """Return what `add` returns; None if the item is malformed."""
        try:
            return add(*values)
        except FieldError:
            self.problems["malformed"] += 1

    def add_image(self, item: Any, reason: str = "") -> int | None:
        """Add an entry of `images`, an error row if there is a `reason`, or no file name or size;
        returns its row.

        One with the id of another one is counted and left out.
        """
        image_id = self.name_of(item, "id")
        if image_id in self.position:
            self.problems["duplicate_images"] += 1
            return None
        row = self.position[image_id] = len(self.file_names)
        name = item.get("file_name")
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

    def add_box(self, item: Any) -> None:
        """Add an entry of `annotations`."""
        image_id = self.name_of(item)
        row = self.position.get(image_id)
        if (
            row is None
        ):  # the file may list annotations before images: use a provisional row below zero
            row = -1 - self.pending_ids.setdefault(image_id, len(self.pending_ids))
        self.add_row_box(row, *map(item.get, ("category_id", "bbox", "iscrowd", "segmentation")))

    def add_row_box(
        self, row: int, category: Any, bbox: Any, crowd: Any, segmentation: Any = None
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

    def add_category(self, item: Any) -> None:
        """Add an entry of `categories`, by its exact name. Raises UserError: an id has two
        names.
        """
        category = fields.integer(item, "id")
        name = self.name_of(item, "name")
        if not name.strip():
            raise FieldError("'name' is blank")
        add_name(self.categories, category, name)

    def add_caption(self, item: Any) -> None:
        """Add an entry of a COCO captions file; captions of unlisted images are counted."""
        image_id = self.name_of(item)
        text = fields.text(item, "caption")
        row = self.position.get(image_id)
        if row is None:
            self.problems["unlisted_captions"] += 1
        else:
            self.add_text(row, text)

    def add_text(self, row: int, text: Any) -> None:
        """Add a caption of the image in a row; blank ones are counted."""
        cleaned = fields.single_line(fields.text({"caption": text}, "caption"))
        if cleaned:
            self.captions.setdefault(row, []).append(cleaned)
        else:
            self.blank_captions[row] += 1

    @staticmethod
    def name_of(item: Any, key: str = "image_id") -> str:
        name = fields.identifier(item.get(key)) if isinstance(item, dict) else None
        if name is None:
            raise FieldError(f"{key!r} is not a number or text")
        return name

    def segmentation(self, box: int, size: Sequence[int], problems: ProblemCounts) -> str | None:
        """Return the segmentation of a box, as `fields.segmentation`; `size`: width and height of
        the image.
        """
        start, stop = self.outline_ends[box : box + 2]
        if start == stop:
            return None
        self.outlines.seek(start)
        return fields.segmentation(
            json.loads(self.outlines.read(stop - start)), size[0], size[1], problems
        )

    def tables(self) -> Iterator[pa.Table]:
        """Yield the records in file order, in tables of at most 8,192 rows. Call it once, after all
        has been added.
        """
        self.settle_rows()
        ids = list(self.position)
        self.position.clear()  # it takes more than the ids, and all rows are known
        # Boxes of known images and categories are sorted by image: in place, and in few bytes per
        # box, as these arrays are most of the memory that a run needs at first.
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
                {"captions": self.blank_captions[row] + len(self.captions.get(row, [])) - len(text)}
                for row, text in zip(part, texts, strict=True)
            ]
            columns = {
                "image_id": ids[part.start : part.stop],
                **{"dataset": [self.dataset] * len(part), "split": [self.split] * len(part)},
                "file_name": self.file_names[part.start : part.stop],
                "width": self.sizes[2 * part.start : 2 * part.stop : 2],
                "height": self.sizes[2 * part.start + 1 : 2 * part.stop : 2],
                "objects": objects,
                "captions": [
                    [{"text": text, "scope": "image", "boxes": []} for text in own] for own in texts
                ],
                "status": ["error" if error else "ok" for error in errors],
                **{"error": errors, "left_out": left_out},
            }
            yield pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in columns]))

    def settle_rows(self) -> None:
        """Replace the provisional rows of boxes that were read before their images; of unlisted
        ones by -1.
        """
        if not self.pending_ids:
            return
        rows = np.asarray(self.box_rows)
        pending = np.flatnonzero(rows < 0)
        listed = np.array(
            [self.position.get(image_id, -1) for image_id in self.pending_ids], np.int64
        )
        rows[pending] = listed[-1 - rows[pending]]
        self.pending_ids.clear()

    def _objects(self, which: np.ndarray, rows: np.ndarray, part: range) -> pa.Array:
        """Return the clipped, different objects of each image of `part`: of the boxes `which`, in
        images `rows`.
        """
        category = np.asarray(self.box_categories)[which]
        crowd = np.asarray(self.box_crowds)[which].astype(bool)
        sizes = np.asarray(self.sizes).reshape(-1, 2)[rows].astype(np.float64)
        sized = (sizes > 0).all(
            1
        )  # an error row has no size to clip to: its boxes are not degenerate
        read = np.asarray(self.boxes).reshape(-1, 4)[which]
        is_finite = np.isfinite(read).all(1)
        with np.errstate(over="ignore", invalid="ignore"):
            clipped, is_inside, overhang = geometry.clip_xywh(read, sizes)
            inside = np.flatnonzero(is_inside)
            self.problems["unsized_image"] += int((~sized).sum())
            self.problems["not_finite"] += int((~is_finite & sized).sum())
            self.problems["degenerate"] += int((~is_inside & is_finite & sized).sum())
            self.problems["clipped"] += int((overhang[inside] > CLIP_TOLERANCE).sum())
            rows = rows[inside]
            category = category[inside]
            crowd = crowd[inside]
            xywh = clipped[inside]
            which = which[inside]
            # Of boxes that are equal to a hundredth of a pixel, the smallest stays, whatever their
            # order.
            order = np.lexsort(xywh.T)
            key = np.column_stack([rows, category, crowd, np.round(xywh * 100).astype(np.int64)])
            _, first = np.unique(key[order], axis=0, return_index=True)
        kept = np.sort(order[first])
        self.problems["duplicate_boxes"] += len(rows) - len(kept)
        rows = rows[kept]
        category = category[kept]
        crowd = crowd[kept]
        xywh = xywh[kept]
        which = which[kept]
        self.problems["crowd"] += int(crowd.sum())
        struct = SCHEMA.field("objects").type.value_type
        places = zip(which.tolist(), rows.tolist(), strict=True)
        outlines = [
            self.segmentation(box, self.sizes[2 * row : 2 * row + 2], self.problems)
            for box, row in places
        ]
        known = {
            "category": pa.array(
                [self.categories[number] for number in category.tolist()], pa.string()
            ),
            "category_id": pa.array(category, pa.int32()),
            "bbox": pa.ListArray.from_arrays(
                np.arange(0, xywh.size + 1, 4, dtype=np.int32), xywh.ravel()
            ),
            "iscrowd": pa.array(crowd),
            "origin": pa.array(["annotation"] * len(rows), pa.string()),
            "segmentation": pa.array(outlines, pa.string()),
        }
        columns = [
            (
                known[each.name].cast(each.type)
                if each.name in known
                else pa.nulls(len(rows), each.type)
            )
            for each in struct
        ]
        offsets = np.searchsorted(rows, np.arange(part.start, part.stop + 1)).astype(np.int32)
        return pa.ListArray.from_arrays(
            offsets, pa.StructArray.from_arrays(columns, fields=list(struct))
        )


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
    kept = set(different[:MAX_CAPTIONS])
    return [text for text in dict.fromkeys(texts) if text in kept]


def settle_boxes(
    detections: Detections, form: BoxForm | None, name: str, *, choose: bool = False
) -> list[str]:
    """Turn the boxes of a split into xywh in pixels; returns what is doubtful about them, or which
    form was chosen.

    `form`: None: xywh, or the form that fits best if `choose`. Raises UserError: see `doubt_boxes`;
    or no form fits.
    """
    detections.settle_rows()
    rows = np.asarray(detections.box_rows)
    boxes = np.asarray(detections.boxes).reshape(-1, 4)
    sizes = np.asarray(detections.sizes, np.float64).reshape(-1, 2)
    if not len(boxes) or not len(sizes):
        return []
    first = np.flatnonzero((rows[:BOXES] >= 0) & np.isfinite(boxes[:BOXES]).all(1))
    if not len(first):
        return []
    examined = boxes[first], sizes[rows[first]]
    if form is None and choose:
        form, share = geometry.best_form(*examined)
        if share < _FITTING:
            raise UserError(
                f"{name}: in no form do its boxes lie in their images (as {form}, {share:.0%} do): "
                f"pass {_OPTION}FORM, one of {', '.join(geometry.FORMS)}"
            )
        notes = [
            f"boxes are read as {form}: {share:.1%} lie in their images; {_OPTION}FORM reads others"
        ]
    else:
        notes = doubt_boxes(*examined, form, "xywh", name, _OPTION)
    if form not in (None, "xywh"):
        detections.boxes = array("d", geometry.to_xywh(boxes, sizes[rows], form).tobytes())
    return notes


def doubt_boxes(
    boxes: NDArray[Any],
    sizes: NDArray[Any],
    stated: BoxForm | None,
    usual: BoxForm,
    name: str,
    option: str,
) -> list[str]:
    """Return what is doubtful about boxes `[boxes, 4]` of a form in images of `sizes` `[boxes, 2]`.

    `stated`: the form, None: the `usual` one. `option`: what states it, without its value. Raises
    UserError: the boxes certainly have another form, and none was stated.
    """
    form = stated or usual
    best, share = geometry.best_form(boxes, sizes)
    outside = 1 - geometry.share_inside(boxes, sizes, form)
    outside_best = 1 - share
    number = outside * len(boxes)
    looks_normalised = (
        geometry.are_parts(boxes)
        and not form.endswith("n")
        and len(boxes) >= _FEW
        and sizes.max() > _SMALL_IMAGE
    )
    if looks_normalised:
        doubt = f"all boxes lie in the first pixel of their images, but {share:.0%} fit as {best}"
        certain = len(boxes) >= _ENOUGH
    elif number >= _FEW and outside >= _SOME and outside_best <= outside / 10:
        doubt = (
            f"{outside:.0%} of the boxes leave their images as {form}, {outside_best:.0%} as {best}"
        )
        certain = number >= _ENOUGH and outside >= _MANY and outside_best <= _HARDLY
    elif number >= _ENOUGH and outside >= _MANY:
        return [
            f"{name}: {outside:.0%} of the boxes leave their images: are width and height those of"
            " the images?"
        ]
    else:
        return []
    if certain and not stated:
        raise UserError(
            f"{name}: {doubt}: pass {option}{best}, or {option}{form} if they are right"
        )
    return [f"{name}: {doubt}: pass {option}{best}"]


def doubt_detections(detections: Detections, captions: object) -> list[str]:
    """Return what is doubtful about the categories and captions of a split; `captions` names where
    they come from.
    """
    rows = np.asarray(detections.box_rows)
    numbers = np.asarray(detections.box_categories)[:BOXES][rows[:BOXES] >= 0]
    notes = _doubt_categories(numbers, detections.categories.keys())
    if notes or not detections.captions:
        return notes
    captioned = list(islice(sorted(detections.captions), IMAGES))
    classes = [name for _, name in sorted(detections.categories.items())]
    in_captions = _classes_of_captions(detections, captioned, classes)
    in_boxes = _classes_of_boxes(detections, rows, captioned, classes)
    match = geometry.match_captions(in_captions, in_boxes)
    if not match.is_chance:
        return []
    doubt = (
        f"{captions}: of the classes that captions name, {match.same:.0%} have a box in the same"
        f" image and {match.other:.0%} in any other image, so that captions and boxes seem"
        " unrelated"
    )
    for axis, step, fault in _SHIFTS:
        shifted = geometry.match_captions(in_captions, np.roll(in_boxes, step, axis))
        if shifted.is_real:
            return [f"{doubt}: {shifted.same:.0%} would have one if {fault}"]
    return [f"{doubt}: do they belong together?"]


def _doubt_categories(numbers: NDArray[Any], listed: AbstractSet[int]) -> list[str]:
    """Return what is doubtful about the category_ids of boxes."""
    unlisted = np.isin(numbers, list(listed), invert=True)
    if not listed or not len(numbers) or unlisted.mean() < _HARDLY:
        return []
    ids = set(numbers.tolist())
    examples = ", ".join(map(str, sorted(ids - listed)[:3]))
    advice = ""
    if {number - 1 for number in ids} <= listed:
        advice = "; all would be listed if they were smaller by one"
    elif {number + 1 for number in ids} <= listed:
        advice = "; all would be listed if they were larger by one"
    boxes = f"{int(unlisted.sum()):,} of {count(len(numbers), 'box', 'boxes')}"
    return [
        f"{boxes} have a category_id that is not in the categories, such as {examples}, and are"
        f" dropped{advice}"
    ]


def _classes_of_captions(
    detections: Detections, rows: Sequence[int], classes: Sequence[str]
) -> NDArray[Any]:
    """Return which classes the captions of images name, `[images, classes]`."""
    synonyms = {**packaged_synonyms("objects365"), **packaged_synonyms("coco")}
    find = geometry.ClassFinder({name: synonyms.get(name, ()) for name in classes})
    return geometry.class_matrix(
        [set().union(*map(find, detections.captions[row])) for row in rows], classes
    )


def _classes_of_boxes(
    detections: Detections, box_rows: NDArray[Any], rows: Sequence[int], classes: Sequence[str]
) -> NDArray[Any]:
    """Return which classes the boxes of images have, `[images, classes]`."""
    names: dict[int, set[str]] = {row: set() for row in rows}
    for box in np.flatnonzero(np.isin(box_rows, rows)).tolist():
        category = detections.box_categories[box]
        names[box_rows[box]].add(detections.categories.get(category, ""))
    return geometry.class_matrix(names.values(), classes)


def settle_records(
    records: Sequence[Record], source: AnnotationSource, form: BoxForm | None, *, examine: bool
) -> list[str]:
    """Turn boxes, as they were read, into those of another `form`, if any; return what is doubtful
    if you `examine`.

    Raises UserError: as `doubt_boxes`.
    """
    examine = examine and source.boxes is not None
    if form is None and not examine:
        return []
    sides: list[tuple[int, int]] = []
    objects: list[Box] = []
    for record in records:
        boxes_of_record = [box for box in record.objects if record.ok and not box.is_nothing]
        objects += boxes_of_record
        sides += [(record.width, record.height)] * len(boxes_of_record)
    sizes = np.array(sides, np.float64).reshape(-1, 2)
    boxes = np.array([box.bbox for box in objects], np.float64).reshape(-1, 4)
    if source.boxes == "xyxy":  # as the file has them
        boxes = geometry.xywh_to_xyxy(boxes)
    notes: list[str] = []
    is_finite = np.isfinite(boxes).all(1)
    if examine and is_finite.any():
        name = str(source.files["annotations"])
        usual = source.boxes or "xywh"
        notes = doubt_boxes(boxes[is_finite], sizes[is_finite], form, usual, name, "--boxes ")
    if form is not None:
        settled = geometry.to_xywh(boxes, sizes, form).tolist()
        for box, bbox in zip(objects, settled, strict=True):
            box.bbox = tuple(bbox)
    return notes


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
