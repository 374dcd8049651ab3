"""A run as annotation files: COCO with or without relations, Visual Genome, RLIPv2's pseudo-labels,
HICO-DET in HOIA's form, PSG and VG150 as `sgpipe.sources` describes them, tasks of
Label Studio and datasets of FiftyOne.
"""

import base64
import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgpipe.errors import add_filename, import_extra
from sgpipe.export.rows import IMAGE_FIELDS, ExportRows, Members, as_number, plain, write_json
from sgpipe.images import open_header
from sgpipe.recipe import WHOLE
from sgpipe.records import Box, Record, Relation, deduplicate
from sgpipe.sources.annotated import base_split
from sgpipe.sources.coco import NO_RELATION
from sgpipe.sources.label_studio import CROWD, LOCAL_FILES
from sgpipe.sources.psg import STUFF
from sgpipe.sources.vg150 import BOX_SCALE, VALIDATION_IMAGES
from sgpipe.sources.vocabulary import category_names
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.boxes import xywh_to_xyxy

# RLIPv2's name of a dataset, and its first object and relation ids, which keep files of several
# datasets apart.
_PUBLISHED = {"coco": ("coco2017", 10_000_000), "objects365": ("o365", 20_000_000)}
_OBJECTS365 = "o365"


_ATTRIBUTES = 10  # of an object, at most
_COLUMNS = {
    "boxes_1024": 4,
    "labels": 1,
    "attributes": _ATTRIBUTES,
    "relationships": 2,
    "predicates": 1,
}
_OF_IMAGES = ("split", "img_to_first_box", "img_to_last_box", "img_to_first_rel", "img_to_last_rel")


_VERSION = "1.0.0"  # of FiftyOne (docs.voxel51.com), whose form this is; later ones read it
_MEDIA = "data"
_LABELS = {
    "tags": "List/String",
    "label": "String",
    "bounding_box": "List/Float",
    "confidence": "Float",
}
_OBJECTS = _LABELS | {"index": "Int", "origin": "String", "iscrowd": "Boolean"}
_ENDS = {"subject": "String", "object": "String", "subject_index": "Int", "object_index": "Int"}
_RELATIONS = _LABELS | _ENDS | dict.fromkeys(("predicate", "text", "origin"), "String")
_SAMPLE = {
    **{
        "filepath": "String",
        "tags": "List/String",
        "created_at": "DateTime",
        "last_modified_at": "DateTime",
    },
    **dict.fromkeys(("image_id", "split", "run"), "String"),
    **{
        "captions": "List/String",
        "_media_type": "String",
        "_rand": "Float",
        "_dataset_id": "ObjectId",
    },
}


CONFIGURATION = "labeling_config.xml"

# What a name in the configuration cannot contain: characters that XML forbids, and variables, which
# are replaced.
_UNHELD = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\$[\w\[\].{}]")
_CONFIGURATION = """\
<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <RectangleLabels name="objects" toName="image">
{classes}
  </RectangleLabels>
  <Relations choice="multiple">
{predicates}
  </Relations>
</View>
"""


def write_coco(rows: ExportRows, out: Path) -> None:
    """Write instances_SPLIT.json and, if the images have captions, captions_SPLIT.json; no
    relations.
    """
    numbers = _category_ids(rows, with_nothing=False)
    rows.left_out["relations that the format cannot hold"] += rows.totals["relations"]

    def captions(split: str) -> Iterator[dict[str, Any]]:
        ids = count(1)
        for image, record in _images(rows, split, "captions"):
            texts = [caption.text for caption in record.captions if caption.scope == "image"]
            rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(
                texts
            )
            yield from (
                {"id": next(ids), "image_id": image["id"], "caption": text} for text in texts
            )

    for split in rows.splits:
        instances = _instances(rows, split, numbers, with_nothing=False)
        write_json(out / f"instances_{split}.json", Members(instances))
        written = captions(split)
        first = next(written, None)
        if first is not None:
            images = (image for image, _ in _images(rows, split))
            members = [("images", images), ("annotations", chain([first], written))]
            write_json(out / f"captions_{split}.json", Members(members))


