"""What every annotation reader shares: its result, edits of records, and the format and split of
its file.
"""

import codecs
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, TypeVar

from sgpipe.errors import ImageError, UserError
from sgpipe.files.image_roots import ImagePlace, located
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, read_ends
from sgpipe.recipe import WHOLE
from sgpipe.records import Box, Record, Relation
from sgpipe.sources import fields
from sgpipe.sources.fields import FieldError, JsonObject
from sgpipe.utils.boxes import clip_box
from sgpipe.utils.console import count

ProblemCounts: TypeAlias = Counter[str]
Item = TypeVar("Item")

CLIP_TOLERANCE = 0.01  # pixels; smaller cuts are not counted
NO_CATEGORY_ID = 0  # category_id of classes that have only a name
_ITEMS_EXAMINED = 20
_TAIL = 4096  # bytes read at both ends of a file

# A file has a format if an item of the named array ("": the file is an array) has all these keys;
# the first match wins.
_RULES = (
    ("", "annotations hoi_annotation", "hoia"),
    ("", "annotations rel_annotations", "open-images"),
    ("", "bbox det_labels rel", "open-images vrd"),
    ("", "objects relationships dataset", "rlipv2"),
    ("", "objects relationships data_split", "rlipv2"),
    ("", "objects relationships", "vg"),
    ("", "image_id relationships", "relationships"),
    ("", "image_id width height", "image data"),
    ("", "data annotations", "label-studio"),
    ("", "data predictions", "label-studio"),
    ("relationships", "subject object predicate", "relationships"),
    ("relationships", "subject_id object_id predicate", "vg"),
    ("annotation", "boxes_h boxes_o verb", "hico pairs"),
    ("annotations", "boxes_h boxes_o actions", "vcoco pairs"),
    ("data", "image_id segments_info", "psg"),
    ("annotations", "image_id caption", "captions"),
    ("annotations", "image_id bbox category_id", "coco"),
    ("rel_annotations", "subject_id object_id predicate_id", "coco-rel"),
)

# Words for splits in the names of published files and folders, and the split that each means.
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval", "minitrain"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "minival"), "val"),
    **dict.fromkeys(("test", "testing", "testdev", "test-dev", "test_dev"), "test"),
    "all": WHOLE,  # as `sgpipe export` writes it
}
_WORD = rf"(?<![a-z])({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])"
_ALONE = rf"{_WORD}(?:[-_]?\d{{4}})?"  # "val2017"
# "images_val2017" and "val_images", but not "test_of_my_camera".
_FOLDER = rf"(?:.*[-_. ])?{_ALONE}(?:[-_. ]?(?:images?|imgs?|photos?|jpe?gs?|data|set|split))?"


@dataclass(frozen=True)
class DatasetClasses:
    """The closed class lists of a dataset, in the order of its official indices."""

    objects: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class AnnotationSource:
    """An annotation file, with its companion files, ready to be read.

    Attributes:
        read: yields the records in file order and counts problems. Boxes are as annotated, not yet
            clipped; a record whose image size is not annotated has width and height 0.
        files: by role. With the options, they decide what is read.
        image: returns the file of an image that was read, if the source contains images.
        origin: identities of the runs that the rows come from, if recorded.
        boxes: their form in the files, where other exporters may write others; None: fixed.
    """

    dataset: str
    split: str
    read: Callable[[ProblemCounts], Iterable[Record]]
    files: Mapping[str, Location]
    options: Mapping[str, object] = field(default_factory=dict)
    classes: DatasetClasses | None = None
    image: Callable[[Record], bytes | None] | None = None
    origin: Sequence[Mapping[str, object]] = ()
    boxes: Literal["xywh", "xyxy"] | None = None


def image_id_from_name(file_name: str) -> str:
    """Return the id of an image that is known by its file only: COCO's number, or the name without
    its suffix.
    """
    stem = PurePosixPath(file_name).stem
    number = re.fullmatch(r"COCO_\w+_(\d+)", stem)
    return str(int(number[1])) if number else stem


@contextmanager
def error_row(record: Record) -> Iterator[None]:
    """Make an error row of an image if its annotation or file cannot be used.

    A FieldError or an ImageError in the body of the `with` statement is its reason.
    """
    try:
        yield
    except (FieldError, ImageError) as error:
        record.objects = []
        record.fail("import", fields.clean(str(error)))


