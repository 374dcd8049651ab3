"""Looking at picture files without decoding them: whether they are there, their size, their bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from sgpipe.images import ImageError, resolve
from sgpipe.records import Record

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def is_there(root: Path, file_name: str) -> bool:
    """Whether there is such a file under `root`."""
    try:
        return resolve(root, file_name).is_file()
    except (ImageError, OSError):
        return False


def read_size(root: Path, file_name: str) -> tuple[int, int]:
    """Width and height as stored, whatever EXIF says of the orientation: boxes are given in that frame.

    Raises:
        ImageError: missing, outside its folder, not a picture, or too large.
    """
    path = resolve(root, file_name)
    with _header(path, path) as image:
        return image.size


def read_picture(root: Path, record: Record) -> bytes:
    """The bytes of the record's picture file, once its header has been found good.

    Raises:
        ImageError: missing, outside its folder, not a picture, too large, or not of the annotated size.
    """
    path = resolve(root, record.file_name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(_unreadable(path, error)) from None
    with _header(io.BytesIO(data), path) as image:
        size, annotated = image.size, (record.width, record.height)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
    if annotated not in (size, size[::-1] if turned else size):
        raise ImageError(f"image is {size[0]}x{size[1]}, the annotation says {annotated[0]}x{annotated[1]}: {path}")
    return data


@contextmanager
def _header(file: Path | BinaryIO, path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"image is larger than Pillow's safety limit of pixels: {path}") from None
    # Decoders are foreign code on foreign bytes: besides OSError they raise struct.error, SyntaxError, ValueError…
    except Exception as reason:  # noqa: BLE001
        raise ImageError(_unreadable(path, reason)) from None


def _unreadable(path: Path, reason: Exception) -> str:
    if isinstance(reason, FileNotFoundError):
        return f"image file not found: {path}"
    return f"image cannot be read: {path} ({str(reason) or type(reason).__name__})"
