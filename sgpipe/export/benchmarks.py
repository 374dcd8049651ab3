"""A run in the forms of scene-graph benchmarks, as `sgpipe.sources.benchmarks` describes them."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sgpipe.errors import add_filename, import_extra
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.recipe import WHOLE
from sgpipe.records import NO_OBJECT, Record
from sgpipe.sources.benchmarks import BOX_SCALE, STUFF, VALIDATION_IMAGES
from sgpipe.storage.manifest import Manifest


def write_psg(rows: ExportRows, out: Path) -> None:
    """Write psg.json, and panoptic_SPLIT/NUMBER.png of each image whose objects have segmentations.

    Images of other splits than train and all are the test images. Confidences are left out.
    """
    known = {name for each in Manifest.identities(rows.manifest.run) for name in each.get("options", {}).get(STUFF, ())}
    names, predicates = _names(rows)
    things, stuff = ([name for name in names if (name in known) == kind] for kind in (False, True))
    test: list[int | str] = []
    lists = (("thing_classes", things), (STUFF, stuff), ("predicate_classes", predicates))
    data = _items(rows, out, things + stuff, len(things), predicates, test)
    write_json(out / "psg.json", Members([("data", data), *lists, ("test_image_ids", iter(test))]))


def _part(split: str) -> str:
    """The split as forms have it: `sgpipe merge` numbers further ones, such as train_2."""
    return re.sub(r"_\d+$", "", split)


def _unique(record: Record, seen: set[str]) -> str:
    """The id of an image, with the name of its split if an image of another split has it; it is added to `seen`."""
    image_id = record.image_id
    while image_id in seen:
        image_id += f"-{record.split}"
    seen.add(image_id)
    return image_id


def _names(rows: ExportRows) -> tuple[list[str], list[str]]:
    """The classes, without the missing object, and the predicates: the closed lists, and what else occurs."""
    listed = rows.manifest.run.get("labels") or {"objects": [], "relations": []}
    seen = sorted({name for _, name in rows.census.categories}), sorted(rows.census.predicates)
    names, predicates = (list(dict.fromkeys([*listed[k], *new])) for k, new in zip(listed, seen, strict=True))
    return [name for name in names if name != NO_OBJECT], predicates


def _items(
    rows: ExportRows, out: Path, names: Sequence[str], things: int, predicates: Sequence[str], test: list[int | str]
) -> Iterator[dict[str, Any]]:
    """The item of each image; the ids of those that are not for training are added to `test`."""
    numbers, verbs = ({name: number for number, name in enumerate(each)} for each in (names, predicates))
    seen = set[str]()
    for split in rows.splits:
        (out / f"panoptic_{split}").mkdir()
        for at, record in enumerate(rows.records(split, "objects", "relations")):
            indices = rows.renumber(record, [not box.is_nothing for box in record.objects])
            pixels = np.zeros((record.height, record.width), np.uint32)
            segments, annotations, masks = [], [], []
            for number, box in enumerate((record.objects[index] for index in indices), 1):
                x, y, w, h = box.bbox
                category, area = {"category_id": numbers[box.category]}, plain(w * h)
                annotations.append(category | {"bbox": [plain(x), plain(y), plain(x + w), plain(y + h)]})
                segmentation = box.segmentation and json.loads(box.segmentation)
                if segmentation and (mask := _mask(segmentation, record)) is not None:
                    annotations[-1]["segmentation"] = segmentation
                    area = int(mask.sum())
                    masks.append((-area, number, mask))
                kind = {"iscrowd": int(box.iscrowd), "isthing": int(numbers[box.category] < things)}
                segments.append({"id": number, **category, **kind, "area": area})
            for _, number, mask in sorted(masks, key=lambda each: each[:2]):  # the smallest of all is on top
                pixels[mask] = number
            png = f"panoptic_{split}/{at:08d}.png"
            if masks:
                colours = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], -1).astype(np.uint8)
                Image.fromarray(colours).save(out / png)
            elif segments:
                rows.left_out["panoptic PNGs of images without segmentations"] += 1
            image_id = as_number(_unique(record, seen))
            if _part(split) not in ("train", WHOLE):
                test.append(image_id)
            found = rows.relations(record, indices)
            yield {
                **{"file_name": record.file_name, "height": record.height, "width": record.width},
                **{"image_id": image_id, "pan_seg_file_name": png},
                **{"segments_info": segments, "annotations": annotations},
                "relations": [[item.subject, item.object, verbs[item.predicate]] for item in found],
            }


def _mask(value: Any, record: Record) -> Any:
    """The pixels [height, width] of an object, of its polygons or run lengths; None: these are of another size."""
    from pycocotools import mask as coco

    size = record.height, record.width
    if isinstance(value, list):
        inside = [[min(max(x, 0), max(size)) for x in polygon] for polygon in value]
        return coco.decode(coco.merge(coco.frPyObjects(inside, *size))) != 0
    if tuple(value["size"]) != size:
        return None
    return coco.decode(coco.frPyObjects(value, *size) if isinstance(value["counts"], list) else value) != 0


_ATTRIBUTES = 10  # of an object, at most
_COLUMNS = {"boxes_1024": 4, "labels": 1, "attributes": _ATTRIBUTES, "relationships": 2, "predicates": 1}
_OF_IMAGES = ("split", "img_to_first_box", "img_to_last_box", "img_to_first_rel", "img_to_last_rel")


def write_vg150(rows: ExportRows, out: Path) -> None:
    """Write VG-SGG-with-attri.h5, VG-SGG-dicts-with-attri.json and image_data.json.

    The split val is the first images of the HDF5 file, where loaders look for it. Confidences are left out.
    """
    h5py = import_extra("h5py", "vg150")
    order = sorted(rows.splits, key=lambda split: (_part(split) != "val", _part(split) == "test"))
    names, predicates = _names(rows)
    records = (record for split in order for record in rows.records(split, "objects"))
    attributes = Counter(each.name for record in records for box in record.objects for each in box.attributes)
    objects, dicts = Counter[str](), dict[str, Any]()
    for (_, name), number in rows.census.categories.items():
        objects[name] += number
    kinds = ("label", "object", names, objects), ("predicate", "predicate", predicates, rows.census.predicates)
    for kind, counted, listed, seen in (*kinds, ("attribute", "attribute", sorted(attributes), attributes)):
        dicts[f"{kind}_to_idx"] = {name: number for number, name in enumerate(listed, 1)}
        dicts[f"idx_to_{kind}"] = {str(number): name for number, name in enumerate(listed, 1)}
        dicts[f"{counted}_count"] = {name: seen[name] for name in listed}
    write_json(out / "VG-SGG-dicts-with-attri.json", Members(dicts.items()))
    images = (record for split in order for record in rows.records(split))
    fields, ids = ("width", "height", "file_name"), set[str]()
    items = ({"image_id": _unique(image, ids)} | {name: getattr(image, name) for name in fields} for image in images)
    write_json(out / "image_data.json", items)
    tables = {name: array("d" if name == "boxes_1024" else "q") for name in (*_OF_IMAGES, *_COLUMNS)}
    validation = 0
    for split in order:
        for record in rows.records(split, "objects", "relations"):
            is_usable = _add_image(rows, record, dicts, tables)  # loaders leave out the others
            validation += _part(split) == "val" and is_usable
            tables["split"].append(2 if _part(split) == "test" else int(_part(split) == "val" and not is_usable))
    path = out / "VG-SGG-with-attri.h5"
    with add_filename(path), h5py.File(path, "x") as file:
        for name, values in tables.items():
            file[name] = np.array(values).reshape(-1, *([_COLUMNS[name]] if name in _COLUMNS else []))
        file["boxes_512"] = file["boxes_1024"][()] / 2
        file["active_object_mask"] = np.ones_like(file["labels"], bool)
        file.attrs[VALIDATION_IMAGES] = validation
    with path.open("rb+") as written:
        os.fsync(written.fileno())
    rows.note = f"the first {validation:,} images are the split val: give num_val_im={validation} to loaders"


def _add_image(rows: ExportRows, record: Record, dicts: Mapping[str, Any], tables: dict[str, array[Any]]) -> bool:
    """Add an image to the tables. Return whether it has boxes and relations."""
    usable = [not box.iscrowd and not box.is_nothing and min(box.bbox[2:]) > 0 for box in record.objects]
    indices, scale = rows.renumber(record, usable), BOX_SCALE / max(record.width, record.height)
    relations = rows.relations(record, indices)
    starts = len(tables["labels"]), len(tables["predicates"])
    for box in (record.objects[index] for index in indices):
        x, y, w, h = (value * scale for value in box.bbox)
        tables["boxes_1024"].extend((x + w / 2, y + h / 2, w, h))
        tables["labels"].append(dicts["label_to_idx"][box.category])
        numbers = [dicts["attribute_to_idx"][each.name] for each in box.attributes]
        rows.left_out["attributes that the format cannot hold"] += len(numbers[_ATTRIBUTES:])
        tables["attributes"].extend((numbers + [0] * _ATTRIBUTES)[:_ATTRIBUTES])
    for item in relations:
        tables["relationships"].extend((starts[0] + item.subject, starts[0] + item.object))
        tables["predicates"].append(dicts["predicate_to_idx"][item.predicate])
    for kind, start, count in (("box", starts[0], len(indices)), ("rel", starts[1], len(relations))):
        tables[f"img_to_first_{kind}"].append(start if count else -1)
        tables[f"img_to_last_{kind}"].append(start + count - 1 if count else -1)
    return bool(indices and relations)