def read_records(
    items: Iterable[Item],
    start: Callable[[Item], Record],
    fill: Callable[[Record, Item], None],
    problems: ProblemCounts,
) -> Iterator[Record]:
    """Yield the record of each image of a file.

    Args:
        start: makes the record of an item; after a FieldError, the item is counted as malformed.
        fill: adds what the item says of the image; a FieldError or an ImageError makes an error
            row.
    """
    for item in items:
        try:
            record = start(item)
        except FieldError:
            problems["malformed"] += 1
            continue
        with error_row(record):
            fill(record, item)
        yield record


def replace_objects(record: Record, boxes: list[Box | None], problems: ProblemCounts) -> None:
    """Set the record's objects to `boxes`, without those that are None.

    Relations of dropped objects are dropped, too, and counted.
    """
    record.objects = []
    new_index: dict[int, int] = {}
    for index, box in enumerate(boxes):
        if box is not None:
            new_index[index] = len(record.objects)
            record.objects.append(box)
    relations: list[Relation] = []
    for relation in record.relations:
        if {relation.subject, relation.object} <= new_index.keys():
            relation.subject = new_index[relation.subject]
            relation.object = new_index[relation.object]
            relations.append(relation)
    problems["relations_of_dropped_boxes"] += len(record.relations) - len(relations)
    record.relations = relations


def clip_objects(record: Record, problems: ProblemCounts) -> None:
    """Clip the boxes to the image.

    Those without area inside it are dropped, together with their relations.
    """
    boxes = [_clip(box, record, problems) for box in record.objects]
    replace_objects(record, boxes, problems)


def _clip(box: Box, record: Record, problems: ProblemCounts) -> Box | None:
    if box.is_nothing:
        return box
    bbox = clip_box(box.bbox, record.width, record.height)
    if bbox is None:
        problems["degenerate" if all(map(math.isfinite, box.bbox)) else "not_finite"] += 1
        return None
    cuts = map(operator.sub, box.bbox, bbox)
    problems["clipped"] += max(map(abs, cuts)) > CLIP_TOLERANCE
    return replace(box, bbox=bbox)


def drop_nameless(record: Record, problems: ProblemCounts) -> None:
    """Drop relations with a blank predicate and objects with a blank name."""
    named = [relation for relation in record.relations if relation.predicate.strip()]
    boxes = [box if box.category.strip() else None for box in record.objects]
    problems["nameless"] += len(record.relations) - len(named) + boxes.count(None)
    record.relations = named
    replace_objects(record, boxes, problems)


def relations_of(
    rows: Iterable[Sequence[Any]], names: Mapping[int, str], objects: Mapping[Any, int]
) -> list[Relation]:
    """Return relations given as rows: subject, object, number of the predicate, or with a
    confidence behind.

    Args:
        objects: indices by what the rows call them.

    Raises:
        FieldError: there is no such object or predicate.
    """
    relations = []
    for subject, object_, label, *confidence in rows:
        for end in (subject, object_):
            if end not in objects:
                raise FieldError(
                    f"object {end:g} of a relation is not among the image's"
                    f" {count(len(objects), 'object')}"
                )
        if label not in names:
            raise FieldError(f"label {label:g} of a relation is not a predicate of the dataset")
        relations.append(Relation(objects[subject], objects[object_], names[label], *confidence))
    return relations


def add_name(names: dict[int, str], number: int, name: str) -> None:
    """Add a category.

    Raises:
        UserError: its id is already that of another name, so that boxes of both would get one.
    """
    if names.setdefault(number, name) != name:
        raise UserError(
            f"category {number} is both {names[number]!r} and {name!r}; each id must have one name"
        )


def require_format(path: Location, *accepted: str) -> str:
    """Return the format of a file.

    Raises:
        UserError: it is not one of the accepted ones.
    """
    form = detect_format(path)
    if form in accepted:
        return form
    problem = f"has the format {form!r}" if form else "has a format that sgpipe does not know"
    raise UserError(f"{path} {problem}, not {' or '.join(map(repr, accepted))}")


