"""The datasets of scene-graph benchmarks in their own forms: PSG and VG150.

PSG is what OpenPSG's loader reads (github.com/Jingkang50/OpenPSG: openpsg/datasets/psg.py, pipelines/loading.py).
`data` has an item for each image, with `segments_info` (`id` `category_id` `iscrowd` `isthing`), `annotations` (`bbox`
xyxy, one for each segment, in their order) and `relations` ([subject, object, predicate]: indices of segments and of
`predicate_classes`). A category_id is an index of `thing_classes` and then `stuff_classes`. A pixel of the panoptic PNG
belongs to the segment whose id is red + 256 green + 65,536 blue. Images of `test_image_ids` are the split test.

VG150 is what the loader of Scene-Graph-Benchmark.pytorch reads (github.com/KaihuaTang/Scene-Graph-Benchmark.pytorch:
maskrcnn_benchmark/data/datasets/visual_genome.py). Row i of the image arrays of the HDF5 file is image i of
image_data.json without four corrupted ones. `img_to_first_box` and `img_to_last_box`, and the same of `rel`, are the
first and the last row of an image, or -1; `boxes_1024` is x and y of the centre, width and height, where 1024 is the
longer side of the image; `relationships` are rows of boxes. Labels, predicates and attributes count from 1, 0 is none.
`split` is 2 for test; of the other images with boxes and relations, the first 5,000 are for validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.errors import UserError, import_extra
from sgpipe.files.image_roots import ImagePlace, check_images, image_root
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, open_stream, read_text
from sgpipe.images import decode, read_size
from sgpipe.recipe import WHOLE
from sgpipe.records import Attribute, Box, Record
from sgpipe.sources import fields
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts, error_row, triplet_relations
from sgpipe.sources.fields import FieldError
from sgpipe.sources.formats import require_format
from sgpipe.sources.scene_graphs import locate_image

STUFF = "stuff_classes"
_LISTS = ("thing_classes", STUFF, "predicate_classes", "test_image_ids")


def psg_source(annotations: Location, split: str, masks: ImagePlace | None = None) -> AnnotationSource:
    """Return the images of a split of psg.json (train or test, as the file has them, or all).

    `masks`: where the panoptic PNGs are. None: only segmentations that the file itself has are kept.
    """
    require_format(annotations, "psg")
    lists: dict[str, list[Any]] = {key: [] for key in _LISTS}
    stream = JsonStream(annotations)
    for key, item in stream:
        if key in lists:
            lists[key].append(fields.identifier(item) if key == "test_image_ids" else fields.clean(str(item)))
    things, stuff, predicates, test = lists.values()
    for what, names in (("thing_classes", things + stuff), ("predicate_classes", predicates)):
        if what not in stream.arrays or len(set(names)) < len(names):
            raise UserError(f"{annotations}: {what} is missing, or has a name twice")
    if split not in ("train", "test", WHOLE):
        raise UserError(f"{annotations} has no split {split!r}: pass --split train, test or {WHOLE}")
    if masks is not None:
        check_images(masks)
    chosen, names_by_number = set(test), dict(enumerate(predicates))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for item in (item for key, item in JsonStream(annotations) if key == "data"):
            number = fields.identifier(item.get("image_id")) if isinstance(item, Mapping) else None
            if number is None or not isinstance(item.get("file_name"), str):
                problems["malformed"] += 1
            elif split == WHOLE or (number in chosen) == (split == "test"):
                record = Record(number, "psg", split, fields.text(item, "file_name"), *fields.size(item))
                with error_row(record):
                    record.objects = list(_segments(item, record, things + stuff, masks, problems))
                    ends = range(len(record.objects))
                    record.relations = triplet_relations(item.get("relations") or [], names_by_number, ends)
                yield record

    classes = DatasetClasses((*things, *stuff), tuple(predicates))
    options = {STUFF: stuff, "masks": masks is not None}
    return AnnotationSource("psg", split, read, {"annotations": annotations}, options, classes, boxes="xyxy")


def _segments(
    item: Mapping[str, Any], record: Record, names: Sequence[str], masks: ImagePlace | None, problems: ProblemCounts
) -> Iterator[Box]:
    """Yield the segments of an image as objects. Raises FieldError; ImageError: its panoptic PNG cannot be used."""
    from pycocotools import mask as coco

    segments = fields.array(item, "segments_info")
    entries = fields.array(item, "annotations") if "annotations" in item else [{}] * len(segments)
    if len(entries) != len(segments):
        raise FieldError(f"it has {len(segments)} segments_info and {len(entries)} annotations")
    pixels = None
    if masks is not None and segments:
        root, name = image_root(masks), fields.text(item, "pan_seg_file_name")
        image = decode(root.open(name), (record.width, record.height), root.where(name))
        pixels = np.asarray(image, np.uint32) @ np.array([1, 256, 65536], np.uint32)
    for index, (segment, entry) in enumerate(zip(segments, entries, strict=True)):
        category = fields.integer(segment, "category_id")
        if category not in range(len(names)):
            raise FieldError(f"category_id {category} of segment {index} is not a class of the file")
        value = entry.get("segmentation") if isinstance(entry, Mapping) else None
        segmentation = fields.segmentation(value, record.width, record.height, problems)
        if pixels is not None and (mask := pixels == fields.integer(segment, "id")).any():
            value = coco.encode(np.asfortranarray(mask, np.uint8))
            segmentation = json.dumps(value | {"counts": value["counts"].decode()})
        if isinstance(entry, Mapping) and "bbox" in entry:
            bbox = fields.corners(entry["bbox"])
        elif segmentation:
            bbox = _bounds(value)
        else:
            raise FieldError(f"segment {index} has neither a bbox nor pixels")
        yield Box(names[category], category, bbox, bool(segment.get("iscrowd")), segmentation=segmentation)


def _bounds(value: Any) -> tuple[float, float, float, float]:
    """Return the box of polygons or run lengths, as x, y, width, height."""
    from pycocotools import mask as coco

    if isinstance(value, list):
        x, y = ([each for polygon in value for each in polygon[start::2]] for start in (0, 1))
        return min(x), min(y), max(x) - min(x), max(y) - min(y)
    if isinstance(value["counts"], list):
        value = coco.frPyObjects(value, *map(int, value["size"]))
    x, y, width, height = coco.toBbox(value).tolist()
    return x, y, width, height


BOX_SCALE, VALIDATION_IMAGES = 1024, "validation_images"  # the latter: an attribute of files that sgpipe wrote
_CORRUPTED = ("1592", "1722", "4616", "4617")
_TABLES = (  # their names and columns (0: one number); those in a row have one length
    {"split": 0, "img_to_first_box": 0, "img_to_last_box": 0, "img_to_first_rel": 0, "img_to_last_rel": 0},
    {"boxes_1024": 4, "labels": 1},
    {"relationships": 2, "predicates": 1},
)


def vg150_source(
    annotations: Location, dicts: Path, image_data: Path, images: ImagePlace, split: str
) -> AnnotationSource:
    """Return the images of VG-SGG.h5 or VG-SGG-with-attri.h5: train, val or test, as benchmarks have them, or all.

    `dicts`: VG-SGG-dicts.json or VG-SGG-dicts-with-attri.json.
    """
    try:
        content = json.loads(read_text(dicts, "dictionaries"))
        kinds = (content["label_to_idx"], content["predicate_to_idx"], content.get("attribute_to_idx") or {})
        names = [{int(n): fields.clean(str(name)) for name, n in kind.items() if int(n) > 0} for kind in kinds]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{dicts} is not VG-SGG-dicts.json: expected label_to_idx and predicate_to_idx") from None
    tables, validation = _read_tables(annotations)
    group = tables["split"]
    listed = [item for _, item in JsonStream(image_data) if isinstance(item, dict)]
    if len(listed) != len(group):
        listed = [item for item in listed if fields.identifier(item.get("image_id")) not in _CORRUPTED]
    if len(listed) != len(group):
        raise UserError(f"{image_data} lists {len(listed):,} images, but {annotations} has {len(group):,}")
    usable = (group == 0) & (tables["img_to_first_box"] >= 0) & (tables["img_to_first_rel"] >= 0)
    val = (group == 1) | (usable & (np.cumsum(usable) <= validation))
    chosen = {"train": (group == 0) & ~val, "val": val, "test": group == 2, WHOLE: group == group}
    if split not in chosen:
        raise UserError(f"{annotations} has no split {split!r}: pass --split train, val, test or {WHOLE}")

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for at in np.flatnonzero(chosen[split]).tolist():
            item, image_id = listed[at], fields.identifier(listed[at].get("image_id"))
            if image_id is None:
                problems["malformed"] += 1
                continue
            name = locate_image(images, fields.clean(str(item.get("file_name") or f"{image_id}.jpg")))
            record = Record(image_id, "vg150", split, name, *fields.size(item))
            with error_row(record):
                if not (record.width and record.height):
                    record.width, record.height = read_size(images, name)
                _fill(record, tables, names, at)
            yield record

    files = {"annotations": annotations, "dicts": dicts, "image_data": image_data}
    classes = DatasetClasses(*(tuple(kind[n] for n in sorted(kind)) for kind in names[:2]))
    return AnnotationSource("vg150", split, read, files, classes=classes)


def _read_tables(path: Location) -> tuple[dict[str, Any], int]:
    """Return the tables of the HDF5 file, boxes as x, y, width, height, and the number of validation images."""
    try:
        with import_extra("h5py", "vg150").File(path if isinstance(path, Path) else open_stream(path), "r") as file:
            tables = {name: file[name][()] for each in _TABLES for name in each}
            boxes = tables["boxes_1024"]
            tables["attributes"] = file["attributes"][()] if "attributes" in file else np.zeros((len(boxes), 0), int)
            validation = int(file.attrs.get(VALIDATION_IMAGES, 5000))
        for each in _TABLES:
            for name, columns in each.items():
                shape, is_number = (len(tables[next(iter(each))]), columns), tables[name].dtype.kind in "iuf"
                if not is_number or tables[name].shape != shape[: 1 + bool(columns)]:
                    raise ValueError(f"{name} has other rows, columns or types")
        if tables["attributes"].ndim != 2 or len(tables["attributes"]) != len(boxes):
            raise ValueError("attributes are not those of the boxes")
        boxes[:, :2] = boxes[:, :2] - boxes[:, 2:] / 2  # of integers, rounded as in the loader
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a whole VG-SGG.h5 ({str(error)[:120]})") from None
    return tables, validation


def _fill(record: Record, tables: Mapping[str, Any], names: Sequence[Mapping[int, str]], image: int) -> None:
    """Add objects and relations. Raises FieldError: a number has no name, or a row is missing or of another image."""
    spans = []
    for kind, of in (("box", "labels"), ("rel", "predicates")):
        first, last = (int(tables[f"img_to_{end}_{kind}"][image]) for end in ("first", "last"))
        if first >= 0 and not first <= last < len(tables[of]):
            raise FieldError(f"img_to_first_{kind} and img_to_last_{kind} are {first} and {last}: no rows of {of}")
        spans.append(slice(first, last + 1) if first >= 0 else slice(0, 0))
    boxes = tables["boxes_1024"][spans[0]] * (max(record.width, record.height) / BOX_SCALE)
    of_boxes = (boxes, tables["labels"][spans[0], 0], tables["attributes"][spans[0]])
    for (x, y, w, h), label, numbers in zip(*(values.tolist() for values in of_boxes), strict=True):
        attributes = [number for number in numbers if number]
        if label not in names[0] or not names[2].keys() >= set(attributes):
            raise FieldError(f"label {label} or attributes {attributes} of an object are not in the dictionaries")
        adjectives = [Attribute(names[2][number]) for number in attributes]
        record.objects.append(Box(names[0][label], label, (x, y, w, h), attributes=adjectives))
    ends = tables["relationships"][spans[1]] - spans[0].start
    triplets = np.hstack([ends, tables["predicates"][spans[1]]]).tolist()
    record.relations = triplet_relations(triplets, names[1], range(len(record.objects)))
