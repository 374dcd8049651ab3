"""Small tools that know nothing about datasets or models."""

from typing import Literal

__version__ = "0.2.0"
LARGEST_SEED = 2**63

# What the four numbers of a box are: in pixels or, with an n, in parts of the width and height of
# the image.
BoxForm = Literal["xywh", "xyxy", "cxcywh", "xywhn", "xyxyn", "cxcywhn"]
