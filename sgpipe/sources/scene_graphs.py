"""Scene graphs: Visual Genome, RLIPv2's pseudo-labels in its format, SVG, GBC, and the benchmarks
PSG and VG150.

A relation of Visual Genome refers to its objects by id, or contains them. Its annotators saw one
region at a time, so one fact about an image may be annotated several times, with different boxes
and words. As in RLIPv2's published preprocessing "v1", repeated and redundant relations are
removed, and an image keeps at most a hundred relations.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sgpipe.errors import UserError, import_extra
from sgpipe.files.image_roots import ImagePlace, check_images, image_root
from sgpipe.files.json_stream import JsonStream, json_lines
from sgpipe.files.locations import Location, open_stream, read_text
from sgpipe.images import decode, image_exists, read_size
from sgpipe.recipe import WHOLE
from sgpipe.records import Attribute, Box, Caption, Record, Relation
from sgpipe.sources import annotated, fields
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts, error_row
from sgpipe.sources.fields import FieldError

_NO_CATEGORY_ID = 0  # category_id of classes that have only a name


_FOLDERS = ("VG_100K", "VG_100K_2")  # folders of the two downloads of images


MAX_RELATIONS = 100  # the number of query pairs of RLIPv2
_SAME_BOX_IOU = 0.7


STUFF = "stuff_classes"
_PSG_SPLITS = ("train", "test", WHOLE)


# the latter: an attribute of files that sgpipe wrote
BOX_SCALE = 1024
VALIDATION_IMAGES = "validation_images"
_CORRUPTED = ("1592", "1722", "4616", "4617")
_TABLES = (  # their names and columns (0: one number); those in a row have one length
    {
        "split": 0,
        "img_to_first_box": 0,
        "img_to_last_box": 0,
        "img_to_first_rel": 0,
        "img_to_last_rel": 0,
    },
    {"boxes_1024": 4, "labels": 1},
    {"relationships": 2, "predicates": 1},
)


def iter_graphs(path: Path) -> Iterator[Any]:
    """Yield the scene graphs of a file, which may also consist of a single one."""
    stream = JsonStream(path)
    single = dict[str, Any]()
    for key, item in stream:
        if key == "":
            yield item
        elif key in stream.arrays:
            single.setdefault(key, []).append(item)
        else:
            single[key] = item
    if single:
        yield single


def graph_record(item: Any, dataset: str, split: str, problems: ProblemCounts) -> Record | None:
    """Return a scene graph as a record, with unchanged names and predicates; None if it has no
    image id.

    Unreadable objects and relations are counted as malformed, relations of unlisted objects as
    unknown_object.
    """
    image_id = fields.identifier(item.get("image_id")) if isinstance(item, Mapping) else None
    if image_id is None:
        problems["malformed"] += 1
        return None
    name = fields.clean(str(item.get("file_name") or f"{image_id}.jpg"))
    record = Record(image_id, dataset, split, name, *fields.size(item))
    objects, relationships = (_listed(item, key, problems) for key in ("objects", "relationships"))
    ends = (
        entry.get(end)
        for entry in relationships
        if isinstance(entry, Mapping)
        for end in ("subject", "object")
    )
    boxes: dict[int, Box] = {}  # the last object of an id counts, as in RLIPv2's preprocessing
    for thing in (*objects, *(end for end in ends if isinstance(end, Mapping))):
        try:
            number = fields.integer(thing, "object_id")
            x, y, width, height = fields.numbers([fields.required(thing, key) for key in "xywh"], 4)
            names = thing["name"] if "name" in thing else fields.required(thing, "names")
            first = names[0] if isinstance(names, list) and names and "name" not in thing else names
            box = Box(fields.text({"name": first}, "name"), _NO_CATEGORY_ID, (x, y, width, height))
        except FieldError:
            problems["malformed"] += 1
            continue
        words = _listed(thing, "attributes", problems)
        texts = [fields.clean(word).strip() for word in words if isinstance(word, str)]
        problems["malformed"] += len(words) - len(texts)
        box.attributes = [Attribute(text) for text in dict.fromkeys(texts) if text]
        boxes[number] = box
    record.objects = list(boxes.values())
    indices = {number: index for index, number in enumerate(boxes)}
    for entry in relationships:
        try:
            predicate = fields.text(entry, "predicate")
            confidence = fields.confidence(entry.get("confidence"))
            subject, object_ = (
                (
                    fields.integer(inline, "object_id")
                    if isinstance(inline := entry.get(end), Mapping)
                    else fields.integer(entry, f"{end}_id")
                )
                for end in ("subject", "object")
            )
        except FieldError:
            problems["malformed"] += 1
            continue
        if subject in indices and object_ in indices:
            record.relations.append(
                Relation(indices[subject], indices[object_], predicate, confidence)
            )
        else:
            problems["unknown_object"] += 1
    return record


def _listed(item: Mapping[str, Any], key: str, problems: ProblemCounts) -> list[Any]:
    """Return a list that may be missing; anything else is counted as malformed."""
    value = item.get(key) or []
    problems["malformed"] += not isinstance(value, list)
    return value if isinstance(value, list) else []


def pseudo_label_source(
    annotations: Path, images: ImagePlace, split: str, image_paths: Path | None = None
) -> AnnotationSource:
    """Return a file of pseudo-labels, with unchanged relations.

    `image_paths`: Objects365's image_id_to_filepath.json, required for its images: their ids do not
    give file names.
    """
    annotated.require_format(annotations, "rlipv2", "vg")
    files = {"annotations": annotations}
    paths = dict[str, Any]()
    if image_paths is not None:
        files["image_paths"] = image_paths
        paths = dict(JsonStream(image_paths))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for item in iter_graphs(annotations):
            dataset = (
                fields.clean(str(item.get("dataset") or "rlipv2"))
                if isinstance(item, Mapping)
                else ""
            )
            record = graph_record(item, dataset, split, problems)
            if record is None:
                continue
            annotated.drop_nameless(record, problems)
            is_named = "file_name" in item
            if not is_named and dataset in ("o365", "objects365"):
                if not paths:
                    raise UserError(
                        f"{annotations}: image {record.image_id} is of Objects365, whose image ids"
                        " do not give file names: pass --image-paths image_id_to_filepath.json"
                    )
                with error_row(record):
                    if record.image_id not in paths:
                        raise FieldError(f"{image_paths} has no path for the image")
                    record.file_name = fields.text(paths, record.image_id)
            elif not is_named and dataset.startswith("coco"):
                name = f"{record.image_id:0>12}.jpg"
                folder = fields.clean(str(item.get("data_split") or "train2017"))
                record.file_name = next(
                    (n for n in (f"{folder}/{name}", name) if image_exists(images, n)), name
                )
            yield record

    return AnnotationSource("rlipv2", split, read, files)


def locate_image(images: ImagePlace, name: str) -> str:
    """Return the name of an image of Visual Genome below `images`, which may be in one of two
    folders.
    """
    names = (name, *(f"{folder}/{name}" for folder in _FOLDERS))
    return next((each for each in names if image_exists(images, each)), name)


def visual_genome_source(
    annotations: Path,
    images: ImagePlace,
    split: str,
    image_data: Path | None = None,
    aliases: tuple[Path | None, Path | None] = (None, None),
    preprocess: bool = True,
) -> AnnotationSource:
    """Return Visual Genome's images; `preprocess` removes redundant relations.

    `image_data`: image_data.json with the image sizes; None: they come from the images. `aliases`,
    of objects and of
    predicates: files of words with the same meaning, one group per line. Raises UserError: a file
    is missing or of another format, or there are aliases without preprocessing.
    """
    if any(aliases) and not preprocess:
        raise UserError(
            "aliases are used only by the preprocessing: omit --no-preprocess or the alias files"
        )
    annotated.require_format(annotations, "vg", "relationships")
    if image_data:
        annotated.require_format(image_data, "image data")

    def read(problems: ProblemCounts) -> Iterator[Record]:
        objects, predicates = map(load_aliases, aliases)
        sizes = {}
        for _, item in JsonStream(image_data) if image_data else ():
            if isinstance(item, dict) and (image_id := fields.identifier(item.get("image_id"))):
                sizes[image_id] = fields.size(item)
        for item in iter_graphs(annotations):
            record = graph_record(item, "visual_genome", split, problems)
            if record:
                if preprocess:
                    remove_redundant(record, objects, predicates, problems)
                annotated.drop_nameless(record, problems)
                record.width, record.height = sizes.get(
                    record.image_id, (record.width, record.height)
                )
                record.file_name = locate_image(images, record.file_name)
                yield record

    roles = ("annotations", "image_data", "object_aliases", "predicate_aliases")
    files = {
        role: path
        for role, path in zip(roles, (annotations, image_data, *aliases), strict=True)
        if path
    }
    return AnnotationSource("visual_genome", split, read, files, {"preprocess": preprocess})


def load_aliases(path: Path | None) -> dict[str, str]:
    """Read lines of words with the same meaning, separated by commas; map each to the first.
    Without a file: empty.
    """
    if path is None:
        return {}
    groups = [line.strip().split(",") for line in read_text(path, "alias file").splitlines()]
    if not any(len(group) > 1 for group in groups):
        raise UserError(f"alias file {path}: expected lines such as 'tree,trees', found no comma")
    return {word: group[0] for group in groups for word in group}


def remove_redundant(
    record: Record,
    objects: Mapping[str, str],
    predicates: Mapping[str, str],
    problems: ProblemCounts,
) -> None:
    """Convert names to lower case, remove repeated and redundant relations, and keep the first
    `MAX_RELATIONS`.

    A relation is repeated if an earlier one equals it. It is redundant if an earlier one has the
    same predicate, subject class and object class, and an IoU of at least 0.7 with it for both
    boxes. `objects` and `predicates` map words with the same meaning to one of them.
    """
    for box in record.objects:
        box.category = box.category.lower()
        box.attributes = [
            Attribute(name) for name in dict.fromkeys(each.name.lower() for each in box.attributes)
        ]
    first: dict[tuple[int, int, str], Relation] = {}
    for item in record.relations:
        item.predicate = item.predicate.lower()
        first.setdefault((item.subject, item.object, item.predicate), item)
    problems["repeated_relations"] += len(record.relations) - len(first)
    kept: list[Relation] = []
    by_meaning: dict[tuple[str, ...], list[tuple[Box, Box]]] = {}
    for item in first.values():
        ends = record.objects[item.subject], record.objects[item.object]
        names = (objects.get(end.category, end.category) for end in ends)
        others = by_meaning.setdefault((*names, predicates.get(item.predicate, item.predicate)), [])
        if not any(min(map(pixel_iou, ends, other)) >= _SAME_BOX_IOU for other in others):
            others.append(ends)
            kept.append(item)
    problems["redundant_relations"] += len(first) - len(kept)
    problems["relations_beyond_100"] += max(0, len(kept) - MAX_RELATIONS)
    record.relations = kept[:MAX_RELATIONS]


def pixel_iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes in whole pixels, with their last row and column included."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.bbox, b.bbox
    width = min(ax + aw, bx + bw) - max(ax, bx)
    height = min(ay + ah, by + bh) - max(ay, by)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = (width + 1) * (height + 1)
    return intersection / ((aw + 1) * (ah + 1) + (bw + 1) * (bh + 1) - intersection)


def svg_source(annotations: Location, split: str) -> AnnotationSource:
    """Return SVG's scene graphs: `{image id: {"width", "height", "objects": {id: object}}}`.

    An object has `name`, `bbox` (xyxy), `attributes`, `segmentation` and `relations`, [{"object":
    id, "name"}] (github.com/jamespark3922/SyntheticVG: svg/datasets/sg.py).
    """

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for number, item in JsonStream(annotations):
            things = item.get("objects") if isinstance(item, Mapping) else None
            if not isinstance(things, Mapping):
                problems["malformed"] += 1
                continue
            image_id = fields.clean(number)
            record = Record(image_id, "svg", split, f"{image_id}.jpg", *fields.size(item))
            indices = {key: index for index, key in enumerate(things)}
            with error_row(record):
                for index, thing in enumerate(things.values()):
                    bbox = fields.corners(fields.required(thing, "bbox"))
                    box = Box(fields.text(thing, "name"), _NO_CATEGORY_ID, bbox)
                    words = fields.array(
                        {"attributes": thing.get("attributes") or []}, "attributes"
                    )
                    box.attributes = [Attribute(fields.clean(str(word))) for word in words]
                    outline = thing.get("segmentation")
                    box.segmentation = fields.segmentation(
                        outline, record.width, record.height, problems
                    )
                    record.objects.append(box)
                    for relation in fields.array(
                        {"relations": thing.get("relations") or []}, "relations"
                    ):
                        other = str(relation.get("object")) if isinstance(relation, Mapping) else ""
                        if other in indices:
                            record.relations.append(
                                Relation(index, indices[other], fields.text(relation, "name"))
                            )
                        else:
                            problems["unknown_object"] += 1
                annotated.drop_nameless(record, problems)
            yield record

    return AnnotationSource("svg", split, read, {"annotations": annotations}, boxes="xyxy")


def gbc_source(annotations: Location, images: ImagePlace, split: str) -> AnnotationSource:
    """Return GBC's graphs of captions, one in a line or in an array: boxes and captions, without
    relations.

    Entities are objects named by the edge that leads to them. `descs` are captions: those of
    entities of the box, of relations of the pair, others of the image; those of compositions are
    left out. Boxes are parts of the image (github.com/apple/ml-gbc:
    src/gbc/data/graph/gbc_graph.py, bbox/bbox.py).
    """

    def read(problems: ProblemCounts) -> Iterator[Record]:
        # hashes: there may be millions
        lines = ".jsonl" in annotations.name
        taken = set[int]()
        for item in (
            json_lines(annotations) if lines else (item for _, item in JsonStream(annotations))
        ):
            name = (
                (item.get("img_path") or item.get("img_url")) if isinstance(item, Mapping) else None
            )
            if not isinstance(name, str) or not isinstance(item.get("vertices"), list):
                problems["malformed"] += 1
                continue
            name = image_id = fields.clean(name)  # names of files repeat in other folders
            if item.get("img_path"):
                image_id = name.removesuffix(PurePosixPath(name).suffix)
            else:
                name = name.partition("?")[0].rpartition("/")[2]
            record = Record(image_id, "gbc", split, name, 0, 0)
            with error_row(record):
                if hash(name) in taken and not item.get("img_path"):
                    raise FieldError(
                        f"an earlier image has the file name {name}, too: set img_path"
                    )
                taken.add(hash(name))
                width, height = map(fields.side, fields.numbers(item.get("img_size") or [0, 0], 2))
                record.width, record.height = (
                    (width, height) if width and height else read_size(images, name)
                )
                _add_vertices(record, item["vertices"], problems)
            if not record.ok:
                record.captions = []
            yield record

    return AnnotationSource("gbc", split, read, {"annotations": annotations})


def _add_vertices(record: Record, vertices: list[Any], problems: ProblemCounts) -> None:
    indices: dict[str, int] = {}
    for vertex in (vertex for vertex in vertices if fields.required(vertex, "label") == "entity"):
        box = fields.required(vertex, "bbox")
        edges = fields.array({"in_edges": [], **vertex}, "in_edges")
        x, y, w, h = fields.corners(
            [fields.required(box, side) for side in ("left", "top", "right", "bottom")]
        )
        number = fields.text(vertex, "vertex_id")
        phrase = fields.text(edges[0], "text") if edges else number
        bbox = (x * record.width, y * record.height, w * record.width, h * record.height)
        name = re.sub(r"[ _]\d+$", "", phrase) or phrase  # of several, they are numbered
        score = fields.confidence(box.get("confidence"))
        if not name.strip():
            problems["nameless"] += 1
            continue
        indices[number] = len(record.objects)
        record.objects.append(
            Box(name, _NO_CATEGORY_ID, bbox, origin="grounded", score=score, phrase=phrase)
        )
    for vertex in vertices:
        texts = [fields.text(each, "text") for each in fields.array(vertex, "descs")]
        edges = fields.array({"out_edges": [], **vertex}, "out_edges")
        ends = [indices[end] for edge in edges if (end := fields.text(edge, "target")) in indices]
        if vertex["label"] == "entity":
            known = [indices[vertex["vertex_id"]]] if vertex["vertex_id"] in indices else []
            record.captions += [Caption(text, "box", known) for text in texts if known]
        elif vertex["label"] == "relation" and len(ends) == 2:
            record.captions += [Caption(text, "pair", ends) for text in texts]
        elif vertex["label"] == "composition":
            problems["compositions"] += len(texts)
        else:
            record.captions += [Caption(text) for text in texts]


def base_split(split: str) -> str:
    """Return the split that a further one belongs to: `sgpipe merge` numbers these, such as
    train_2.
    """
    return re.sub(r"_\d+$", "", split)


def _own_split(item: Any) -> str | None:
    """Return the split that `sgpipe export` writes for an image."""
    split = item.get("split") if isinstance(item, Mapping) else None
    return fields.clean(split) if isinstance(split, str) and split else None


def _is_in_split(split: str, own_split: str | None, is_test_image: bool) -> bool:
    """Return whether an image is of a split; `test_image_ids` also have those of val and of splits
    of other names.
    """
    if split == WHOLE:
        return True
    if split == "train":
        return not is_test_image
    if split == "test":
        return is_test_image and base_split(own_split or "test") == "test"
    return own_split == split


def psg_source(
    annotations: Location, split: str, masks: ImagePlace | None = None
) -> AnnotationSource:
    """Return the images of a split of psg.json: train, test (of `test_image_ids`), or all.

    `data` has an item for each image, with `segments_info` (`id` `category_id` `iscrowd`),
    `annotations` (`bbox` xyxy, one for each segment, in their order) and `relations` ([subject,
    object, predicate]: indices of segments and of `predicate_classes`). A category_id is an index
    of `thing_classes` and then `stuff_classes`. A pixel of the panoptic PNGs in `masks` is of the
    segment with the id red + 256 green + 65,536 blue; None: only segmentations of the file
    (github.com/Jingkang50/OpenPSG: openpsg/datasets/psg.py, pipelines/loading.py). Where items have
    a `split`, as `sgpipe export` writes it, `split` can be any of these, such as val.
    """
    annotated.require_format(annotations, "psg")
    keys = ("thing_classes", STUFF, "predicate_classes", "test_image_ids")
    lists: dict[str, list[Any]] = {key: [] for key in keys}
    stream = JsonStream(annotations)
    own_splits: set[str] = set()
    for key, item in stream:
        if key == "data":
            own_splits.add(_own_split(item) or WHOLE)
        if key in lists:
            lists[key].append(
                fields.identifier(item) if key == "test_image_ids" else fields.clean(str(item))
            )
    things, stuff, predicates, test = lists.values()
    for what, names in (("thing_classes", things + stuff), ("predicate_classes", predicates)):
        if what not in stream.arrays or len(set(names)) < len(names):
            raise UserError(f"{annotations}: {what} is missing, or has a name twice")
    further = sorted(own_splits - {*_PSG_SPLITS})
    if split not in (*_PSG_SPLITS, *further):
        listed = ", ".join(("train", *further, "test"))
        raise UserError(f"{annotations} has no split {split!r}: pass --split {listed} or {WHOLE}")
    if masks is not None:
        check_images(masks)
    chosen = set(test)
    names_by_number = dict(enumerate(predicates))

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for item in (item for key, item in JsonStream(annotations) if key == "data"):
            number = fields.identifier(item.get("image_id")) if isinstance(item, Mapping) else None
            if number is None or not isinstance(item.get("file_name"), str):
                problems["malformed"] += 1
            elif _is_in_split(split, _own_split(item), number in chosen):
                record = Record(
                    number, "psg", split, fields.text(item, "file_name"), *fields.size(item)
                )
                with error_row(record):
                    record.objects = list(_segments(item, record, things + stuff, masks, problems))
                    rows = [
                        fields.numbers(each, 3) for each in fields.as_list(item.get("relations"))
                    ]
                    ends = range(len(record.objects))
                    record.relations = annotated.relations_of(
                        rows, names_by_number, dict(enumerate(ends))
                    )
                yield record

    classes = DatasetClasses((*things, *stuff), tuple(predicates))
    options = {STUFF: stuff, "masks": masks is not None}
    return AnnotationSource(
        "psg", split, read, {"annotations": annotations}, options, classes, boxes="xyxy"
    )


def _segments(
    item: Mapping[str, Any],
    record: Record,
    names: Sequence[str],
    masks: ImagePlace | None,
    problems: ProblemCounts,
) -> Iterator[Box]:
    """Yield the segments of an image as objects. Raises FieldError; ImageError: its panoptic PNG
    cannot be used.
    """
    from pycocotools import mask as coco

    segments = fields.array(item, "segments_info")
    entries = fields.array(item, "annotations") if "annotations" in item else [{}] * len(segments)
    if len(entries) != len(segments):
        raise FieldError(f"it has {len(segments)} segments_info and {len(entries)} annotations")
    pixels = None
    if masks is not None and segments:
        root = image_root(masks)
        name = fields.text(item, "pan_seg_file_name")
        image = decode(root.open(name), (record.width, record.height), root.where(name))
        pixels = np.asarray(image, np.uint32) @ np.array([1, 256, 65536], np.uint32)
    for index, (segment, entry) in enumerate(zip(segments, entries, strict=True)):
        category = fields.integer(segment, "category_id")
        if category not in range(len(names)):
            raise FieldError(
                f"category_id {category} of segment {index} is not a class of the file"
            )
        entry = entry if isinstance(entry, Mapping) else {}
        outline: Any = entry.get("segmentation")
        segmentation = fields.segmentation(outline, record.width, record.height, problems)
        if pixels is not None and (mask := pixels == fields.integer(segment, "id")).any():
            outline = coco.encode(np.asfortranarray(mask, np.uint8))
            segmentation = json.dumps(outline | {"counts": outline["counts"].decode()})
        if "bbox" in entry:
            bbox = fields.corners(entry["bbox"])
        elif segmentation and isinstance(outline, list):
            points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in outline]).astype(float)
            bbox = (*points.min(0).tolist(), *np.ptp(points, 0).tolist())
        elif segmentation:
            is_packed = not isinstance(outline["counts"], list)
            runs = outline if is_packed else coco.frPyObjects(outline, *map(int, outline["size"]))
            bbox = tuple(coco.toBbox(runs).tolist())
        else:
            raise FieldError(f"segment {index} has neither a bbox nor pixels")
        yield Box(
            names[category], category, bbox, bool(segment.get("iscrowd")), segmentation=segmentation
        )


def vg150_source(
    annotations: Location, dicts: Path, image_data: Path, images: ImagePlace, split: str
) -> AnnotationSource:
    """Return the images of VG-SGG.h5 or VG-SGG-with-attri.h5: train, val or test, as benchmarks
    have them, or all.

    Row i of the image arrays is image i of image_data.json without four corrupted ones.
    `img_to_first_box` and `img_to_last_box`, and the same of `rel`, are the first and the last row
    of an image, or -1; `boxes_1024` is x and y of the centre, width and height, where 1024 is the
    longer side of the image; `relationships` are rows of boxes. Labels, predicates and attributes
    count from 1 by `dicts`, VG-SGG-dicts(-with-attri).json. `split` is 2 for test; of the other
    images with boxes and relations, the first 5,000 are for validation
    (github.com/KaihuaTang/Scene-Graph-Benchmark.pytorch:
    maskrcnn_benchmark/data/datasets/visual_genome.py).
    """
    try:
        content = json.loads(read_text(dicts, "dictionaries"))
        kinds = (
            content["label_to_idx"],
            content["predicate_to_idx"],
            content.get("attribute_to_idx") or {},
        )
        names = [
            {int(n): fields.clean(str(name)) for name, n in kind.items() if int(n) > 0}
            for kind in kinds
        ]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError(
            f"{dicts} is not VG-SGG-dicts.json: expected label_to_idx and predicate_to_idx"
        ) from None
    tables, validation = _read_tables(annotations)
    group = tables["split"]
    listed = [item for _, item in JsonStream(image_data) if isinstance(item, dict)]
    if len(listed) != len(group):
        listed = [
            item for item in listed if fields.identifier(item.get("image_id")) not in _CORRUPTED
        ]
    if len(listed) != len(group):
        raise UserError(
            f"{image_data} lists {len(listed):,} images, but {annotations} has {len(group):,}"
        )
    usable = (group == 0) & (tables["img_to_first_box"] >= 0) & (tables["img_to_first_rel"] >= 0)
    val = (group == 1) | (usable & (np.cumsum(usable) <= validation))
    chosen = {"train": (group == 0) & ~val, "val": val, "test": group == 2, WHOLE: group == group}
    if split not in chosen:
        raise UserError(
            f"{annotations} has no split {split!r}: pass --split train, val, test or {WHOLE}"
        )

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for at in np.flatnonzero(chosen[split]).tolist():
            item = listed[at]
            image_id = fields.identifier(listed[at].get("image_id"))
            if image_id is None:
                problems["malformed"] += 1
                continue
            name = locate_image(
                images, fields.clean(str(item.get("file_name") or f"{image_id}.jpg"))
            )
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
    """Return the tables of the HDF5 file, boxes as x, y, width, height, and the number of
    validation images.
    """
    try:
        with import_extra("h5py", "vg150").File(
            path if isinstance(path, Path) else open_stream(path), "r"
        ) as file:
            tables = {name: file[name][()] for each in _TABLES for name in each}
            boxes = tables["boxes_1024"]
            tables["attributes"] = (
                file["attributes"][()] if "attributes" in file else np.zeros((len(boxes), 0), int)
            )
            validation = int(file.attrs.get(VALIDATION_IMAGES, 5000))
        for each in _TABLES:
            for name, columns in each.items():
                shape = (len(tables[next(iter(each))]), columns)
                is_number = tables[name].dtype.kind in "iuf"
                if not is_number or tables[name].shape != shape[: 1 + bool(columns)]:
                    raise ValueError(f"{name} has other rows, columns or types")
        if tables["attributes"].ndim != 2 or len(tables["attributes"]) != len(boxes):
            raise ValueError("attributes are not those of the boxes")
        boxes[:, :2] = boxes[:, :2] - boxes[:, 2:] / 2  # of integers, rounded as in the loader
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a whole VG-SGG.h5 ({str(error)[:120]})") from None
    return tables, validation


def _fill(
    record: Record, tables: Mapping[str, Any], names: Sequence[Mapping[int, str]], image: int
) -> None:
    """Add objects and relations. Raises FieldError: a number has no name, or a row is missing or of
    another image.
    """
    spans = []
    for kind, of in (("box", "labels"), ("rel", "predicates")):
        first, last = (int(tables[f"img_to_{end}_{kind}"][image]) for end in ("first", "last"))
        if first >= 0 and not first <= last < len(tables[of]):
            raise FieldError(
                f"img_to_first_{kind} and img_to_last_{kind} are {first} and {last}: no rows of"
                f" {of}"
            )
        spans.append(slice(first, last + 1) if first >= 0 else slice(0, 0))
    boxes = tables["boxes_1024"][spans[0]] * (max(record.width, record.height) / BOX_SCALE)
    of_boxes = (boxes, tables["labels"][spans[0], 0], tables["attributes"][spans[0]])
    for (x, y, w, h), label, numbers in zip(*(values.tolist() for values in of_boxes), strict=True):
        attributes = [number for number in numbers if number]
        if label not in names[0] or not names[2].keys() >= set(attributes):
            raise FieldError(
                f"label {label} or attributes {attributes} of an object are not in the dictionaries"
            )
        adjectives = [Attribute(names[2][number]) for number in attributes]
        record.objects.append(Box(names[0][label], label, (x, y, w, h), attributes=adjectives))
    rows = np.hstack([tables["relationships"][spans[1]], tables["predicates"][spans[1]]]).tolist()
    first_box = spans[0].start
    record.relations = annotated.relations_of(
        rows, names[1], {first_box + at: at for at in range(len(record.objects))}
    )
