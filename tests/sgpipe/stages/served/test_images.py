"""Images as they are sent: JPEG, the same bytes each time, with thin outlines in their colours."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgpipe.stages.score.scorer import OBJECT_COLOUR, SUBJECT_COLOUR
from sgpipe.stages.served.images import image_url


def noisy() -> Image.Image:
    return Image.effect_noise((160, 120), 80).convert("RGB")


def sent(url: str) -> Image.Image:
    head, _, content = url.partition(";base64,")
    assert head == "data:image/jpeg"
    return Image.open(BytesIO(base64.b64decode(content)))


def test_the_bytes_depend_on_the_pixels_alone() -> None:
    image = noisy()
    image.info |= {"dpi": (300, 300), "comment": b"made elsewhere", "exif": b"Exif\0\0"}
    plain = Image.frombytes("RGB", image.size, image.tobytes())
    assert image_url(image) == image_url(image) == image_url(plain)


def test_a_large_image_is_resized_and_left_as_it_is() -> None:
    image = noisy()
    assert sent(image_url(image, 80)).size == (80, 60)
    assert sent(image_url(image, 400)).size == image.size == (160, 120)


@pytest.mark.parametrize("width", [1, 2])
def test_thin_outlines_keep_their_colours(width: int) -> None:
    image = noisy()
    pen = ImageDraw.Draw(image)
    for colour, box in ((SUBJECT_COLOUR, (11, 11, 90, 100)), (OBJECT_COLOUR, (50, 31, 149, 90))):
        pen.rectangle(box, outline=colour, width=width)
    drawn = np.asarray(image, dtype=int)
    shown = np.asarray(sent(image_url(image)), dtype=int)
    for colour in (SUBJECT_COLOUR, OBJECT_COLOUR):
        outline = shown[(drawn == colour).all(axis=2)]
        assert np.abs(outline - colour).mean() < 12
