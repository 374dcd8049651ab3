"""Images as they are sent to a server."""

import base64
from io import BytesIO

from PIL import Image

from sgpipe.recipe import JPEG_QUALITY

_EVERY_COLOUR = 0  # of 4:4:4: colours as fine as brightness, or thin outlines would run


def image_url(image: Image.Image, longest_side: int | None = None) -> str:
    """Return an RGB image as the data URL of a JPEG, whose bytes depend on the pixels alone.

    Args:
        image: what the server sees.
        longest_side: in pixels, to which a larger image is resized.
    """
    image = image.copy()
    image.info.clear()  # comments and resolution of a file, which JPEGs would repeat
    if longest_side is not None:
        image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=_EVERY_COLOUR)
    return file_url(buffer.getvalue(), "image/jpeg")


def file_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
