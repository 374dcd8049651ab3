"""A run as annotation files: COCO with or without relations, Visual Genome, RLIPv2's pseudo-labels, HICO-DET in HOIA's
form, and PSG and VG150 as `sgpipe.sources.scene_graphs` describes them."""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlip_model.evaluation.hico_classes import CLASSES, PERSON, class_numbers
from sgpipe.errors import add_filename, import_extra
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.recipe import WHOLE
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.coco import NO_RELATION
from sgpipe.sources.scene_graphs import BOX_SCALE, STUFF, VALIDATION_IMAGES
from sgpipe.sources.vocabulary import category_names, relation_names
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.lemmas import predicate_lemma


def write_coco(rows: ExportRows, out: Path) -> None:
    """Write instances_SPLIT.json and, if the images have captions, captions_SPLIT.json; no relations."""
    numbers = _category_ids(rows, with_nothing=False)
    rows.left_out["relations that the format cannot hold"] += rows.totals["relations"]

    def captions(split: str) -> Iterator[dict[str, Any]]:
        ids = count(1)
        for image, record in _images(rows, split, "captions"):
            texts = [caption.text for caption in record.captions if caption.scope == "image"]
            rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(texts)
            yield from ({"id": next(ids), "image_id": image["id"], "caption": text} for text in texts)

    for split in rows.splits:
        instances = _instances(rows, split, numbers, with_nothing=False)
        write_json(out / f"instances_{split}.json", Members(instances))
        written = captions(split)
        if (first := next(written, None)) is not None:
            members = [
                ("images", (image for image, _ in _images(rows, split))),
                ("annotations", chain([first], written)),
            ]
            write_json(out / f"captions_{split}.json", Members(members))


