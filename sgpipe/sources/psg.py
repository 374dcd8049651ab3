"""PSG: panoptic scene graphs, in which objects are segments of an image.

`data` has an item for each image, with `segments_info` (`id` `category_id` `iscrowd`),
`annotations` (`bbox` xyxy, one for each segment, in their order) and `relations` ([subject, object,
predicate]: indices of segments and of `predicate_classes`). A category_id is an index of
`thing_classes` and then `stuff_classes`. A pixel of the panoptic PNGs is of the segment with the id
red + 256 green + 65,536 blue (github.com/Jingkang50/OpenPSG: openpsg/datasets/psg.py,
pipelines/loading.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, check_images, image_root
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.images import decode
from sgpipe.recipe import WHOLE
from sgpipe.records import Box, Record
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    ProblemCounts,
    base_split,
    error_row,
)
from sgpipe.sources.fields import FieldError

Pixels: TypeAlias = NDArray[np.uint32]

STUFF = "stuff_classes"
_SPLITS = ("train", "test", WHOLE)
_NUMBER_OF_COLOUR = np.array([1, 256, 65536], np.uint32)  # red, green, blue


@dataclass(frozen=True)
class _Header:
    """What a file has beside its images.

    Attributes:
        splits: those that its images name, as `sgpipe export` writes them.
    """

    things: Sequence[str]
    stuff: Sequence[str]
    predicates: Sequence[str]
    test_images: Sequence[str | None]
    splits: frozenset[str]

    @property
    def classes(self) -> list[str]:
        return [*self.things, *self.stuff]


def psg_source(
    annotations: Location, split: str, masks: ImagePlace | None = None
) -> AnnotationSource:
    """Return the images of a split of psg.json: train, test (of `test_image_ids`), or all.

    Where items have a `split`, as `sgpipe export` writes it, `split` can be any of these, such as
    val.

    Args:
        masks: the panoptic PNGs; without them, only the file's own segmentations are read.

    Raises:
        UserError: the file is of another format, or has no such split.
    """
    annotated.require_format(annotations, "psg")
    header = _read_header(annotations)
    further = sorted(header.splits - {*_SPLITS})
    if split not in (*_SPLITS, *further):
        listed = ", ".join(["train", *further, "test"])
        raise UserError(f"{annotations} has no split {split!r}: pass --split {listed} or {WHOLE}")
    if masks is not None:
        check_images(masks)
    test_images = set(header.test_images)
    predicates = dict(enumerate(header.predicates))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for key, item in JsonStream(annotations):
            if key != "data":
                continue
            image_id = (
                fields.identifier(item.get("image_id")) if isinstance(item, Mapping) else None
            )
            if image_id is None or not isinstance(item.get("file_name"), str):
                problems["malformed"] += 1
                continue
            if not _is_in_split(split, _stated_split(item), image_id in test_images):
                continue
            file_name = fields.text(item, "file_name")
            record = Record(image_id, "psg", split, file_name, *fields.size(item))
            with error_row(record):
                record.objects = list(_segments(item, record, header.classes, masks, problems))
                triplets = [fields.numbers(row, 3) for row in fields.as_list(item.get("relations"))]
                indices = {index: index for index in range(len(record.objects))}
                record.relations = annotated.relations_of(triplets, predicates, indices)
            yield record

    classes = DatasetClasses(tuple(header.classes), tuple(header.predicates))
    options = {STUFF: list(header.stuff), "masks": masks is not None}
    return AnnotationSource(
        "psg", split, read, {"annotations": annotations}, options, classes, boxes="xyxy"
    )


def _read_header(annotations: Location) -> _Header:
    """Return what a file has beside its images. Raises UserError: a class list is missing."""
    names: dict[str, list[str]] = {"thing_classes": [], STUFF: [], "predicate_classes": []}
    test_images: list[str | None] = []
    splits: set[str] = set()
    stream = JsonStream(annotations)
    for key, item in stream:
        if key == "data":
            splits.add(_stated_split(item) or WHOLE)
        elif key == "test_image_ids":
            test_images.append(fields.identifier(item))
        elif key in names:
            names[key].append(fields.clean(str(item)))
    header = _Header(
        things=names["thing_classes"],
        stuff=names[STUFF],
        predicates=names["predicate_classes"],
        test_images=test_images,
        splits=frozenset(splits),
    )
    required = {"thing_classes": header.classes, "predicate_classes": header.predicates}
    for key, listed in required.items():
        if key not in stream.arrays or len(set(listed)) < len(listed):
            raise UserError(f"{annotations}: {key} is missing, or has a name twice")
    return header


def _stated_split(item: Any) -> str | None:
    """Return the split that `sgpipe export` writes for an image."""
    split = item.get("split") if isinstance(item, Mapping) else None
    return fields.clean(split) if isinstance(split, str) and split else None


def _is_in_split(split: str, stated_split: str | None, is_test_image: bool) -> bool:
    """Return whether an image is of a split.

    `test_image_ids` also have those of val and of splits of other names.
    """
    if split == WHOLE:
        return True
    if split == "train":
        return not is_test_image
    if split == "test":
        return is_test_image and base_split(stated_split or "test") == "test"
    return stated_split == split


def _segments(
    item: Mapping[str, Any],
    record: Record,
    classes: Sequence[str],
    masks: ImagePlace | None,
    problems: ProblemCounts,
) -> Iterator[Box]:
    """Yield the segments of an image as objects.

    Raises:
        FieldError: a value is missing or malformed.
        ImageError: the panoptic PNG cannot be used.
    """
    segments = fields.array(item, "segments_info")
    entries: list[Any] = [{}] * len(segments)
    if "annotations" in item:
        entries = fields.array(item, "annotations")
    if len(entries) != len(segments):
        raise FieldError(f"it has {len(segments)} segments_info and {len(entries)} annotations")
    pixels = None
    if masks is not None and segments:
        pixels = _read_panoptic(item, record, masks)
    for index, (segment, entry) in enumerate(zip(segments, entries, strict=True)):
        category = fields.integer(segment, "category_id")
        if category not in range(len(classes)):
            raise FieldError(
                f"category_id {category} of segment {index} is not a class of the file"
            )
        entry = entry if isinstance(entry, Mapping) else {}
        outline: Any = entry.get("segmentation")
        segmentation = fields.segmentation(outline, record.width, record.height, problems)
        mask = None if pixels is None else pixels == fields.integer(segment, "id")
        if mask is not None and mask.any():
            outline = _encode(mask)
            segmentation = json.dumps(outline)
        if "bbox" not in entry and not segmentation:
            raise FieldError(f"segment {index} has neither a bbox nor pixels")
        bbox = fields.corners(entry["bbox"]) if "bbox" in entry else _bounding_box(outline)
        iscrowd = bool(segment.get("iscrowd"))
        yield Box(classes[category], category, bbox, iscrowd, segmentation=segmentation)


def _read_panoptic(item: Mapping[str, Any], record: Record, masks: ImagePlace) -> Pixels:
    """Return the segment number of each pixel, `[height, width]`."""
    root = image_root(masks)
    name = fields.text(item, "pan_seg_file_name")
    image = decode(root.open(name), (record.width, record.height), root.where(name))
    numbers: Pixels = np.asarray(image, np.uint32) @ _NUMBER_OF_COLOUR
    return numbers


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask as COCO's compressed run lengths."""
    from pycocotools import mask as coco

    run_lengths = coco.encode(np.asfortranarray(mask, np.uint8))
    return run_lengths | {"counts": run_lengths["counts"].decode()}


def _bounding_box(outline: Any) -> tuple[float, float, float, float]:
    """Return the xywh box around polygons or run lengths."""
    from pycocotools import mask as coco

    if isinstance(outline, list):
        rings = [np.reshape(ring, (-1, 2)) for ring in outline]
        points = np.concatenate(rings).astype(float)
        left, top = points.min(0).tolist()
        width, height = np.ptp(points, 0).tolist()
        return left, top, width, height
    if isinstance(outline["counts"], list):
        outline = coco.frPyObjects(outline, *map(int, outline["size"]))
    x, y, width, height = coco.toBbox(outline).tolist()
    return x, y, width, height