def write_coco_relations(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json (instances) and rel.json: triplets by split and image; their object indices
    skip crowds.
    """
    numbers = _category_ids(rows, with_nothing=True)
    names = rows.names[1]
    predicates = dict(zip(names, count(1), strict=False))

    def triplets(split: str) -> Iterator[tuple[str, list[list[int]]]]:
        for image, record in _images(rows, split, "objects", "relations"):
            counted = (index for index, box in enumerate(record.objects) if not box.iscrowd)
            relations = rows.relations(record, {index: new for new, index in enumerate(counted)})
            yield (
                str(image["id"]),
                [[item.subject, item.object, predicates[item.predicate]] for item in relations],
            )

    for split in rows.splits:
        write_json(
            out / f"{split}.json", Members(_instances(rows, split, numbers, with_nothing=True))
        )
    splits = [(split, Members(triplets(split))) for split in rows.splits]
    write_json(out / "rel.json", Members([*splits, ("rel_categories", [NO_RELATION, *predicates])]))


def write_sgg_benchmark(rows: ExportRows, out: Path) -> None:
    """Write SPLIT/_annotations.coco.json: instances with `rel_annotations`, which refer to the ids
    of `annotations`.
    """
    # SGG-Benchmark takes class and predicate 0 for the background, so numbers of both begin at 1.
    numbers = _category_ids(rows, with_nothing=True, positive=True)
    predicates = dict(zip(rows.names[1], count(1), strict=False))
    categories = [{"id": number, "name": name} for name, number in predicates.items()]

    def annotations(split: str) -> Iterator[dict[str, Any]]:
        # `_instances` numbers the boxes of a split from 1
        ids = count(1)
        before = 1
        for image, record in _images(rows, split, "objects", "relations"):
            for item in rows.relations(
                record, {index: before + index for index in range(len(record.objects))}
            ):
                own = {"id": next(ids), "image_id": image["id"], "subject_id": item.subject}
                yield (
                    own
                    | {"predicate_id": predicates[item.predicate], "object_id": item.object}
                    | _confidence(item)
                )
            before += len(record.objects)

    for split in rows.splits:
        (out / split).mkdir()
        members = _instances(rows, split, numbers, with_nothing=True)
        members.insert(2, ("rel_annotations", annotations(split)))
        write_json(
            out / split / "_annotations.coco.json",
            Members([*members, ("rel_categories", categories)]),
        )


def _category_ids(
    rows: ExportRows, *, with_nothing: bool, positive: bool = False
) -> dict[str, int]:
    """Return the ids of all classes; `with_nothing`: also of the placeholder for the missing object
    of a relation.
    """
    names = rows.manifest.run.get("labels")
    seen = rows.census.categories
    if not with_nothing:
        rows.left_out["objects that the format cannot hold"] += rows.census.nothing.total()
        seen = seen - rows.census.nothing
    return number_categories(seen, names and names["objects"], positive=positive)


def _instances(
    rows: ExportRows, split: str, numbers: Mapping[str, int], *, with_nothing: bool
) -> list[tuple[str, Any]]:
    ids = count(1)
    annotations = (
        {
            "id": next(ids),
            "image_id": image["id"],
            "category_id": numbers[box.category],
            "bbox": [plain(value) for value in box.bbox],
            "area": plain(box.bbox[2] * box.bbox[3]),
            "iscrowd": int(box.iscrowd),
            "segmentation": json.loads(box.segmentation or "[]"),
        }
        for image, record in _images(rows, split, "objects")
        for box in record.objects
        if with_nothing or not box.is_nothing
    )
    images = (image for image, _ in _images(rows, split))
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return [("images", images), ("annotations", annotations), ("categories", categories)]


def _images(rows: ExportRows, split: str, *columns: str) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield COCO's entry of each image, and its record. Ids that are not numbers become `image_id`,
    `id` a count.
    """
    for number, record in enumerate(rows.records(split, *columns), 1):
        image: dict[str, Any] = {"id": as_number(record.image_id)}
        if not rows.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        yield (
            image | {"file_name": record.file_name, "width": record.width, "height": record.height},
            record,
        )


def number_categories(
    seen: Collection[tuple[int, str]], names: Sequence[str] | None, *, positive: bool = False
) -> dict[str, int]:
    """Return an id for each class: that of the run if ids are unambiguous and known of all classes,
    or else that of the dataset that the classes belong to, or else a number from 1.

    `seen`: id and name of the class of every object; `names`: all classes in order, if the run
    knows them; `positive`: the form has no ids below 1.
    """
    known = {name: number for number, name in sorted(seen)}
    classes = list(dict.fromkeys([*(names or ()), *known]))
    if len({number for number, _ in seen}) == len(known) == len(seen):
        official = map(category_names, ("coco", "objects365", "open_images"))
        for ids in (known, *({name: number for number, name in each.items()} for each in official)):
            kept = {name: number for name, number in ids.items() if name in classes}
            fits = not positive or all(number > 0 for number in kept.values())
            if fits and known.items() <= kept.items() and len(kept) == len(classes):
                return kept
    return {name: number for number, name in enumerate(classes if names else sorted(classes), 1)}


def write_visual_genome(rows: ExportRows, out: Path) -> None:
    """Write scene_graphs_SPLIT.json and image_data_SPLIT.json; each relation also has its
    confidence.
    """
    ids = count(1), count(1)
    for split in rows.splits:
        records = rows.records(split, "objects", "relations")
        graphs = (
            image_fields(record) | _graph(rows, record, ids, as_vg=True) for record in records
        )
        write_json(out / f"scene_graphs_{split}.json", graphs)
        fields = map(image_fields, rows.records(split))
        images = ({key: image[key] for key in ("image_id", "width", "height")} for image in fields)
        write_json(out / f"image_data_{split}.json", images)


def write_rlipv2(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json and, for Objects365, image_id_to_filepath.json, which locates its images."""
    ids: dict[str, tuple[Iterator[int], Iterator[int]]] = {}

    def pseudo_labels(split: str) -> Iterator[dict[str, Any]]:
        for record in rows.records(split, "objects", "relations"):
            name, first = _PUBLISHED.get(record.dataset, (record.dataset, 1))
            of_dataset = ids.setdefault(name, (count(first), count(first)))
            # For COCO the folder of the image, where the published training looks for it.
            folder = record.file_name.rpartition("/")[0].rpartition("/")[2] or f"{record.split}2017"
            origin = {"dataset": name, "data_split": folder if name == "coco2017" else record.split}
            yield image_fields(record) | origin | _graph(rows, record, of_dataset)

    for split in rows.splits:
        write_json(out / f"{split}.json", pseudo_labels(split))
    if _OBJECTS365 in ids:
        records = (record for split in rows.splits for record in rows.records(split))
        paths = (
            (each.image_id, each.file_name)
            for each in records
            if each.dataset in ("objects365", _OBJECTS365)
        )
        write_json(out / "image_id_to_filepath.json", Members(paths))


def image_fields(record: Record) -> dict[str, Any]:
    size = {"width": record.width, "height": record.height}
    return {"image_id": as_number(record.image_id), "file_name": record.file_name, **size}


def _graph(
    rows: ExportRows,
    record: Record,
    ids: tuple[Iterator[int], Iterator[int]],
    *,
    as_vg: bool = False,
) -> dict[str, Any]:
    """Return the objects and relations of an image, without crowds and without blank names, which
    readers drop.
    """
    indices = rows.renumber(
        record, [not box.iscrowd and bool(box.category.strip()) for box in record.objects]
    )
    things = []
    for box in (record.objects[index] for index in indices):
        sides = dict(zip("xywh", map(plain, box.bbox), strict=True))
        attributes = list(dict.fromkeys(each.name for each in box.attributes)) if as_vg else []
        things.append(
            {"object_id": next(ids[0]), **sides, "names": [box.category] if as_vg else box.category}
        )
        things[-1] |= {"attributes": attributes} if attributes else {}
    relationships = []
    for relation in rows.relations(record, indices):
        if not relation.predicate.strip():
            rows.left_out["relations that the format cannot hold"] += 1
            continue
        subject, object_ = (things[end]["object_id"] for end in (relation.subject, relation.object))
        item = {"relationship_id": next(ids[1]), "predicate": relation.predicate}
        relationships.append(
            {**item, "subject_id": subject, "object_id": object_, **_confidence(relation)}
        )
    return {"objects": things, "relationships": relationships}


def _confidence(relation: Relation) -> dict[str, float]:
    return {} if relation.confidence is None else {"confidence": relation.confidence}


def corners(box: Box) -> list[float | int]:
    """Return the corners xyxy of a box, in pixels."""
    x, y, w, h = box.bbox
    return [plain(x), plain(y), plain(x + w), plain(y + h)]


def write_psg(rows: ExportRows, out: Path) -> None:
    """Write psg.json, and panoptic_SPLIT/NUMBER.png of images with segmentations; test images: not
    of train or all.
    """
    known = {
        name
        for each in Manifest.identities(rows.manifest.run)
        for name in each.get("options", {}).get(STUFF, ())
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
        image_id = as_number(_unique(record, seen))
        if base_split(record.split) not in ("train", WHOLE):
            test.append(image_id)
        return {
            **{"file_name": record.file_name, "height": record.height, "width": record.width},
            **{"image_id": image_id, "split": record.split, "pan_seg_file_name": png},
            **{"segments_info": segments, "annotations": annotations},
            "relations": [
                [own.subject, own.object, verbs[own.predicate]]
                for own in rows.relations(record, indices)
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


def _unique(record: Record, seen: set[str]) -> str:
    """Return the id of an image, with the name of its split if another image has it, and add it to
    `seen`.
    """
    image_id = record.image_id
    while image_id in seen:
        image_id += f"-{record.split}"
    seen.add(image_id)
    return image_id


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
        each.name for record in records for box in record.objects for each in box.attributes
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
        {"image_id": _unique(image, ids)} | {name: getattr(image, name) for name in fields}
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
            numbers = [dicts["attribute_to_idx"][each.name] for each in box.attributes]
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


def write_fiftyone(rows: ExportRows, out: Path) -> None:
    """Write metadata.json, samples.json, and `data` with embedded images; relations are detections
    around both ends.
    """
    fields = [_field("id", "ObjectId"), *(_field(name, kind) for name, kind in _SAMPLE.items())]
    sizes = [_field(side, "Int") for side in ("width", "height")]
    fields.append(_field("metadata", "EmbeddedDocument", "metadata.ImageMetadata", sizes))
    for name, kinds in (("objects", _OBJECTS), ("relations", _RELATIONS)):
        inner = [_field("id", "ObjectId"), *(_field(key, kind) for key, kind in kinds.items())]
        listed = _field("detections", "List/EmbeddedDocument", "labels.Detection", inner)
        fields.append(_field(name, "EmbeddedDocument", "labels.Detections", [listed]))
    metadata = {
        "version": _VERSION,
        "name": "sgpipe",
        "media_type": "image",
        "sample_fields": fields,
    }
    write_json(out / "metadata.json", Members([*metadata.items(), ("info", rows.identity)]))
    if rows.embed:
        (out / _MEDIA).mkdir()

    def samples() -> Iterator[dict[str, Any]]:
        for split in rows.splits:
            if not rows.embed:
                rows.image_folder(split)
            for record, content in rows.records_with_images(
                split, "objects", "captions", "relations"
            ):
                own = _oid(split, record.image_id)
                path = f"{_MEDIA}/{own['$oid']}{PurePosixPath(record.file_name).suffix}"
                if content is not None:
                    with add_filename(out / path):
                        (out / path).write_bytes(content)
                elif rows.embed or (found := rows.image_path(record)) is None:
                    continue
                else:
                    path = os.path.abspath(found)
                yield {
                    **{"_id": own, "filepath": path, "tags": [split], "_media_type": "image"},
                    "_rand": int(own["$oid"][:8], 16) / 2**32,
                    "metadata": {
                        "_cls": "ImageMetadata",
                        "width": record.width,
                        "height": record.height,
                    },
                    **{
                        "image_id": record.image_id,
                        "split": split,
                        "run": rows.manifest.run.get("fingerprint", ""),
                    },
                    "captions": [caption.text for caption in record.captions],
                    **{
                        name: {"_cls": "Detections", "detections": of}
                        for name, of in _labels(rows, record).items()
                    },
                }

    write_json(out / "samples.json", Members([("samples", samples())]))
    rows.note = (
        "fiftyone.Dataset.from_dir(FOLDER, dataset_type=fiftyone.types.FiftyOneDataset) reads it"
    )


def _field(
    name: str, kind: str, document: str | None = None, fields: list[dict[str, Any]] | None = None
) -> Any:
    """Return the description of a field; `kind`: "Float", "List/Float" and so on."""
    outer, _, inner = (
        f"fiftyone.core.fields.{part}Field" if part else None for part in kind.partition("/")
    )
    document = document and f"fiftyone.core.{document}"
    described = {
        "name": name,
        "db_field": "_id" if name == "id" else name,
        "ftype": outer,
        "subfield": inner,
    }
    return described | {"embedded_doc_type": document, "fields": fields or []}


def _oid(*address: object) -> dict[str, str]:
    """Return the id of a sample or a label: the same in all exports of all runs of these images."""
    return {"$oid": hashlib.sha256(repr(address).encode()).hexdigest()[:24]}


def _labels(rows: ExportRows, record: Record) -> dict[str, list[dict[str, Any]]]:
    """Return the detections of the objects and of the relations; boxes are xywh, as shares of the
    image's sides.
    """
    where = (record.split, record.image_id)
    kept = rows.renumber(record, [not box.is_nothing for box in record.objects])
    boxes = np.array([box.bbox for box in record.objects], float).reshape(-1, 4)
    corners = xywh_to_xyxy(boxes / ((record.width, record.height) * 2))

    def label(
        name: str, xyxy: NDArray[np.float64], score: float | None, *address: object, **more: object
    ) -> Any:
        box = {
            "bounding_box": [*xyxy[:2].tolist(), *(xyxy[2:] - xyxy[:2]).tolist()],
            "confidence": score,
        }
        own = {
            "_id": _oid(*where, *address),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": name,
        }
        return own | box | more

    objects = []
    relations = []
    for index in kept:
        box = record.objects[index]
        own = {"index": index, "origin": box.origin, "iscrowd": box.iscrowd}
        objects.append(label(box.category, corners[index], box.score, index, **own))
    for relation in deduplicate(rows.relations(record, {index: index for index in kept})):
        ends = {"subject": relation.subject, "object": relation.object}
        both = corners[[*ends.values()]]
        around = np.concatenate([both[:, :2].min(0), both[:, 2:].max(0)])
        subject, object_ = (record.objects[end].category for end in ends.values())
        more: dict[str, object] = {name: _oid(*where, end)["$oid"] for name, end in ends.items()}
        more |= {f"{name}_index": end for name, end in ends.items()}
        more |= {
            "predicate": relation.predicate,
            "text": f"{subject} {relation.predicate} {object_}",
        }
        address = relation.subject, relation.predicate, relation.object
        made = label(
            relation.predicate,
            around,
            relation.confidence,
            *address,
            **more,
            origin=relation.origin,
        )
        relations.append(made)
    return {"objects": objects, "relations": relations}


def write_label_studio(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json, a list of tasks, and the labelling configuration of a project for them.

    Images that are not embedded have addresses that begin with `images_url`, or at which Label
    Studio serves local files below the parent of the image folders. Raises UserError: these are not
    folders.
    """
    prefixes = dict.fromkeys(rows.splits, rows.images_url)
    if rows.images_url is None and not rows.embed:
        options = "--embed or --images-url"
        folders = {
            split: os.path.abspath(rows.image_folder(split, options)) for split in rows.splits
        }
        root = os.path.commonpath([os.path.dirname(folder) for folder in folders.values()])
        rows.note = (
            "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"
            f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add"
            f" {' and '.join(sorted(set(folders.values())))} to the project as a source storage of"
            " local files"
        )
        for split, folder in folders.items():
            prefixes[split] = f"{LOCAL_FILES}?d={quote(os.path.relpath(folder, root))}/"
    for split, prefix in prefixes.items():
        found = rows.records_with_images(split, "objects", "captions", "relations")
        write_json(out / f"{split}.json", (_task(rows, *each, prefix or "") for each in found))
    classes, predicates = rows.names
    text = _CONFIGURATION.format(
        classes=_tags("Label", classes), predicates=_tags("Relation", predicates)
    )
    (out / CONFIGURATION).write_text(text, encoding="utf-8")


def _tags(tag: str, names: Iterable[str]) -> str:
    return "\n".join(f"    <{tag} value={quoteattr(name)}/>" for name in names if _is_name(name))


def _is_name(name: str) -> bool:
    """Return whether Label Studio keeps a name of a class or a predicate."""
    return bool(name.strip()) and not _UNHELD.search(name)


def _task(rows: ExportRows, record: Record, content: bytes | None, prefix: str) -> dict[str, Any]:
    address = prefix + (
        quote(record.file_name) if prefix.startswith(("/", "http:", "https:")) else record.file_name
    )
    if content is not None:
        with rows.unreadable_left_out(), open_header(BytesIO(content), record.file_name) as image:
            kind = Image.MIME[image.format or ""]
            address = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    data: dict[str, Any] = {
        "image": address,
        **{key: getattr(record, key) for key in IMAGE_FIELDS[:-1]},
    }
    captions = [caption.text for caption in record.captions if caption.scope == "image"]
    rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(captions)
    indices = rows.renumber(
        record, [_is_name(box.category) and not box.is_nothing for box in record.objects]
    )
    kept = rows.relations(record, indices)
    relations = [
        item for item in deduplicate(kept) if _is_name(item.predicate)
    ]  # of repeated ones, the most confident
    rows.left_out["relations that the format cannot hold"] += len(kept) - len(relations)
    numbers: dict[str, int] = {}  # of the classes: one for each name
    for box in (record.objects[index] for index in indices):
        if numbers.setdefault(box.category, box.category_id) != box.category_id:
            rows.left_out["class numbers that the format cannot hold"] += 1
    data |= {"captions": captions} if captions else {}
    data |= {"category_ids": numbers} if any(numbers.values()) else {}
    run = rows.manifest.run
    version = f"{run.get('name', 'sgpipe')} {run.get('fingerprint', '')[:12]}".strip()
    prediction: dict[str, Any] = {"model_version": version}
    known = [item.confidence for item in relations if item.confidence is not None]
    if known:
        prediction["score"] = sum(known) / len(known)
    results: list[dict[str, Any]] = []
    for index, number in indices.items():
        box = record.objects[index]
        sides = zip(
            ("x", "y", "width", "height"), box.bbox, (record.width, record.height) * 2, strict=True
        )
        value: dict[str, Any] = {
            key: 100 * length / side for key, length, side in sides
        }  # percent of the image
        region: dict[str, Any] = {
            **{
                "id": f"object{number}",
                "type": "rectanglelabels",
                "from_name": "objects",
                "to_name": "image",
            },
            **{
                "original_width": record.width,
                "original_height": record.height,
                "image_rotation": 0,
            },
            "value": value | {"rotation": 0, "rectanglelabels": [box.category]},
        }
        region |= {} if box.score is None else {"score": box.score}
        results.append(region | ({"meta": {"text": [CROWD]}} if box.iscrowd else {}))
    pairs: dict[
        tuple[int, int], list[Relation]
    ] = {}  # one link for each: the editor drops a second one
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    for (subject, object_), stated in pairs.items():
        link: dict[str, Any] = {
            "type": "relation",
            "from_id": f"object{subject}",
            "to_id": f"object{object_}",
        }
        link |= {"direction": "right", "labels": [relation.predicate for relation in stated]}
        scores = [relation.confidence for relation in stated]
        results.append(
            link if all(score is None for score in scores) else link | {"scores": scores}
        )
    return {"data": data, "predictions": [prediction | {"result": results}]}
