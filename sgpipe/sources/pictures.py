"""Looking at picture files without decoding them: their size, their bytes."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from sgpipe.images import ImageError, opened, resolve
from sgpipe.records import Record

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_size(root: Path, file_name: str) -> tuple[int, int]:
    """Width and height as stored, whatever EXIF says of the orientation: boxes are given in that frame.

    Raises:
        ImageError: missing, outside its folder, not a picture, or too large.
    """
    path = resolve(root, file_name)
    with opened(path, str(path)) as image:
        return image.size


def read_upright_size(root: Path, file_name: str) -> tuple[int, int]:
    """Width and height as people see the picture, turned as EXIF says. Raises ImageError: as `read_size`."""
    path = resolve(root, file_name)
    with opened(path, str(path)) as image:
        return image.size[::-1] if _is_turned(image) else image.size


def read_picture(root: Path, record: Record) -> bytes:
    """The bytes of the record's picture file, once its header has been found good.

    Raises:
        ImageError: missing, outside its folder, not a picture, too large, or not of the annotated size.
    """
    path = resolve(root, record.file_name)
    with opened(path, str(path)) as image:
        size, annotated = image.size, (record.width, record.height)
        turned = _is_turned(image)
        data = path.read_bytes()
    if annotated not in (size, size[::-1] if turned else size):
        raise ImageError(f"image is {size[0]}x{size[1]}, the annotation says {annotated[0]}x{annotated[1]}: {path}")
    return data


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
