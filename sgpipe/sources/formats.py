"""Detecting the format of an annotation file by its first items, so that a wrong file is refused by its name.

Also the default name of a split, which follows from the names of the annotation file and the image folder.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, located
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.files.text_files import read_ends
from sgpipe.recipe import WHOLE
from sgpipe.storage.manifest import Manifest

_ITEMS_EXAMINED = 20
_TAIL = 4096  # bytes read at both ends of a file


# What known files are, and what reads them.
HICO_HOIA = "HICO-DET in HOIA format (for `sgpipe import hico`)"
HICO_PAIRS = "HICO-DET as box pairs (for `sgpipe import hico`)"
VCOCO_HOIA = "V-COCO in HOIA format (for `sgpipe import vcoco`)"
VCOCO_PAIRS = "V-COCO as box pairs (for `sgpipe import vcoco`)"
HOIA = "human-object interactions in HOIA format (for `sgpipe import hico` or `vcoco`)"
OPEN_IMAGES_HOIA = "Open Images relations in HOIA format (for `sgpipe import openimages`)"
OPEN_IMAGES_VRD = "Open Images relations (for `sgpipe import openimages`)"
SCENE_GRAPHS = "scene graphs in Visual Genome format (for `sgpipe import vg`)"
RELATIONSHIPS = "Visual Genome's relationships.json (for `sgpipe import vg`)"
VG_IMAGES = "Visual Genome's image_data.json (for `sgpipe import vg --image-data`)"
PSEUDO_LABELS = "pseudo-labels in RLIPv2 format (for `sgpipe import rlipv2`)"
RELATION_TRIPLETS = "relation triplets in RelTR format (for `sgpipe import coco-rel --relations`)"
COCO_RELATIONS = "COCO instances with rel_annotations (for `sgpipe import coco-rel`)"
PSG = "OpenPSG's psg.json (for `sgpipe import psg`)"
COCO_INSTANCES = "a COCO instances file (for `sgpipe generate coco`)"
COCO_CAPTIONS = "a COCO captions file (for `sgpipe generate coco --captions`)"
LABEL_STUDIO = "a list of Label Studio's tasks, its JSON export (for `sgpipe import label-studio`)"

# A file has a format if an item of the named array ("": the file is an array) has all these keys; the first match wins.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("", "annotations hoi_annotation", HOIA),
    ("", "annotations rel_annotations", OPEN_IMAGES_HOIA),
    ("", "bbox det_labels rel", OPEN_IMAGES_VRD),
    ("", "objects relationships dataset", PSEUDO_LABELS),
    ("", "objects relationships data_split", PSEUDO_LABELS),
    ("", "objects relationships", SCENE_GRAPHS),
    ("", "image_id relationships", RELATIONSHIPS),
    ("", "image_id width height", VG_IMAGES),
    ("", "data annotations", LABEL_STUDIO),
    ("", "data predictions", LABEL_STUDIO),
    ("relationships", "subject object predicate", RELATIONSHIPS),
    ("relationships", "subject_id object_id predicate", SCENE_GRAPHS),
    ("annotation", "boxes_h boxes_o verb", HICO_PAIRS),
    ("annotations", "boxes_h boxes_o actions", VCOCO_PAIRS),
    ("data", "image_id segments_info", PSG),
    ("annotations", "image_id caption", COCO_CAPTIONS),
    ("annotations", "image_id bbox category_id", COCO_INSTANCES),
    ("rel_annotations", "subject_id object_id predicate_id", COCO_RELATIONS),
)


def require_format(path: Location, *accepted: str) -> str:
    """Return the format of a file, which must be one of those accepted.

    Raises UserError: it is missing, cut short, not JSON, or of another format, which the message names if it is known.
    """
    file_format = detect_format(path)
    if file_format in accepted:
        return file_format
    expected = " or ".join(option.partition(" (")[0] for option in accepted if option is not HOIA)
    found = f"is {file_format}, not" if file_format else "has no item with the keys of"
    raise UserError(f"{path} {found} {expected}")


def detect_format(path: Location) -> str | None:
    """Return the format of a file by its first items, or None if it is unknown.

    Raises UserError: the file is missing, cut short, or not JSON.
    """
    with suppress(OSError):  # a file that is cut short is refused before it is used; a missing one by the reader
        head, tail = read_ends(path, _TAIL)
        head, tail = head.removeprefix(codecs.BOM_UTF8).lstrip(), tail.rstrip()
        if head and tail and head[:1] + tail[-1:] not in (b"[]", b"{}"):
            raise UserError(
                f"{path} is not a JSON array or object, or is cut short: it does not begin and end with [ ] or {{ }}"
            )
    stream, seen = JsonStream(path), Counter[str]()
    for array, item in stream:
        seen[array] += 1
        if array == "rel_categories" and isinstance(item, str):
            return RELATION_TRIPLETS
        if isinstance(item, dict) and seen[array] <= _ITEMS_EXAMINED:
            for name, keys, file_format in _RULES:
                if name == array and set(keys.split()) <= item.keys():
                    # HICO-DET and V-COCO number their verbs differently; only the image names tell their files apart.
                    # Only files that sgpipe exported have image ids as well as names, and they may be of any dataset.
                    prefix = "" if "image_id" in item else str(item.get("file_name")).partition("_")[0]
                    by_prefix = {"HICO": HICO_HOIA, "COCO": VCOCO_HOIA} if file_format is HOIA else {}
                    return by_prefix.get(prefix, file_format)
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
_IN_FILE_NAME = re.compile(_WORD)
# "images_val2017" and "val_images", but not "test_of_my_camera". Alone: "val2017".
_IN_FOLDER_NAME = re.compile(
    rf"(.*[-_. ])?{_WORD}[-_]?(\d{{4}})?([-_. ]?(images?|imgs?|photos?|jpe?gs?|data|set|split))?"
)
_ALONE = re.compile(rf"{_WORD}[-_]?(\d{{4}})?")
_WHOLE = re.compile(r"(^|[^a-z])all$")  # "instances_all.json", as `sgpipe export` names what is not split


def infer_split(annotations: Location, images: ImagePlace | None, default: str | None = None) -> str:
    """Return the split that an annotation file or its image folder is named after: "instances_val2017.json" is "val".

    If neither is, the folder that contains them counts, if it is named after nothing else ("val2017/labels.json").

    Args:
        images: None: the name of the image folder does not count, as of V-COCO's, which are COCO's.
        default: the split of a dataset that is published without splits, or of the run that is to be resumed.

    Raises UserError: the two names contradict each other, or neither is a split's and there is no default; or the file
        is not JSON.
    """
    images = None if images is None else Path(located(images).rstrip("/"))
    stem = annotations.name.removesuffix(".gz").removesuffix(".json")
    words = _IN_FILE_NAME.findall(_lower(stem))
    by_file = _SPLITS[words[-1]] if words else None
    by_folder = images and _folder_split(images, _IN_FOLDER_NAME)
    if by_file and by_folder and by_file != by_folder:
        raise UserError(
            f"{annotations.name} is named after the split {by_file!r}, the image folder {images} after "
            f"{by_folder!r}: pass --split {by_file} or --split {by_folder}, or the folder of these annotations"
        )
    if split := by_file or (WHOLE if _WHOLE.search(stem.lower()) else by_folder):
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


def _folder_split(folder: Path, form: re.Pattern[str]) -> str | None:
    """Return the split that a folder is named after."""
    match = form.fullmatch(_lower(re.sub(r"\.(zip|tar)$", "", folder.resolve().name)))
    return _SPLITS[match["word"]] if match else None


def _lower(name: str) -> str:
    """Return a name in lower case, with its words apart: "valImages" is "val_images"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
