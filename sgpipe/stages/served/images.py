"""Images as they are sent to a server."""

import base64
from io import BytesIO

from PIL import Image


def image_url(image: Image.Image, longest_side: int | None = None) -> str:
    """Return an image as the data URL of a PNG; `longest_side`: in pixels, to which a larger image
    is resized.
    """
    if longest_side is not None:
        image = image.copy()
        image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return file_url(buffer.getvalue(), "image/png")


def file_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
