"""What the four numbers of a box are: datasets have corners, sizes or centres, in pixels or as parts of the image."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sgpipe.errors import UserError
from sgpipe.hub_config import BoxForm

_FORMS: tuple[BoxForm, ...] = get_args(BoxForm)
_PARTS = "n"  # the end of the forms in parts of the image
_LARGEST_PART = 1.5  # boxes may reach over the edge; boxes in pixels are larger
_TOLERANCE = 0.01  # of the side of an image, for boxes that are rounded
_LEAST = 0.9  # share of boxes that must lie in their images


def to_xywh(boxes: np.ndarray, sizes: np.ndarray, form: BoxForm) -> np.ndarray:
    """Boxes of any form as x, y, width, height in pixels.

    Args:
        boxes: `[boxes, 4]`. sizes: width and height of the image of each, in pixels, `[boxes, 2]`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if form.endswith(_PARTS):
            boxes = boxes * np.tile(sizes, 2)
        first, second = boxes[:, :2], boxes[:, 2:]
        if form.startswith("xyxy"):
            return np.hstack([first, second - first])
        if form.startswith("cxcywh"):
            return np.hstack([first - second / 2, second])
        return boxes


def share_inside(boxes: np.ndarray, sizes: np.ndarray, form: BoxForm) -> float:
    """The share of boxes that lie in their images if they are of this form."""
    with np.errstate(over="ignore", invalid="ignore"):
        xywh, slack = to_xywh(boxes, sizes, form), _TOLERANCE * sizes + 1
        x1y1, x2y2 = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        inside = (x1y1 >= -slack).all(1) & (x2y2 <= sizes + slack).all(1) & (xywh[:, 2:] > 0).all(1)
    return float(inside.mean()) if len(inside) else 1.0


def choose_form(
    boxes: np.ndarray, sizes: np.ndarray, form: BoxForm | Literal["auto"], name: str
) -> tuple[BoxForm, float]:
    """The form of the boxes, and the share of them that lie in their images; without boxes, COCO's.

    Of the forms in pixels, or in parts if no number is large, the one in which most boxes lie in their images; of
    equal ones, the first of `BoxForm`.

    Raises UserError: in no form do nearly all boxes lie in their images; `name` is the dataset in the message.
    """
    known = np.isfinite(boxes).all(1) & (sizes > 0).all(1)
    boxes, sizes = boxes[known], sizes[known]
    if form != "auto":
        return form, share_inside(boxes, sizes, form)
    parts = len(boxes) > 0 and float(np.quantile(np.abs(boxes).max(1), 0.99)) <= _LARGEST_PART
    forms = [each for each in _FORMS if each.endswith(_PARTS) == parts]
    shares = {each: share_inside(boxes, sizes, each) for each in forms}
    best = max(forms, key=shares.__getitem__)
    if shares[best] < _LEAST:
        raise UserError(
            f"{name}: in no form do its boxes lie in their images (as {best}, {shares[best]:.0%} do): "
            f"pass --set source.hub.boxes=FORM, one of {', '.join(_FORMS)}"
        )
    return best, shares[best]
