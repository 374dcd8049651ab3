"""Which of the published annotation files a file is, told by its first items, so that a wrong one is named.

The name of a split, where nobody gives one.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.utils.json_stream import JsonStream

_ITEMS_LOOKED_AT = 20
_TAIL = 4096


@dataclass(frozen=True)
class AnnotationFormat:
    """A kind of annotation file: what it is called, and what reads it."""

    name: str
    use: str


HICO_HOIA = AnnotationFormat("HICO-DET in HOIA form (trainval_hico.json)", "use `sgpipe import hico`")
HICO_PAIRS = AnnotationFormat("HICO-DET in the form of instances_train2015.json", "use `sgpipe import hico`")
VCOCO_HOIA = AnnotationFormat("V-COCO in HOIA form (trainval_vcoco.json)", "use `sgpipe import vcoco`")
VCOCO_PAIRS = AnnotationFormat("V-COCO in the form of instances_vcoco_train.json", "use `sgpipe import vcoco`")
HOIA = AnnotationFormat("human-object interactions in HOIA form", "use `sgpipe import hico` or `vcoco`")
OPEN_IMAGES = AnnotationFormat("Open Images relations (OI_SGG_train_finetuning.json)", "use `sgpipe import openimages`")
OPEN_IMAGES_VRD = AnnotationFormat("Open Images relations (vrd-train-anno.json)", "use `sgpipe import openimages`")
SCENE_GRAPHS = AnnotationFormat("scene graphs in Visual Genome form (scene_graphs.json)", "use `sgpipe import vg`")
RELATIONSHIPS = AnnotationFormat("Visual Genome's relationships.json", "use `sgpipe import vg`")
PSEUDO_LABELS = AnnotationFormat("pseudo-labels in RLIPv2 form", "use `sgpipe import rlipv2`")
RELATION_TRIPLETS = AnnotationFormat(
    "relation triplets in RelTR form (rel.json)", "give it to `sgpipe import coco-rel --relations`"
)
COCO_INSTANCES = AnnotationFormat(
    "a COCO instances file",
    "it has no relations: use `sgpipe generate coco`, or `sgpipe import coco-rel` with a rel.json",
)
COCO_CAPTIONS = AnnotationFormat("a COCO captions file", "it has no boxes: give it to `sgpipe generate --captions`")
VSRL = AnnotationFormat(
    "V-COCO as published, without boxes", "use it in HOIA form, or in that of instances_vcoco_train.json"
)
VG_OBJECTS = AnnotationFormat(
    "Visual Genome's objects.json", "it has no relations: use scene_graphs.json or relationships.json"
)
VG_ATTRIBUTES = AnnotationFormat("Visual Genome's attributes.json", "it has no relations: use scene_graphs.json")
VG_IMAGES = AnnotationFormat("Visual Genome's image_data.json", "give it to `sgpipe import vg --image-data`")

# In the array called so ("": the file is the array) the items have these keys; the first rule that fits decides.
_RULES: tuple[tuple[str, frozenset[str], AnnotationFormat], ...] = tuple(
    (array, frozenset(keys.split()), form)
    for array, keys, form in (
        ("", "annotations hoi_annotation", HOIA),
        ("", "annotations rel_annotations", OPEN_IMAGES),
        ("", "bbox det_labels rel", OPEN_IMAGES_VRD),
        ("", "objects relationships dataset", PSEUDO_LABELS),
        ("", "objects relationships data_split", PSEUDO_LABELS),
        ("", "objects relationships", SCENE_GRAPHS),
        ("", "image_id relationships", RELATIONSHIPS),
        ("", "action_name role_name", VSRL),
        ("", "image_id objects", VG_OBJECTS),
        ("", "image_id attributes", VG_ATTRIBUTES),
        ("", "image_id width height", VG_IMAGES),
        ("relationships", "subject object predicate", RELATIONSHIPS),
        ("relationships", "subject_id object_id predicate", SCENE_GRAPHS),
        ("attributes", "object_id attributes", VG_ATTRIBUTES),
        ("annotation", "boxes_h boxes_o verb", HICO_PAIRS),
        ("annotations", "boxes_h boxes_o actions", VCOCO_PAIRS),
        ("annotations", "image_id caption", COCO_CAPTIONS),
        ("annotations", "image_id bbox category_id", COCO_INSTANCES),
    )
)  # fmt: skip


def require_format(path: Path, *accepted: AnnotationFormat) -> AnnotationFormat:
    """The form of a file, which must be one of those accepted.

    Raises:
        UserError: it is missing, cut short, not JSON, or something else; the message says what, if that is known.
    """
    form = detect_format(path)
    if form in accepted:
        return form
    expected = " or ".join(form.name for form in accepted if form is not HOIA)
    if form is None:
        raise UserError(f"{path} is not {expected}: no item of it looks like that")
    raise UserError(f"{path} is {form.name}, not {expected}; {form.use}")


def detect_format(path: Path) -> AnnotationFormat | None:
    """The form of a file by its first items; None: it is none that is known.

    Raises UserError: it is missing, cut short, or not JSON.
    """
    _check_end(path)
    stream, seen = JsonStream(path), Counter[str]()
    for array, item in stream:
        seen[array] += 1
        if array == "rel_categories":
            return RELATION_TRIPLETS
        if seen[array] <= _ITEMS_LOOKED_AT and (form := _form_of(array, item)):
            return form
        if array == "" and seen[array] > _ITEMS_LOOKED_AT:
            return None
    return None


def _form_of(array: str, item: Any) -> AnnotationFormat | None:
    if not isinstance(item, dict):
        return None
    form = next((form for name, keys, form in _RULES if name == array and keys <= item.keys()), None)
    # Only exports of ours have ids beside the names; theirs may be of any dataset.
    return _by_file_name(str(item.get("file_name"))) if form is HOIA and "image_id" not in item else form


def _by_file_name(name: str) -> AnnotationFormat:
    """HICO-DET and V-COCO number their verbs differently, but nothing else in the file tells them apart."""
    if name.startswith("HICO_"):
        return HICO_HOIA
    return VCOCO_HOIA if name.startswith("COCO_") else HOIA


def _check_end(path: Path) -> None:
    """Notice a file cut short before anything is made of its first half. A missing file is left to the reader."""
    try:
        with path.open("rb") as file:
            head = file.read(_TAIL).removeprefix(codecs.BOM_UTF8).lstrip()
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            tail = file.read().rstrip()
    except OSError:
        return
    if head and tail and head[:1] + tail[-1:] not in (b"[]", b"{}"):
        raise UserError(f"{path} is not a JSON array or object, or is cut short: it is not all inside [ ] or {{ }}")


def guess_split(annotations: Path) -> str:
    """The split an annotation file is named after ("instances_val2017.json" → "val"); "train" if it is not."""
    names = re.findall(r"(?<![a-z])(?:train|val|test)(?![a-z])", annotations.stem.lower())
    return names[-1] if names else "train"
