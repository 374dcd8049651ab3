"""Boxes as numpy arrays, and whether boxes and captions look like what they are taken for.

Wrong data rarely fails: boxes read in another form are clipped, and captions of other images match
few boxes.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from sgpipe.utils import BoxForm
from sgpipe.utils.lemmas import lemmas

Numbers: TypeAlias = NDArray[Any]  # of whatever type they are given in
Boxes: TypeAlias = Numbers  # `[boxes, 4]`

FORMS: tuple[BoxForm, ...] = get_args(BoxForm)

_PARTS = "n"  # the end of the forms in parts of the image
_LARGEST_PART = 1.5  # boxes may reach over the edge; boxes in pixels are larger
_TOLERANCE = 0.01  # of the side of an image, for boxes that are rounded

_WORD = re.compile(r"[^\W_]+")

# Of human captions of COCO 0.8, of V-COCO, which has boxes only of what people use, 0.6; shuffled
# at most 0.1.
_LITTLE = 0.25
_CERTAIN = 3.0  # standard errors
_FEW_IMAGES = 8


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """`[boxes, 4]` of the same type: left, top, right, bottom."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def iou(first: Boxes, second: Boxes) -> Numbers:
    """Intersection over union `[boxes]` of xyxy boxes, one to one; identical boxes have 1, even
    without area.
    """
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    intersection = np.maximum(sides, 0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0] + areas[1] - intersection
    overlap = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    return np.where((first == second).all(1), 1.0, overlap)


def clip_xywh(boxes: Boxes, sizes: Numbers) -> tuple[Boxes, NDArray[np.bool_], Numbers]:
    """Clip xywh boxes `[boxes, 4]` to images whose widths and heights are `sizes` `[boxes, 2]`,
    both float64.

    Return them, bit for bit the input where nothing was cut off; which have an area inside the
    image; and how far each reached beyond the image at its worst side.
    """
    finite = np.logical_and.reduce(np.isfinite(boxes), axis=1)
    xywh = np.where(finite[:, None], boxes, 0.0)
    low = np.clip(xywh[:, :2], 0.0, sizes)
    high = np.clip(xywh[:, :2] + np.maximum(xywh[:, 2:], 0.0), 0.0, sizes)
    outside = np.maximum(low - xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - high)
    overhang: Numbers = outside.max(axis=1, initial=0.0)
    # Only boxes that change are recomputed: x + w - x may differ from w.
    clipped = np.where(overhang[:, None] > 0, np.hstack([low, high - low]), xywh)
    return clipped, finite & (xywh[:, 2:] > 0).all(1) & (high > low).all(1), overhang


def clip_box(
    xywh: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float] | None:
    """`clip_xywh` of a single box, faster for a few; None if it is outside, or an edge overflows to
    infinity.
    """
    x, y, w, h = xywh
    if not all(math.isfinite(value) for value in (x, y, w, h, x + w, y + h)) or w <= 0 or h <= 0:
        return None
    left = max(x, 0.0)
    top = max(y, 0.0)
    right = min(x + w, width)
    bottom = min(y + h, height)
    if left >= right or top >= bottom:
        return None
    if (left, top, right, bottom) == (x, y, x + w, y + h):
        return xywh  # not x + w - x, which may round
    return (left, top, right - left, bottom - top)