def detect_format(path: Location) -> str | None:
    """Return the format of a file by its first items, or None if it is unknown."""
    _check_ends(path)
    seen = Counter[str]()
    for array, item in JsonStream(path):
        seen[array] += 1
        is_late = seen[array] > _ITEMS_EXAMINED
        if array == "" and is_late:
            return None
        form = None if is_late else _format_of_item(array, item)
        if form is not None:
            return form
    return None


def _check_ends(path: Location) -> None:
    """A missing one is refused by its reader.

    Raises:
        UserError: a file is cut short.
    """
    with suppress(OSError):
        head, tail = read_ends(path, _TAIL)
        head = head.removeprefix(codecs.BOM_UTF8).lstrip()
        tail = tail.rstrip()
        if head and tail and head[:1] + tail[-1:] not in (b"[]", b"{}"):
            raise UserError(f"{path} is not a JSON array or object, or is cut short")


def _format_of_item(array: str, item: object) -> str | None:
    if array == "rel_categories" and isinstance(item, str):
        return "triplets"
    if not isinstance(item, dict):
        return None
    for name, keys, form in _RULES:
        if name == array and set(keys.split()) <= item.keys():
            return _hoia_format(item) if form == "hoia" else form
    return None


def _hoia_format(item: JsonObject) -> str:
    """Return the format of a HOIA file.

    HICO-DET and V-COCO number their verbs differently; only the image names tell their files apart.
    Only files that sgpipe exported have image ids as well as names, and they may be of any dataset.
    """
    if "image_id" in item:
        return "hoia"
    prefix = str(item.get("file_name")).partition("_")[0]
    return {"HICO": "hico", "COCO": "vcoco"}.get(prefix, "hoia")


def infer_split(
    annotations: Location, images: ImagePlace | None, default: str | None = None
) -> str:
    """Return the split that an annotation file or its image folder is named after:
    "instances_val2017.json" is "val".

    Otherwise the folders that contain them count, if they are of one split ("val2017/labels.json").

    Args:
        images: None: the name of their folder does not count, as of V-COCO's, which are COCO's.
        default: of a dataset without splits.

    Raises:
        UserError: the names contradict each other, or neither is a split's and there is no default.
    """
    folder = None if images is None else Path(located(images).rstrip("/"))
    by_file = _split_of_file(annotations.name)
    by_folder = None if folder is None else _split_of_folder(folder)
    if by_file != by_folder and not {by_file, by_folder} & {None, WHOLE}:
        raise UserError(
            f"{annotations.name} is named after {by_file!r}, the image folder {folder} after"
            f" {by_folder!r}: pass --split {by_file} or --split {by_folder}, or the folder of these"
            " annotations"
        )
    split = by_file or by_folder or _split_around(Path(str(annotations)), folder) or default
    if split:
        return split
    beside = f" nor of the image folder {folder}" if folder else ""
    raise UserError(
        f"the split is unknown: neither the name of {annotations}{beside} says train, val or test;"
        " pass --split NAME"
    )


def _split_of_file(name: str) -> str | None:
    words = re.findall(_WORD, _lower(name.removesuffix(".gz").removesuffix(".json")))
    words.sort(key="all".__ne__)  # of "train_all", the split is train
    return _SPLITS[words[-1]] if words else None


def _split_of_folder(folder: Path) -> str | None:
    name = re.sub(r"\.(zip|tar)$", "", folder.resolve().name)
    match = re.fullmatch(_FOLDER, _lower(name))
    return _SPLITS[match[1]] if match else None


def _split_around(*places: Path | None) -> str | None:
    """Return the split that the folders around these are named after, if it is one."""
    splits: set[str] = set()
    for place in filter(None, places):
        match = re.fullmatch(_ALONE, _lower(place.resolve().parent.name))
        if match:
            splits.add(_SPLITS[match[1]])
    return splits.pop() if len(splits) == 1 else None


def base_split(split: str) -> str:
    """Return the split that a further one belongs to: `sgpipe merge` numbers these, as train_2."""
    return re.sub(r"_\d+$", "", split)


def _lower(name: str) -> str:
    """Return a name in lower case, with its words apart: "valImages" is "val_images"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
