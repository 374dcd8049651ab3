"""Doubts about annotations before they are used, such as boxes in another form, each with the option that removes it.

They show only in a comparison with the images, and of captions with boxes. The first images and boxes are examined.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.records import Box, Record
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


def doubt_detections(detections: Detections, captions: object) -> list[str]:
    """Return what is doubtful about the categories and captions of a split; `captions` names where they come from."""
    rows = np.asarray(detections.box_rows)
    categories = doubt_categories(
        np.asarray(detections.box_categories)[:BOXES][rows[:BOXES] >= 0], detections.categories
    )
    if categories or not detections.captions:
        return categories
    captioned = list(islice(sorted(detections.captions), IMAGES))
    boxed: dict[int, set[str]] = {row: set() for row in captioned}
    for index in np.flatnonzero(np.isin(rows, captioned)).tolist():
        boxed[rows[index]].add(detections.categories.get(detections.box_categories[index], ""))
    classes = [name for _, name in sorted(detections.categories.items())]
    texts = [detections.captions[row] for row in captioned]
    return doubt_captions(texts, list(boxed.values()), classes, str(captions))


def doubt_categories(used: NDArray[np.int32], listed: Collection[int]) -> list[str]:
    """Return what is doubtful about the category ids of boxes, of which some may not be in the list."""
    unlisted = np.isin(used, list(listed), invert=True)
    if not listed or not len(used) or unlisted.mean() < _HARDLY:
        return []
    ids = set(used.tolist())
    which = ", ".join(map(str, sorted(ids - set(listed))[:3]))
    shifts = [word for word, step in (("smaller", -1), ("larger", 1)) if {each + step for each in ids} <= set(listed)]
    advice = f"; all would be listed if they were {shifts[0]} by one" if shifts else ""
    boxes = f"{int(unlisted.sum()):,} of {count(len(used), 'box', 'boxes')}"
    return [f"{boxes} have a category_id that is not in the categories, such as {which}, and are dropped{advice}"]


def doubt_captions(
    captions: Sequence[Sequence[str]], boxed: Sequence[Collection[str]], classes: Sequence[str], name: str
) -> list[str]:
    """Return what is doubtful about the captions and boxed classes of images, in the order of the file.

    `classes`: all, in the order of their ids. `name`: where the captions come from.
    """
    synonyms = {**packaged_synonyms("objects365"), **packaged_synonyms("coco")}
    find = ClassFinder({each: synonyms.get(each, ()) for each in classes})
    named = class_matrix([set().union(*map(find, texts)) for texts in captions], classes)
    there = class_matrix(boxed, classes)
    found = match_captions(named, there)
    if not found.is_chance:
        return []
    doubt = f"{name}: of the classes that captions name, {found.same:.0%} have a box in the same image"
    doubt += f" and {found.other:.0%} in any other image, so that captions and boxes seem unrelated"
    for axis, step, fault in _SHIFTS:
        shifted = match_captions(named, np.roll(there, step, axis))
        if shifted.is_real:
            return [f"{doubt}: {shifted.same:.0%} would have one if {fault}"]
    return [f"{doubt}: do they belong together?"]


_SHIFTS = (
    (0, 1, "each caption were of the image before: check their image_id"),
    (0, -1, "each caption were of the next image: check their image_id"),
    (1, 1, "each box had the next category of the list: check category_id"),
    (1, -1, "each box had the previous category of the list: check category_id"),
)


def doubt_records(records: Sequence[Record], source: AnnotationSource, form: BoxForm | None) -> list[str]:
    """Return what is doubtful about records as they are read; `form`: of boxes, as chosen. Raises as `doubt_boxes`."""
    name, read = str(source.files["annotations"]), [record for record in records if record.ok][:IMAGES]
    notes: list[str] = []
    if source.boxes is not None:
        owners = [(record, box) for record in read for box in record.objects if not box.is_nothing]
        sizes = np.array([(record.width, record.height) for record, _ in owners], np.float64).reshape(-1, 2)
        boxes = _as_written([box for _, box in owners], source.boxes)
        notes = doubt_boxes(boxes, sizes, form or source.boxes, name, "--boxes ", stated=form is not None)
    return notes


def change_form(record: Record, read: BoxForm | None, form: BoxForm) -> None:
    """Turn the boxes of a record, which were read as of one form, into those of another."""
    own = [box for box in record.objects if not box.is_nothing]
    sizes = np.tile(np.array([record.width, record.height], np.float64), (len(own), 1))
    for box, bbox in zip(own, to_xywh(_as_written(own, read), sizes, form).tolist(), strict=True):
        box.bbox = tuple(bbox)


def _as_written(boxes: Sequence[Box], form: BoxForm | None) -> NDArray[np.float64]:
    """Return the numbers of boxes in a file of this form, xyxy or xywh, `[boxes, 4]`."""
    xywh = np.array([box.bbox for box in boxes], np.float64).reshape(-1, 4)
    return xywh_to_xyxy(xywh) if form == "xyxy" else xywh