def to_xywh(boxes: Boxes, sizes: Numbers, form: BoxForm) -> Numbers:
    """Return boxes `[boxes, 4]` of any form as xywh in pixels; `sizes`: width, height of their
    images `[boxes, 2]`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if form.endswith(_PARTS):
            boxes = boxes * np.tile(sizes, 2)
        first = boxes[:, :2]
        second = boxes[:, 2:]
        if form.startswith("xyxy"):
            return np.hstack([first, second - first])
        if form.startswith("cxcywh"):
            return np.hstack([first - second / 2, second])
        return boxes


def share_inside(boxes: Boxes, sizes: Numbers, form: BoxForm) -> float:
    """Return the share of boxes inside their images by this form; 1 without finite boxes in images
    with a size.
    """
    known = np.isfinite(boxes).all(1) & (sizes > 0).all(1)
    with np.errstate(over="ignore", invalid="ignore"):
        xywh = to_xywh(boxes, sizes, form)
        slack = _TOLERANCE * sizes + 1
        x1y1 = xywh[:, :2]
        x2y2 = xywh[:, :2] + xywh[:, 2:]
        starts_inside = (x1y1 >= -slack).all(1)
        ends_inside = (x2y2 <= sizes + slack).all(1)
        inside = np.asarray(starts_inside & ends_inside & (xywh[:, 2:] > 0).all(1))
    return float(inside[known].mean()) if known.any() else 1.0


def are_parts(boxes: Boxes) -> bool:
    """Return whether the boxes are relative to their images: nearly no number is larger than 1."""
    largest = np.abs(boxes[np.isfinite(boxes).all(1)]).max(1)
    return len(largest) > 0 and float(np.quantile(largest, 0.99)) <= _LARGEST_PART


def best_form(boxes: Boxes, sizes: Numbers) -> tuple[BoxForm, float]:
    """Return the form in pixels, or in parts if they are, in which most boxes lie in their images,
    and their share.
    """
    parts = are_parts(boxes)
    shares = {
        form: share_inside(boxes, sizes, form) for form in FORMS if form.endswith(_PARTS) == parts
    }
    best = max(shares, key=shares.__getitem__)
    return best, shares[best]


class ClassFinder:
    """Finds the classes that a text names: by whole words, in singular or plural, the longest known
    phrase first.
    """

    def __init__(self, phrases: Mapping[str, Iterable[str]]) -> None:
        """`phrases` by class name, which is a phrase itself; "!hot dog" is a phrase of none."""
        self._classes: dict[str, str | None] = {}
        self._longest = 1
        for name, further in phrases.items():
            for phrase in (name, *further):
                words = _WORD.findall(phrase.lower())
                self._longest = max(self._longest, len(words))
                self._classes.setdefault("".join(words), None if phrase.startswith("!") else name)

    def __call__(self, text: str) -> set[str]:
        words = _WORD.findall(text.lower())
        classes: set[str] = set()
        start = 0
        while start < len(words):
            stop, name = self._phrase_at(words, start)
            if name:
                classes.add(name)
            start = stop
        return classes

    def _phrase_at(self, words: Sequence[str], start: int) -> tuple[int, str | None]:
        """Return where the longest known phrase at a word ends, and its class."""
        for stop in range(min(start + self._longest, len(words)), start, -1):
            head = "".join(words[start : stop - 1])
            last = words[stop - 1]
            for form in (last, *lemmas(last, "NOUN")):
                if head + form in self._classes:
                    return stop, self._classes[head + form]
        return start + 1, None


class CaptionMatch(NamedTuple):
    """How well the classes that captions name agree with the boxes of the same images.

    `same`: share of the named classes that have a box in the image; `other`: in another image, on
    average, as captions of wrong images would show; `gain`: (same - other) / (1 - other), 0 if
    captions and boxes are unrelated; `error`: its standard error, infinite if the images do not
    differ.
    """

    images: int
    same: float
    other: float
    gain: float
    error: float

    @property
    def is_chance(self) -> bool:
        """Whether captions and boxes certainly have little to do with each other. Eight images at
        least show it.
        """
        return self.images >= _FEW_IMAGES and self.gain + _CERTAIN * self.error < _LITTLE

    @property
    def is_real(self) -> bool:
        return self.images >= _FEW_IMAGES and self.gain - _CERTAIN * self.error > _LITTLE


def match_captions(named: NDArray[np.bool_], boxed: NDArray[np.bool_]) -> CaptionMatch:
    """Compare the classes that captions name with those that have boxes, `[images, classes]`, where
    there are both.
    """
    has_both = named.any(1) & boxed.any(1)
    named = named[has_both]
    boxed = boxed[has_both]
    images = len(named)
    total = int(named.sum())
    if images < 2:
        return CaptionMatch(images, 1.0, 1.0, 0.0, np.inf)
    elsewhere = (boxed.sum(0) - boxed) / (images - 1)
    hits = (named & boxed).sum(1)
    other = (named * elsewhere).sum(1)
    possible = named.sum(1) - other
    shares = float(hits.sum() / total), float(other.sum() / total)
    if possible.sum() <= 0:
        return CaptionMatch(images, *shares, 0.0, np.inf)
    gain = float((hits - other).sum() / possible.sum())
    error = float(np.sqrt(((hits - other - gain * possible) ** 2).sum()) / possible.sum())
    return CaptionMatch(images, *shares, gain, error)


def class_matrix(classes: Iterable[Collection[str]], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of `names` each image has, `[images, classes]`."""
    rows = [[name in class_name for name in names] for class_name in classes]
    return np.array(rows, bool).reshape(len(rows), len(names))
