"""What is doubtful about annotations: the form of boxes, category ids, captions of other images."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.records import Box, Record
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.detections import Detections
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.utils import BoxForm
from sgpipe.utils import boxes as geometry
from sgpipe.utils.console import count

_Floats: TypeAlias = NDArray[np.float64]
_Flags: TypeAlias = NDArray[np.bool_]
_Numbers: TypeAlias = NDArray[np.integer[Any]]

# how many are examined
BOXES = 20_000
IMAGES = 500
# shares of boxes
_SOME = 0.1
_MANY = 0.25
_HARDLY = 0.01
_FITTING = 0.9  # share of boxes that lie in their images if their form can be found out
# boxes to doubt, and to be certain
_FEW = 3
_ENOUGH = 10
_SMALL_IMAGE = 32  # pixels; not all boxes of larger images lie in one pixel
_OPTION = "--set source.boxes="
_SHIFTS = (  # the axis of images or of classes, the step, and what would explain it
    (0, 1, "each caption were of the image before: check their image_id"),
    (0, -1, "each caption were of the next image: check their image_id"),
    (1, 1, "each box had the next category of the list: check category_id"),
    (1, -1, "each box had the previous category of the list: check category_id"),
)


def settle_boxes(
    detections: Detections, form: BoxForm | None, name: str, *, choose: bool = False
) -> list[str]:
    """Turn the boxes of a split into xywh in pixels.

    Args:
        form: None: xywh, or the form that fits best if `choose`.

    Returns:
        What is doubtful about them, or which form was chosen.

    Raises:
        UserError: the boxes certainly have another form, and none was stated; or no form fits.
    """
    detections.settle_rows()
    rows = np.asarray(detections.box_rows)
    boxes = np.asarray(detections.boxes).reshape(-1, 4)
    sizes = np.asarray(detections.sizes, np.float64).reshape(-1, 2)
    is_usable = (rows[:BOXES] >= 0) & np.isfinite(boxes[:BOXES]).all(1)
    examined = np.flatnonzero(is_usable)
    if not len(examined):
        return []
    examined_boxes = boxes[examined]
    examined_sizes = sizes[rows[examined]]
    if form is None and choose:
        form, note = _choose_form(examined_boxes, examined_sizes, name)
        notes = [note]
    else:
        notes = doubt_boxes(examined_boxes, examined_sizes, form, "xywh", name, _OPTION)
    if form not in (None, "xywh"):
        settled = geometry.to_xywh(boxes, sizes[rows], form)
        detections.boxes = array("d", settled.tobytes())
    return notes


def _choose_form(boxes: _Floats, sizes: _Floats, name: str) -> tuple[BoxForm, str]:
    """Return the form that fits best, and what to say of it.

    Raises:
        UserError: none fits.
    """
    form, share = geometry.best_form(boxes, sizes)
    if share < _FITTING:
        raise UserError(
            f"{name}: in no form do its boxes lie in their images (as {form}, {share:.0%} do): "
            f"pass {_OPTION}FORM, one of {', '.join(geometry.FORMS)}"
        )
    note = f"boxes are read as {form}: {share:.1%} lie in their images; {_OPTION}FORM reads others"
    return form, note


def doubt_boxes(
    boxes: _Floats,
    sizes: _Floats,
    stated: BoxForm | None,
    usual: BoxForm,
    name: str,
    option: str,
) -> list[str]:
    """Return what is doubtful about boxes `[boxes, 4]` of a form in images of `sizes` `[boxes, 2]`.

    Args:
        stated: the form; None: the `usual` one.
        option: what states it, without its value.

    Raises:
        UserError: the boxes certainly have another form, and none was stated.
    """
    form = stated or usual
    best, share = geometry.best_form(boxes, sizes)
    outside = 1 - geometry.share_inside(boxes, sizes, form)
    outside_best = 1 - share
    number = outside * len(boxes)
    are_many = number >= _ENOUGH and outside >= _MANY
    is_another_form = number >= _FEW and outside >= _SOME and outside_best <= outside / 10
    if _lie_in_first_pixel(boxes, sizes, form):
        doubt = f"all boxes lie in the first pixel of their images, but {share:.0%} fit as {best}"
        is_certain = len(boxes) >= _ENOUGH
    elif is_another_form:
        doubt = (
            f"{outside:.0%} of the boxes leave their images as {form}, {outside_best:.0%} as {best}"
        )
        is_certain = are_many and outside_best <= _HARDLY
    elif are_many:
        return [
            f"{name}: {outside:.0%} of the boxes leave their images: are width and height those of"
            " the images?"
        ]
    else:
        return []
    if is_certain and not stated:
        raise UserError(
            f"{name}: {doubt}: pass {option}{best}, or {option}{form} if they are right"
        )
    return [f"{name}: {doubt}: pass {option}{best}"]


def _lie_in_first_pixel(boxes: _Floats, sizes: _Floats, form: BoxForm) -> bool:
    """Return whether boxes in pixels are rather parts of their images."""
    if form.endswith("n") or len(boxes) < _FEW:
        return False
    return bool(sizes.max() > _SMALL_IMAGE) and geometry.are_parts(boxes)


def doubt_detections(detections: Detections, captions: object) -> list[str]:
    """Return what is doubtful about the categories and captions of a split.

    Args:
        captions: where they come from.
    """
    rows = np.asarray(detections.box_rows)
    numbers = np.asarray(detections.box_categories)[:BOXES][rows[:BOXES] >= 0]
    notes = _doubt_categories(numbers, detections.categories.keys())
    if notes or not detections.captions:
        return notes
    captioned = list(islice(sorted(detections.captions), IMAGES))
    classes = [name for _, name in sorted(detections.categories.items())]
    in_captions = _classes_of_captions(detections, captioned, classes)
    in_boxes = _classes_of_boxes(detections, rows, captioned, classes)
    match = geometry.match_captions(in_captions, in_boxes)
    if not match.is_chance:
        return []
    doubt = (
        f"{captions}: of the classes that captions name, {match.same:.0%} have a box in the same"
        f" image and {match.other:.0%} in any other image, so that captions and boxes seem"
        " unrelated"
    )
    for axis, step, fault in _SHIFTS:
        shifted = geometry.match_captions(in_captions, np.roll(in_boxes, step, axis))
        if shifted.is_real:
            return [f"{doubt}: {shifted.same:.0%} would have one if {fault}"]
    return [f"{doubt}: do they belong together?"]


def _doubt_categories(numbers: _Numbers, listed: AbstractSet[int]) -> list[str]:
    """Return what is doubtful about the category_ids of boxes."""
    unlisted = np.isin(numbers, list(listed), invert=True)
    if not listed or not len(numbers) or unlisted.mean() < _HARDLY:
        return []
    ids = set(numbers.tolist())
    examples = ", ".join(map(str, sorted(ids - listed)[:3]))
    advice = ""
    if {number - 1 for number in ids} <= listed:
        advice = "; all would be listed if they were smaller by one"
    elif {number + 1 for number in ids} <= listed:
        advice = "; all would be listed if they were larger by one"
    boxes = f"{int(unlisted.sum()):,} of {count(len(numbers), 'box', 'boxes')}"
    return [
        f"{boxes} have a category_id that is not in the categories, such as {examples}, and are"
        f" dropped{advice}"
    ]


def _classes_of_captions(
    detections: Detections, rows: Sequence[int], classes: Sequence[str]
) -> _Flags:
    """Return which classes the captions of images name, `[images, classes]`."""
    synonyms = {**packaged_synonyms("objects365"), **packaged_synonyms("coco")}
    find = geometry.ClassFinder({name: synonyms.get(name, ()) for name in classes})
    names = [set[str]().union(*map(find, detections.captions[row])) for row in rows]
    return geometry.class_matrix(names, classes)


def _classes_of_boxes(
    detections: Detections, box_rows: _Numbers, rows: Sequence[int], classes: Sequence[str]
) -> _Flags:
    """Return which classes the boxes of images have, `[images, classes]`."""
    names: dict[int, set[str]] = {row: set() for row in rows}
    for box in np.flatnonzero(np.isin(box_rows, rows)).tolist():
        category = detections.box_categories[box]
        names[box_rows[box]].add(detections.categories.get(category, ""))
    return geometry.class_matrix(names.values(), classes)


def settle_records(
    records: Sequence[Record], source: AnnotationSource, form: BoxForm | None, *, examine: bool
) -> list[str]:
    """Turn boxes, as they were read, into those of another `form`, if any.

    Args:
        examine: say what is doubtful about the form.

    Raises:
        UserError: as `doubt_boxes`.
    """
    examine = examine and source.boxes is not None
    if form is None and not examine:
        return []
    objects, sizes = _objects_and_sizes(records)
    boxes = np.array([box.bbox for box in objects], np.float64).reshape(-1, 4)
    if source.boxes == "xyxy":  # as the file has them
        boxes = geometry.xywh_to_xyxy(boxes)
    notes: list[str] = []
    is_finite = np.isfinite(boxes).all(1)
    if examine and is_finite.any():
        name = str(source.files["annotations"])
        usual = source.boxes or "xywh"
        notes = doubt_boxes(boxes[is_finite], sizes[is_finite], form, usual, name, "--boxes ")
    if form is not None:
        settled = geometry.to_xywh(boxes, sizes, form).tolist()
        for box, bbox in zip(objects, settled, strict=True):
            box.bbox = tuple(bbox)
    return notes


def _objects_and_sizes(records: Sequence[Record]) -> tuple[list[Box], _Floats]:
    """Return the boxes of images, and the width and height of the image of each."""
    objects: list[Box] = []
    sides: list[tuple[int, int]] = []
    for record in records:
        if record.ok:
            boxes = [box for box in record.objects if not box.is_nothing]
            objects += boxes
            sides += [(record.width, record.height)] * len(boxes)
    return objects, np.array(sides, np.float64).reshape(-1, 2)
