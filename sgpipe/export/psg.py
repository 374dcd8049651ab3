"""`sgpipe export --to psg`: panoptic scene graphs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sgpipe.export.fields import corners, unique_id
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.recipe import WHOLE
from sgpipe.records import Record
from sgpipe.sources.annotated import base_split
from sgpipe.sources.psg import STUFF
from sgpipe.storage.manifest import Manifest


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
    things, stuff = ([name for name in names if (name in known) == kind] for kind in (False, True))
    numbers, verbs = (
        {name: number for number, name in enumerate(each)} for each in (things + stuff, predicates)
    )
    seen = set[str]()
    test = list[int | str]()

    def item(at: int, record: Record) -> dict[str, Any]:
        indices = rows.renumber(record, [not box.is_nothing for box in record.objects])
        pixels = np.zeros((record.height, record.width), np.uint32)
        segments = []
        annotations = []
        masks = []
        for number, box in enumerate((record.objects[index] for index in indices), 1):
            category = {"category_id": numbers[box.category]}
            area = plain(box.bbox[2] * box.bbox[3])
            annotations.append(category | {"bbox": corners(box)})
            segmentation = box.segmentation and json.loads(box.segmentation)
            if segmentation and (mask := _mask(segmentation, record)) is not None:
                annotations[-1]["segmentation"] = segmentation
                area = int(mask.sum())
                masks.append((-area, number, mask))
            kind = {"iscrowd": int(box.iscrowd), "isthing": int(box.category not in known)}
            segments.append({"id": number, **category, **kind, "area": area})
        for _, number, mask in sorted(
            masks, key=lambda each: each[:2]
        ):  # the smallest of all is on top
            pixels[mask] = number
        png = f"panoptic_{record.split}/{at:08d}.png"
        if masks:
            colours = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], -1).astype(np.uint8)
            Image.fromarray(colours).save(out / png)
        elif segments:
            rows.left_out["panoptic PNGs of images without segmentations"] += 1
        image_id = as_number(unique_id(record, seen))
        if base_split(record.split) not in ("train", WHOLE):
            test.append(image_id)
        return {
            **{"file_name": record.file_name, "height": record.height, "width": record.width},
            **{"image_id": image_id, "split": record.split, "pan_seg_file_name": png},
            **{"segments_info": segments, "annotations": annotations},
            "relations": [
                [relation.subject, relation.object, verbs[relation.predicate]]
                for relation in rows.relations(record, indices)
            ],
        }

    for split in rows.splits:
        (out / f"panoptic_{split}").mkdir()
    data = (
        item(*each)
        for split in rows.splits
        for each in enumerate(rows.records(split, "objects", "relations"))
    )
    lists = (("thing_classes", things), (STUFF, stuff), ("predicate_classes", predicates))
    write_json(out / "psg.json", Members([("data", data), *lists, ("test_image_ids", iter(test))]))


def _mask(value: Any, record: Record) -> Any:
    """Return the pixels [height, width] of polygons or run lengths; None: these are of another
    size.
    """
    from pycocotools import mask as coco

    size = record.height, record.width
    if isinstance(value, list):
        inside = [[min(max(x, 0), max(size)) for x in polygon] for polygon in value]
        return coco.decode(coco.merge(coco.frPyObjects(inside, *size))) != 0
    if tuple(value["size"]) != size:
        return None
    return (
        coco.decode(coco.frPyObjects(value, *size) if isinstance(value["counts"], list) else value)
        != 0
    )


PSG = Format("psg", write_psg)
