"""Doubts about annotations before they are used, such as boxes in another form, each with the option that removes it.

They show only in a comparison with the images, and of captions with boxes. The first images and boxes are examined.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.detections import Detections
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.utils import BoxForm
from sgpipe.utils.boxes import (
    FORMS,
    ClassFinder,
    are_parts,
    best_form,
    class_matrix,
    match_captions,
    share_inside,
    to_xywh,
    xywh_to_xyxy,
)
from sgpipe.utils.console import count

BOXES, IMAGES = 20_000, 500

_SOME, _MANY, _HARDLY = 0.1, 0.25, 0.01  # shares of boxes
_FITTING = 0.9  # share of boxes that lie in their images if their form can be found out
_FEW, _ENOUGH = 3, 10  # boxes to doubt, and to be certain
_SMALL_IMAGE = 32  # pixels; not all boxes of larger images lie in one pixel
_OPTION = "--set source.boxes="


def settle_boxes(detections: Detections, form: BoxForm | None, name: str, *, choose: bool = False) -> list[str]:
    """Turn the boxes of a split into xywh in pixels; returns what is doubtful about them, or which form was chosen.

    `form`: None: xywh, or the form that fits best if `choose`. Raises UserError: see `doubt_boxes`; or no form fits.
    """
    detections.settle_rows()
    rows, boxes = np.asarray(detections.box_rows), np.asarray(detections.boxes).reshape(-1, 4)
    sizes = np.asarray(detections.sizes, np.float64).reshape(-1, 2)
    if not len(boxes) or not len(sizes):
        return []
    first = np.flatnonzero(rows[:BOXES] >= 0)
    examined = boxes[first], sizes[rows[first]]
    if form is None and choose:
        form, share = best_form(*examined)
        if share < _FITTING:
            raise UserError(
                f"{name}: in no form do its boxes lie in their images (as {form}, {share:.0%} do): "
                f"pass {_OPTION}FORM, one of {', '.join(FORMS)}"
            )
        notes = [f"boxes are read as {form}: {share:.1%} lie in their images; {_OPTION}FORM reads others"]
    else:
        form, stated = form or "xywh", form is not None
        notes = doubt_boxes(*examined, form, name, _OPTION, stated=stated)
    if form != "xywh":
        detections.boxes = array("d", to_xywh(boxes, sizes[rows], form).tobytes())
    return notes


def doubt_boxes(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.float64],
    form: BoxForm,
    name: str,
    option: str,
    *,
    stated: bool,
) -> list[str]:
    """Return what is doubtful about boxes `[boxes, 4]` of this form in images of `sizes` `[boxes, 2]`.

    `option`: what sets the form, without its value. Raises UserError: the boxes certainly have another form, and none
    was `stated`.
    """
    best, share = best_form(boxes, sizes)
    outside, still = 1 - share_inside(boxes, sizes, form), 1 - share
    number = outside * len(boxes)
    if are_parts(boxes) and not form.endswith("n") and len(boxes) >= _FEW and sizes.max() > _SMALL_IMAGE:
        doubt = f"all boxes lie in the first pixel of their images, but {share:.0%} fit as {best}"
        certain = len(boxes) >= _ENOUGH
    elif number >= _FEW and outside >= _SOME and still <= outside / 10:
        doubt = f"{outside:.0%} of the boxes leave their images as {form}, {still:.0%} as {best}"
        certain = number >= _ENOUGH and outside >= _MANY and still <= _HARDLY
    elif number >= _ENOUGH and outside >= _MANY:
        return [f"{name}: {outside:.0%} of the boxes leave their images: are width and height those of the images?"]
    else:
        return []
    if certain and not stated:
        raise UserError(f"{name}: {doubt}: pass {option}{best}, or {option}{form} if they are right")
    return [f"{name}: {doubt}: pass {option}{best}"]


_SHIFTS = (  # the axis of images or of classes, the step, and what would explain it
    (0, 1, "each caption were of the image before: check their image_id"),
    (0, -1, "each caption were of the next image: check their image_id"),
    (1, 1, "each box had the next category of the list: check category_id"),
    (1, -1, "each box had the previous category of the list: check category_id"),
)


def doubt_detections(detections: Detections, captions: object) -> list[str]:
    """Return what is doubtful about the categories and captions of a split; `captions` names where they come from."""
    rows, listed = np.asarray(detections.box_rows), detections.categories.keys()
    used = np.asarray(detections.box_categories)[:BOXES][rows[:BOXES] >= 0]
    unlisted = np.isin(used, list(listed), invert=True)
    if listed and len(used) and unlisted.mean() >= _HARDLY:
        ids = set(used.tolist())
        which = ", ".join(map(str, sorted(ids - listed)[:3]))
        shifts = [word for word, step in (("smaller", -1), ("larger", 1)) if {each + step for each in ids} <= listed]
        advice = f"; all would be listed if they were {shifts[0]} by one" if shifts else ""
        boxes = f"{int(unlisted.sum()):,} of {count(len(used), 'box', 'boxes')}"
        return [f"{boxes} have a category_id that is not in the categories, such as {which}, and are dropped{advice}"]
    if not detections.captions:
        return []
    captioned = list(islice(sorted(detections.captions), IMAGES))
    boxed: dict[int, set[str]] = {row: set() for row in captioned}
    for index in np.flatnonzero(np.isin(rows, captioned)).tolist():
        boxed[rows[index]].add(detections.categories.get(detections.box_categories[index], ""))
    classes = [name for _, name in sorted(detections.categories.items())]
    synonyms = {**packaged_synonyms("objects365"), **packaged_synonyms("coco")}
    find = ClassFinder({each: synonyms.get(each, ()) for each in classes})
    named = class_matrix([set().union(*map(find, detections.captions[row])) for row in captioned], classes)
    there = class_matrix(boxed.values(), classes)
    found = match_captions(named, there)
    if not found.is_chance:
        return []
    doubt = f"{captions}: of the classes that captions name, {found.same:.0%} have a box in the same image"
    doubt += f" and {found.other:.0%} in any other image, so that captions and boxes seem unrelated"
    for axis, step, fault in _SHIFTS:
        shifted = match_captions(named, np.roll(there, step, axis))
        if shifted.is_real:
            return [f"{doubt}: {shifted.same:.0%} would have one if {fault}"]
    return [f"{doubt}: do they belong together?"]


def settle_records(
    records: Sequence[Record], source: AnnotationSource, form: BoxForm | None, *, examine: bool
) -> list[str]:
    """Turn boxes, as they were read, into those of another `form`, if any; return what is doubtful if you `examine`.

    Raises UserError: as `doubt_boxes`.
    """
    owners = [(record, box) for record in records if record.ok for box in record.objects if not box.is_nothing]
    sizes = np.array([(record.width, record.height) for record, _ in owners], np.float64).reshape(-1, 2)
    boxes = np.array([box.bbox for _, box in owners], np.float64).reshape(-1, 4)
    boxes = xywh_to_xyxy(boxes) if source.boxes == "xyxy" else boxes  # as the file has them
    notes: list[str] = []
    if examine and source.boxes is not None:
        name = str(source.files["annotations"])
        notes = doubt_boxes(boxes, sizes, form or source.boxes, name, "--boxes ", stated=form is not None)
    if form is not None:
        for (_, box), bbox in zip(owners, to_xywh(boxes, sizes, form).tolist(), strict=True):
            box.bbox = tuple(bbox)
    return notes
