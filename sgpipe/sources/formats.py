"""Detect the format of an annotation file by its first items, and its split by its name."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, located
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, read_ends
from sgpipe.recipe import WHOLE

_ITEMS_EXAMINED = 20
_TAIL = 4096  # bytes read at both ends of a file

# A file has a format if an item of the named array ("": the file is an array) has all these keys; the first match wins.
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


def require_format(path: Location, *accepted: str) -> str:
    """Return the format of a file. Raises UserError, also if it is not accepted, with its format if it is known."""
    found = detect_format(path)
    if found in accepted:
        return found
    what = f"has the format {found!r}" if found else "has a format that sgpipe does not know"
    raise UserError(f"{path} {what}, not {' or '.join(map(repr, accepted))}")


def detect_format(path: Location) -> str | None:
    """Return the format of a file by its first items, or None if it is unknown."""
    with suppress(OSError):  # a file that is cut short is refused before it is used; a missing one by the reader
        head, tail = read_ends(path, _TAIL)
        head, tail = head.removeprefix(codecs.BOM_UTF8).lstrip(), tail.rstrip()
        if head and tail and head[:1] + tail[-1:] not in (b"[]", b"{}"):
            raise UserError(f"{path} is not a JSON array or object, or is cut short")
    stream, seen = JsonStream(path), Counter[str]()
    for array, item in stream:
        seen[array] += 1
        if array == "rel_categories" and isinstance(item, str):
            return "triplets"
        if isinstance(item, dict) and seen[array] <= _ITEMS_EXAMINED:
            for name, keys, found in _RULES:
                if name == array and set(keys.split()) <= item.keys():
                    # HICO-DET and V-COCO number their verbs differently; only the image names tell their files apart.
                    # Only files that sgpipe exported have image ids as well as names, and they may be of any dataset.
                    prefix = "" if "image_id" in item else str(item.get("file_name")).partition("_")[0]
                    return {"HICO": "hico", "COCO": "vcoco"}.get(prefix, found) if found == "hoia" else found
        if array == "" and seen[array] > _ITEMS_EXAMINED:
            return None
    return None


# Words for splits in the names of published files and folders, and the split that each means.
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval", "minitrain"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "minival"), "val"),
    **dict.fromkeys(("test", "testing", "testdev", "test-dev", "test_dev"), "test"),
    "all": WHOLE,  # as `sgpipe export` writes it
}
_WORD = rf"(?<![a-z])(?P<word>{'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])"
_ALONE = rf"{_WORD}[-_]?(\d{{4}})?"  # "val2017"
# "images_val2017" and "val_images", but not "test_of_my_camera".
_IN_FOLDER_NAME = rf"(.*[-_. ])?{_ALONE}([-_. ]?(images?|imgs?|photos?|jpe?gs?|data|set|split))?"


def infer_split(annotations: Location, images: ImagePlace | None, default: str | None = None) -> str:
    """Return the split that an annotation file or its image folder is named after: "instances_val2017.json" is "val".

    If neither is, the folders that contain them count, if they are named after nothing else ("val2017/labels.json").
    `images`: None: the name of their folder does not count, as of V-COCO's, which are COCO's. `default`: of a dataset
    that is published without splits.

    Raises UserError: the two names contradict each other, or neither is a split's and there is no default.
    """
    folder = None if images is None else Path(located(images).rstrip("/"))
    words = re.findall(_WORD, _lower(annotations.name.removesuffix(".gz").removesuffix(".json")))
    words.sort(key="all".__ne__)  # of "train_all", the split is train
    by_file = _SPLITS[words[-1]] if words else None
    by_folder = folder and _folder_split(folder, _IN_FOLDER_NAME)
    if by_file != by_folder and not {by_file, by_folder} & {None, WHOLE}:
        raise UserError(
            f"{annotations.name} is named after the split {by_file!r}, the image folder {folder} after "
            f"{by_folder!r}: pass --split {by_file} or --split {by_folder}, or the folder of these annotations"
        )
    places = (Path(str(annotations)), *filter(None, [folder]))  # of a store, the names alone
    around = {_folder_split(place.resolve().parent, _ALONE) for place in places} - {None}
    if split := by_file or by_folder or (around.pop() if len(around) == 1 else default):
        return split
    beside = f" nor of the image folder {folder}" if folder else ""
    raise UserError(
        f"the split is unknown: neither the name of {annotations}{beside} says train, val or test; pass --split NAME"
    )


def _folder_split(folder: Path, form: str) -> str | None:
    """Return the split that a folder is named after."""
    match = re.fullmatch(form, _lower(re.sub(r"\.(zip|tar)$", "", folder.resolve().name)))
    return _SPLITS[match["word"]] if match else None


def _lower(name: str) -> str:
    """Return a name in lower case, with its words apart: "valImages" is "val_images"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
