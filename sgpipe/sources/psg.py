"""PSG: panoptic scene graphs, in which objects are segments of an image.

`data` has an item for each image, with `segments_info` (`id` `category_id` `iscrowd`),
`annotations` (`bbox` xyxy, one for each segment, in their order) and `relations` ([subject, object,
predicate]: indices of segments and of `predicate_classes`). A category_id is an index of
`thing_classes` and then `stuff_classes`. A pixel of the panoptic PNGs is of the segment with the id
red + 256 green + 65,536 blue (github.com/Jingkang50/OpenPSG: openpsg/datasets/psg.py,
pipelines/loading.py).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts, base_split
from sgpipe.sources.fields import FieldError
from sgpipe.sources.plugin import Source

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
    test_images: frozenset[str | None]
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
    predicates = dict(enumerate(header.predicates))

    def items() -> Iterator[object]:
        for key, item in JsonStream(annotations):
            if key == "data" and _is_in_split(item, split, header):
                yield item

    def start(item: object) -> Record:
        image_id = fields.required_id(item)
        return Record(image_id, "psg", split, fields.text(item, "file_name"), *fields.size(item))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        def fill(record: Record, item: object) -> None:
            record.objects = list(_segments(item, record, header.classes, masks, problems))
            triplets = fields.as_list(fields.mapping(item).get("relations"))
            rows = [fields.numbers(triplet, 3) for triplet in triplets]
            indices = dict(enumerate(range(len(record.objects))))
            record.relations = annotated.relations_of(rows, predicates, indices)

        return annotated.read_records(items(), start, fill, problems)

    classes = DatasetClasses(tuple(header.classes), tuple(header.predicates))
    options = {STUFF: list(header.stuff), "masks": masks is not None}
    return AnnotationSource(
        "psg", split, read, {"annotations": annotations}, options, classes, boxes="xyxy"
    )


def _read_header(annotations: Location) -> _Header:
    """Return what a file has beside its images.

    Raises:
        UserError: a class list is missing.
    """
    names: dict[str, list[str]] = {"thing_classes": [], STUFF: [], "predicate_classes": []}
    test_images: set[str | None] = set()
    splits: set[str] = set()
    stream = JsonStream(annotations)
    for key, item in stream:
        if key == "data":
            splits.add(_stated_split(item) or WHOLE)
        elif key == "test_image_ids":
            test_images.add(fields.identifier(item))
        elif key in names:
            names[key].append(fields.clean(str(item)))
    header = _Header(
        things=names["thing_classes"],
        stuff=names[STUFF],
        predicates=names["predicate_classes"],
        test_images=frozenset(test_images),
        splits=frozenset(splits),
    )
    required = {"thing_classes": header.classes, "predicate_classes": header.predicates}
    for key, listed in required.items():
        if key not in stream.arrays or len(set(listed)) < len(listed):
            raise UserError(f"{annotations}: {key} is missing, or has a name twice")
    return header


def _stated_split(item: object) -> str | None:
    """Return the split that `sgpipe export` writes for an image."""
    split = fields.mapping(item).get("split")
    return fields.clean(split) if isinstance(split, str) and split else None


def _is_in_split(item: object, split: str, header: _Header) -> bool:
    """Return whether an image is of a split, or malformed.

    `test_image_ids` also have those of val and of splits of other names.
    """
    image_id = fields.identifier(fields.mapping(item).get("image_id"))
    if split == WHOLE or image_id is None:
        return True
    is_test_image = image_id in header.test_images
    stated_split = _stated_split(item)
    if split == "train":
        return not is_test_image
    if split == "test":
        return is_test_image and base_split(stated_split or "test") == "test"
    return stated_split == split


def _segments(
    item: object,
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
    entries = fields.array(item, "annotations", default=[{}] * len(segments))
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
        outline = fields.mapping(entry).get("segmentation")
        segmentation = fields.segmentation(outline, record.width, record.height, problems)
        if pixels is not None:
            mask = pixels == fields.integer(segment, "id")
            segmentation = _encode(mask) or segmentation
        bbox = _bbox(entry, segmentation)
        if bbox is None:
            raise FieldError(f"segment {index} has neither a bbox nor pixels")
        iscrowd = bool(fields.mapping(segment).get("iscrowd"))
        yield Box(classes[category], category, bbox, iscrowd, segmentation=segmentation)


def _read_panoptic(item: object, record: Record, masks: ImagePlace) -> Pixels:
    """Return the segment number of each pixel, `[height, width]`."""
    root = image_root(masks)
    name = fields.text(item, "pan_seg_file_name")
    image = decode(root.open(name), (record.width, record.height), root.where(name))
    numbers: Pixels = np.asarray(image, np.uint32) @ _NUMBER_OF_COLOUR
    return numbers


def _encode(mask: NDArray[np.bool_]) -> str | None:
    """Return a mask as the JSON of COCO's compressed run lengths; None: it is empty."""
    from pycocotools import mask as coco

    if not mask.any():
        return None
    run_lengths = coco.encode(np.asfortranarray(mask, np.uint8))
    return json.dumps(run_lengths | {"counts": run_lengths["counts"].decode()})


def _bbox(entry: object, segmentation: str | None) -> tuple[float, float, float, float] | None:
    """Return the xywh box that a segment states, or the one around its polygons or run lengths."""
    from pycocotools import mask as coco

    stated = fields.mapping(entry)
    if "bbox" in stated:
        return fields.corners(stated["bbox"])
    if segmentation is None:
        return None
    outline = json.loads(segmentation)
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


PSG = Source("psg", open=psg_source, has_own_splits=True)
