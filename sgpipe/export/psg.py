"""`sgpipe export --to psg`: panoptic scene graphs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgpipe.export.fields import corners, unique_id
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.recipe import WHOLE
from sgpipe.records import Box, Record
from sgpipe.sources.annotated import base_split
from sgpipe.sources.psg import STUFF
from sgpipe.storage.manifest import Manifest

_Mask: TypeAlias = NDArray[np.bool_]


def write_psg(rows: ExportRows, out: Path) -> None:
    """Write psg.json, and panoptic_SPLIT/NUMBER.png of images with segmentations; test images: not
    of train or all.
    """
    known = {
        name
        for identity in Manifest.identities(rows.manifest.run)
        for name in identity.get("options", {}).get(STUFF, ())
    }
    names, predicates = rows.names
    things = [name for name in names if name not in known]
    stuff = [name for name in names if name in known]
    numbers = {name: number for number, name in enumerate(things + stuff)}
    verbs = {name: number for number, name in enumerate(predicates)}
    seen = set[str]()
    test = list[int | str]()

    def item(number: int, record: Record) -> dict[str, object]:
        indices = rows.renumber(record, [not box.is_nothing for box in record.objects])
        boxes = [record.objects[index] for index in indices]
        masks = [_mask_of(box, record) for box in boxes]
        segments = []
        annotations = []
        for box, mask in zip(boxes, masks, strict=True):
            annotation = {"category_id": numbers[box.category], "bbox": corners(box)}
            area = plain(box.bbox[2] * box.bbox[3])
            if mask is not None:
                annotation["segmentation"] = json.loads(str(box.segmentation))
                area = int(mask.sum())
            annotations.append(annotation)
            segment = {
                "id": len(annotations),
                "category_id": numbers[box.category],
                "iscrowd": int(box.iscrowd),
                "isthing": int(box.category not in known),
                "area": area,
            }
            segments.append(segment)
        png = f"panoptic_{record.split}/{number:08d}.png"
        if any(mask is not None for mask in masks):
            _write_panoptic(out / png, record, masks)
        elif segments:
            rows.left_out["panoptic PNGs of images without segmentations"] += 1
        image_id = as_number(unique_id(record, seen))
        if base_split(record.split) not in ("train", WHOLE):
            test.append(image_id)
        return {
            "file_name": record.file_name,
            "height": record.height,
            "width": record.width,
            "image_id": image_id,
            "split": record.split,
            "pan_seg_file_name": png,
            "segments_info": segments,
            "annotations": annotations,
            "relations": [
                [relation.subject, relation.object, verbs[relation.predicate]]
                for relation in rows.relations(record, indices)
            ],
        }

    for split in rows.splits:
        (out / f"panoptic_{split}").mkdir()
    data = (
        item(number, record)
        for split in rows.splits
        for number, record in enumerate(rows.records(split, "objects", "relations"))
    )
    lists = (("thing_classes", things), (STUFF, stuff), ("predicate_classes", predicates))
    write_json(out / "psg.json", Members([("data", data), *lists, ("test_image_ids", iter(test))]))


def _write_panoptic(path: Path, record: Record, masks: Sequence[_Mask | None]) -> None:
    """Write the number of the segment of each pixel as a colour; the smallest one is on top."""
    numbered = [(number, mask) for number, mask in enumerate(masks, 1) if mask is not None]
    numbered.sort(key=lambda item: -int(item[1].sum()))
    pixels = np.zeros((record.height, record.width), np.uint32)
    for number, mask in numbered:
        pixels[mask] = number
    colours = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], -1).astype(np.uint8)
    Image.fromarray(colours).save(path)


def _mask_of(box: Box, record: Record) -> _Mask | None:
    """Return the pixels of a box's polygons or run lengths, `[height, width]`; None: it has none,
    or some of another size.
    """
    from pycocotools import mask as coco

    outline = json.loads(box.segmentation) if box.segmentation else None
    if not outline:
        return None
    size = record.height, record.width
    if isinstance(outline, list):
        inside = [[min(max(x, 0), max(size)) for x in polygon] for polygon in outline]
        run_lengths = coco.merge(coco.frPyObjects(inside, *size))
    elif tuple(outline["size"]) != size:
        return None
    elif isinstance(outline["counts"], list):
        run_lengths = coco.frPyObjects(outline, *size)
    else:
        run_lengths = outline
    mask: _Mask = coco.decode(run_lengths) != 0
    return mask


PSG = Format("psg", write_psg)
