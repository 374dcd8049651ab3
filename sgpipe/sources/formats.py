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
from sgpipe.storage.manifest import Manifest

_ITEMS_EXAMINED = 20
_TAIL = 4096  # bytes read at both ends of a file

_TITLES = {  # what a file is, and what reads it
    "hico": "HICO-DET in HOIA format (for `sgpipe import hico`)",
    "hico pairs": "HICO-DET as box pairs (for `sgpipe import hico`)",
    "vcoco": "V-COCO in HOIA format (for `sgpipe import vcoco`)",
    "vcoco pairs": "V-COCO as box pairs (for `sgpipe import vcoco`)",
    "hoia": "human-object interactions in HOIA format (for `sgpipe import hico` or `vcoco`)",
    "open-images": "Open Images relations in HOIA format (for `sgpipe import openimages`)",
    "open-images vrd": "Open Images relations (for `sgpipe import openimages`)",
    "vg": "scene graphs in Visual Genome format (for `sgpipe import vg`)",
    "relationships": "Visual Genome's relationships.json (for `sgpipe import vg`)",
    "image data": "Visual Genome's image_data.json (for `sgpipe import vg --image-data`)",
    "rlipv2": "pseudo-labels in RLIPv2 format (for `sgpipe import rlipv2`)",
    "triplets": "relation triplets in RelTR format (for `sgpipe import coco-rel --relations`)",
    "coco-rel": "COCO instances with rel_annotations (for `sgpipe import coco-rel`)",
    "psg": "OpenPSG's psg.json (for `sgpipe import psg`)",
    "coco": "a COCO instances file (for `sgpipe generate coco`)",
    "captions": "a COCO captions file (for `sgpipe generate coco --captions`)",
    "label-studio": "a list of Label Studio's tasks, its JSON export (for `sgpipe import label-studio`)",
}
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
    expected = " or ".join(_TITLES[name].partition(" (")[0] for name in accepted)
    raise UserError(f"{path} {f'is {_TITLES[found]}, not' if found else 'has no item with the keys of'} {expected}")


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
}
_WORD = rf"(?<![a-z])(?P<word>{'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])"
_ALONE = rf"{_WORD}[-_]?(\d{{4}})?"  # "val2017"
# "images_val2017" and "val_images", but not "test_of_my_camera".
_IN_FOLDER_NAME = rf"(.*[-_. ])?{_ALONE}([-_. ]?(images?|imgs?|photos?|jpe?gs?|data|set|split))?"


def infer_split(annotations: Location, images: ImagePlace | None, default: str | None = None) -> str:
    """Return the split that an annotation file or its image folder is named after: "instances_val2017.json" is "val".

    If neither is, the folder that contains them counts, if it is named after nothing else ("val2017/labels.json").
    `images`: None: the name of their folder does not count, as of V-COCO's, which are COCO's. `default`: of a dataset
    that is published without splits, or of the run that is to be resumed.

    Raises UserError: the two names contradict each other, or neither is a split's and there is no default.
    """
    images = None if images is None else Path(located(images).rstrip("/"))
    stem = annotations.name.removesuffix(".gz").removesuffix(".json")
    words = re.findall(_WORD, _lower(stem))
    by_file = _SPLITS[words[-1]] if words else None
    by_folder = images and _folder_split(images, _IN_FOLDER_NAME)
    if by_file and by_folder and by_file != by_folder:
        raise UserError(
            f"{annotations.name} is named after the split {by_file!r}, the image folder {images} after "
            f"{by_folder!r}: pass --split {by_file} or --split {by_folder}, or the folder of these annotations"
        )
    is_whole = re.search(r"(^|[^a-z])all$", stem.lower())  # "instances_all.json", as `sgpipe export` writes it
    if split := by_file or (WHOLE if is_whole else by_folder):
        return split
    file = Path(str(annotations)).resolve()  # of a store, the names alone
    around = {_folder_split(folder.parent, _ALONE) for folder in (file, images and images.resolve()) if folder} - {None}
    if file.parent.name == WHOLE:  # "all/_annotations.coco.json", likewise
        around.add(WHOLE)
    if split := around.pop() if len(around) == 1 else default:
        return split
    if isinstance(annotations, Path) and annotations.exists():
        detect_format(annotations)  # a file that is not JSON is to be called that
    beside = f" nor of the image folder {images}" if images else ""
    raise UserError(
        f"the split is unknown: neither the name of {annotations}{beside} says train, val or test; pass --split NAME"
    )


def run_split(root: Path) -> str | None:
    """Return the split of the run or import in a folder; None if there is none, or it has several."""
    try:
        splits = Manifest.load(root).run["images"]
    except (UserError, KeyError, OSError):
        return None
    return next(iter(splits)) if len(splits) == 1 else None


def _folder_split(folder: Path, form: str) -> str | None:
    """Return the split that a folder is named after."""
    match = re.fullmatch(form, _lower(re.sub(r"\.(zip|tar)$", "", folder.resolve().name)))
    return _SPLITS[match["word"]] if match else None


def _lower(name: str) -> str:
    """Return a name in lower case, with its words apart: "valImages" is "val_images"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