def write_coco_relations(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json (instances) and rel.json: triplets by split and image; their object indices skip crowds."""
    numbers, names = _category_ids(rows, with_nothing=True), rows.names[1]
    predicates = dict(zip(names, count(1), strict=False))

    def triplets(split: str) -> Iterator[tuple[str, list[list[int]]]]:
        for image, record in _images(rows, split, "objects", "relations"):
            counted = (index for index, box in enumerate(record.objects) if not box.iscrowd)
            relations = rows.relations(record, {index: new for new, index in enumerate(counted)})
            yield str(image["id"]), [[item.subject, item.object, predicates[item.predicate]] for item in relations]

    for split in rows.splits:
        write_json(out / f"{split}.json", Members(_instances(rows, split, numbers, with_nothing=True)))
    splits = [(split, Members(triplets(split))) for split in rows.splits]
    write_json(out / "rel.json", Members([*splits, ("rel_categories", [NO_RELATION, *predicates])]))


def write_sgg_benchmark(rows: ExportRows, out: Path) -> None:
    """Write SPLIT/_annotations.coco.json: instances with `rel_annotations`, which refer to the ids of `annotations`."""
    # SGG-Benchmark takes class and predicate 0 for the background, so numbers of both begin at 1.
    numbers = _category_ids(rows, with_nothing=True, positive=True)
    predicates = dict(zip(rows.names[1], count(1), strict=False))
    categories = [{"id": number, "name": name} for name, number in predicates.items()]

    def annotations(split: str) -> Iterator[dict[str, Any]]:
        ids, before = count(1), 1  # `_instances` numbers the boxes of a split from 1
        for image, record in _images(rows, split, "objects", "relations"):
            for item in rows.relations(record, {index: before + index for index in range(len(record.objects))}):
                own = {"id": next(ids), "image_id": image["id"], "subject_id": item.subject}
                yield own | {"predicate_id": predicates[item.predicate], "object_id": item.object} | _confidence(item)
            before += len(record.objects)

    for split in rows.splits:
        (out / split).mkdir()
        members = _instances(rows, split, numbers, with_nothing=True)
        members.insert(2, ("rel_annotations", annotations(split)))
        write_json(out / split / "_annotations.coco.json", Members([*members, ("rel_categories", categories)]))


def _category_ids(rows: ExportRows, *, with_nothing: bool, positive: bool = False) -> dict[str, int]:
    """Return the ids of all classes; `with_nothing`: also of the placeholder for the missing object of a relation."""
    names, seen = rows.manifest.run.get("labels"), rows.census.categories
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
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return [
        ("images", (image for image, _ in _images(rows, split))),
        ("annotations", annotations),
        ("categories", categories),
    ]


def _images(rows: ExportRows, split: str, *columns: str) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield COCO's entry of each image, and its record. Ids that are not numbers become `image_id`, `id` a count."""
    for number, record in enumerate(rows.records(split, *columns), 1):
        image: dict[str, Any] = {"id": as_number(record.image_id)}
        if not rows.census.numbered:
            image = {"id": number, "image_id": record.image_id}
        yield image | {"file_name": record.file_name, "width": record.width, "height": record.height}, record


def number_categories(
    seen: Collection[tuple[int, str]], names: Sequence[str] | None, *, positive: bool = False
) -> dict[str, int]:
    """Return an id for each class: that of the run if ids are unambiguous and known of all classes, or else that of the
    dataset that the classes belong to, or else a number from 1.

    `seen`: id and name of the class of every object; `names`: all classes in order, if the run knows them; `positive`:
    the form has no ids below 1.
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


# RLIPv2's name of a dataset, and its first object and relation ids, which keep files of several datasets apart.
_PUBLISHED = {"coco": ("coco2017", 10_000_000), "objects365": ("o365", 20_000_000)}
_OBJECTS365 = "o365"


def write_visual_genome(rows: ExportRows, out: Path) -> None:
    """Write scene_graphs_SPLIT.json and image_data_SPLIT.json; each relation also has its confidence."""
    ids = count(1), count(1)
    for split in rows.splits:
        records = rows.records(split, "objects", "relations")
        graphs = (_image(record) | _graph(rows, record, ids, as_vg=True) for record in records)
        write_json(out / f"scene_graphs_{split}.json", graphs)
        images = ({key: _image(each)[key] for key in ("image_id", "width", "height")} for each in rows.records(split))
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
            yield _image(record) | origin | _graph(rows, record, of_dataset)

    for split in rows.splits:
        write_json(out / f"{split}.json", pseudo_labels(split))
    if _OBJECTS365 in ids:
        records = (record for split in rows.splits for record in rows.records(split))
        paths = ((each.image_id, each.file_name) for each in records if each.dataset in ("objects365", _OBJECTS365))
        write_json(out / "image_id_to_filepath.json", Members(paths))


def _image(record: Record) -> dict[str, Any]:
    size = {"width": record.width, "height": record.height}
    return {"image_id": as_number(record.image_id), "file_name": record.file_name, **size}


def _graph(
    rows: ExportRows, record: Record, ids: tuple[Iterator[int], Iterator[int]], *, as_vg: bool = False
) -> dict[str, Any]:
    """Return the objects and relations of an image, without crowds and without blank names, which readers drop."""
    indices = rows.renumber(record, [not box.iscrowd and bool(box.category.strip()) for box in record.objects])
    things = []
    for box in (record.objects[index] for index in indices):
        sides = dict(zip("xywh", map(plain, box.bbox), strict=True))
        attributes = list(dict.fromkeys(each.name for each in box.attributes)) if as_vg else []
        things.append({"object_id": next(ids[0]), **sides, "names": [box.category] if as_vg else box.category})
        things[-1] |= {"attributes": attributes} if attributes else {}
    relationships = []
    for relation in rows.relations(record, indices):
        if not relation.predicate.strip():
            rows.left_out["relations that the format cannot hold"] += 1
            continue
        subject, object_ = (things[end]["object_id"] for end in (relation.subject, relation.object))
        item = {"relationship_id": next(ids[1]), "predicate": relation.predicate}
        relationships.append({**item, "subject_id": subject, "object_id": object_, **_confidence(relation)})
    return {"objects": things, "relationships": relationships}


def _confidence(relation: Relation) -> dict[str, float]:
    return {} if relation.confidence is None else {"confidence": relation.confidence}


def write_hico(rows: ExportRows, out: Path) -> None:
    """Write hico_SPLIT.json, without objects of other classes and relations other than the 600 interactions."""
    numbers = {name: number for number, name in category_names("coco").items()}
    verbs = {name: number for number, name in relation_names("hico").items()}
    lemmas = {predicate_lemma(name): number for name, number in verbs.items()}
    names, labels = list(numbers), CLASSES.labels(class_numbers()).tolist()
    known: dict[tuple[str, str, int | None], int]
    known = {(names[PERSON], names[object_], verb + 1): at for at, (_, object_, verb) in enumerate(labels, 1)}

    @cache
    def number_of(predicate: str) -> int | None:  # in any inflection: "riding" is "ride"
        return verbs.get(predicate) or lemmas.get(predicate_lemma(predicate))

    def item(record: Record) -> dict[str, Any]:
        indices = rows.renumber(record, [box.category in numbers and not box.iscrowd for box in record.objects])
        boxes = [record.objects[index] for index in indices]
        interactions = []
        for relation in rows.relations(record, indices):
            verb = number_of(relation.predicate)
            if number := known.get((boxes[relation.subject].category, boxes[relation.object].category, verb)):
                ends = {"subject_id": relation.subject, "object_id": relation.object}
                interactions.append({**ends, "category_id": verb, "hoi_category_id": number})
            else:
                rows.left_out["relations that the format cannot hold"] += 1
        objects = [{"bbox": _corners(box), "category_id": numbers[box.category]} for box in boxes]
        own_id = {"image_id": record.image_id}  # also where it is a number
        return _image(record) | own_id | {"annotations": objects, "hoi_annotation": interactions}

    for split in rows.splits:
        write_json(out / f"hico_{split}.json", map(item, rows.records(split, "objects", "relations")))


def _corners(box: Box) -> list[float | int]:
    """Return the corners xyxy of a box, in pixels."""
    x, y, w, h = box.bbox
    return [plain(x), plain(y), plain(x + w), plain(y + h)]


def write_psg(rows: ExportRows, out: Path) -> None:
    """Write psg.json, and panoptic_SPLIT/NUMBER.png of images with segmentations; test images: not of train or all."""
    known = {name for each in Manifest.identities(rows.manifest.run) for name in each.get("options", {}).get(STUFF, ())}
    names, predicates = rows.names
    things, stuff = ([name for name in names if (name in known) == kind] for kind in (False, True))
    numbers, verbs = ({name: number for number, name in enumerate(each)} for each in (things + stuff, predicates))
    seen, test = set[str](), list[int | str]()

    def item(at: int, record: Record) -> dict[str, Any]:
        indices = rows.renumber(record, [not box.is_nothing for box in record.objects])
        pixels = np.zeros((record.height, record.width), np.uint32)
        segments, annotations, masks = [], [], []
        for number, box in enumerate((record.objects[index] for index in indices), 1):
            category, area = {"category_id": numbers[box.category]}, plain(box.bbox[2] * box.bbox[3])
            annotations.append(category | {"bbox": _corners(box)})
            segmentation = box.segmentation and json.loads(box.segmentation)
            if segmentation and (mask := _mask(segmentation, record)) is not None:
                annotations[-1]["segmentation"] = segmentation
                area = int(mask.sum())
                masks.append((-area, number, mask))
            kind = {"iscrowd": int(box.iscrowd), "isthing": int(box.category not in known)}
            segments.append({"id": number, **category, **kind, "area": area})
        for _, number, mask in sorted(masks, key=lambda each: each[:2]):  # the smallest of all is on top
            pixels[mask] = number
        png = f"panoptic_{record.split}/{at:08d}.png"
        if masks:
            colours = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], -1).astype(np.uint8)
            Image.fromarray(colours).save(out / png)
        elif segments:
            rows.left_out["panoptic PNGs of images without segmentations"] += 1
        image_id = as_number(_unique(record, seen))
        if _part(record.split) not in ("train", WHOLE):
            test.append(image_id)
        return {
            **{"file_name": record.file_name, "height": record.height, "width": record.width},
            **{"image_id": image_id, "pan_seg_file_name": png},
            **{"segments_info": segments, "annotations": annotations},
            "relations": [[own.subject, own.object, verbs[own.predicate]] for own in rows.relations(record, indices)],
        }

    for split in rows.splits:
        (out / f"panoptic_{split}").mkdir()
    data = (item(*each) for split in rows.splits for each in enumerate(rows.records(split, "objects", "relations")))
    lists = (("thing_classes", things), (STUFF, stuff), ("predicate_classes", predicates))
    write_json(out / "psg.json", Members([("data", data), *lists, ("test_image_ids", iter(test))]))


def _part(split: str) -> str:
    """Return the split as forms have it: `sgpipe merge` numbers further ones, such as train_2."""
    return re.sub(r"_\d+$", "", split)


def _unique(record: Record, seen: set[str]) -> str:
    """Return the id of an image, with the name of its split if another image has it, and add it to `seen`."""
    image_id = record.image_id
    while image_id in seen:
        image_id += f"-{record.split}"
    seen.add(image_id)
    return image_id


def _mask(value: Any, record: Record) -> Any:
    """Return the pixels [height, width] of polygons or run lengths; None: these are of another size."""
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

    The split val is the first images of the HDF5 file, where loaders look for it.
    """
    h5py = import_extra("h5py", "vg150")
    order = sorted(rows.splits, key=lambda split: (_part(split) != "val", _part(split) == "test"))
    names, predicates = rows.names
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
    tables: dict[str, array[Any]]
    tables = {name: array("d" if name == "boxes_1024" else "q") for name in (*_OF_IMAGES, *_COLUMNS)}
    validation = 0
    for record in (record for split in order for record in rows.records(split, "objects", "relations")):
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
        for kind, start, total in (("box", starts[0], len(indices)), ("rel", starts[1], len(relations))):
            tables[f"img_to_first_{kind}"].append(start if total else -1)
            tables[f"img_to_last_{kind}"].append(start + total - 1 if total else -1)
        part, is_read = _part(record.split), bool(indices and relations)  # loaders leave out the others
        validation += part == "val" and is_read
        tables["split"].append(2 if part == "test" else int(part == "val" and not is_read))
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
