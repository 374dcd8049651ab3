"""`sgpipe export --to vg150`: the HDF5 file of VG150 and its companions."""

import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.errors import add_filename, import_extra
from sgpipe.export.fields import unique_id
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json
from sgpipe.sources.annotated import base_split
from sgpipe.sources.vg150 import BOX_SCALE, VALIDATION_IMAGES

_ATTRIBUTES = 10  # of an object, at most
_COLUMNS = {
    "boxes_1024": 4,
    "labels": 1,
    "attributes": _ATTRIBUTES,
    "relationships": 2,
    "predicates": 1,
}
_OF_IMAGES = ("split", "img_to_first_box", "img_to_last_box", "img_to_first_rel", "img_to_last_rel")


def write_vg150(rows: ExportRows, out: Path) -> None:
    """Write VG-SGG-with-attri.h5, VG-SGG-dicts-with-attri.json and image_data.json.

    The split val is the first images of the HDF5 file, where loaders look for it.
    """
    h5py = import_extra("h5py", "vg150")
    order = sorted(
        rows.splits, key=lambda split: (base_split(split) != "val", base_split(split) == "test")
    )
    names, predicates = rows.names
    records = (record for split in order for record in rows.records(split, "objects"))
    attributes = Counter(
        attribute.name
        for record in records
        for box in record.objects
        for attribute in box.attributes
    )
    objects = Counter[str]()
    dicts = dict[str, Any]()
    for (_, name), number in rows.census.categories.items():
        objects[name] += number
    kinds = (
        ("label", "object", names, objects),
        ("predicate", "predicate", predicates, rows.census.predicates),
    )
    for kind, counted, listed, seen in (
        *kinds,
        ("attribute", "attribute", sorted(attributes), attributes),
    ):
        dicts[f"{kind}_to_idx"] = {name: number for number, name in enumerate(listed, 1)}
        dicts[f"idx_to_{kind}"] = {str(number): name for number, name in enumerate(listed, 1)}
        dicts[f"{counted}_count"] = {name: seen[name] for name in listed}
    write_json(out / "VG-SGG-dicts-with-attri.json", Members(dicts.items()))
    images = (record for split in order for record in rows.records(split))
    fields = ("width", "height", "file_name")
    ids = set[str]()
    items = (
        {"image_id": unique_id(image, ids)} | {name: getattr(image, name) for name in fields}
        for image in images
    )
    write_json(out / "image_data.json", items)
    tables: dict[str, array[Any]]
    tables = {
        name: array("d" if name == "boxes_1024" else "q") for name in (*_OF_IMAGES, *_COLUMNS)
    }
    validation = 0
    for record in (
        record for split in order for record in rows.records(split, "objects", "relations")
    ):
        usable = [
            not box.iscrowd and not box.is_nothing and min(box.bbox[2:]) > 0
            for box in record.objects
        ]
        indices = rows.renumber(record, usable)
        scale = BOX_SCALE / max(record.width, record.height)
        relations = rows.relations(record, indices)
        starts = len(tables["labels"]), len(tables["predicates"])
        for box in (record.objects[index] for index in indices):
            x, y, w, h = (value * scale for value in box.bbox)
            tables["boxes_1024"].extend((x + w / 2, y + h / 2, w, h))
            tables["labels"].append(dicts["label_to_idx"][box.category])
            numbers = [dicts["attribute_to_idx"][attribute.name] for attribute in box.attributes]
            rows.left_out["attributes that the format cannot hold"] += len(numbers[_ATTRIBUTES:])
            tables["attributes"].extend((numbers + [0] * _ATTRIBUTES)[:_ATTRIBUTES])
        for item in relations:
            tables["relationships"].extend((starts[0] + item.subject, starts[0] + item.object))
            tables["predicates"].append(dicts["predicate_to_idx"][item.predicate])
        for kind, start, total in (
            ("box", starts[0], len(indices)),
            ("rel", starts[1], len(relations)),
        ):
            tables[f"img_to_first_{kind}"].append(start if total else -1)
            tables[f"img_to_last_{kind}"].append(start + total - 1 if total else -1)
        # loaders leave out the others
        part = base_split(record.split)
        is_read = bool(indices and relations)
        validation += part == "val" and is_read
        tables["split"].append(2 if part == "test" else int(part == "val" and not is_read))
    path = out / "VG-SGG-with-attri.h5"
    with add_filename(path), h5py.File(path, "x") as file:
        for name, values in tables.items():
            file[name] = np.array(values).reshape(
                -1, *([_COLUMNS[name]] if name in _COLUMNS else [])
            )
        file["boxes_512"] = file["boxes_1024"][()] / 2
        file["active_object_mask"] = np.ones_like(file["labels"], bool)
        file.attrs[VALIDATION_IMAGES] = validation
    with path.open("rb+") as written:
        os.fsync(written.fileno())
    rows.note = (
        f"the first {validation:,} images are the split val: give num_val_im={validation} to"
        " loaders"
    )


VG150 = Format("vg150", write_vg150)
