"""The `ImageRoot` protocol: where the images of a split are, whatever kind of place that is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from sgpipe.errors import EngineError, ImageError, reason_of

ImageFile = Path | BinaryIO
SUFFIXES = (  # of images that Pillow opens without a plug-in
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
MOST_BYTES = 512 << 20  # of an image file that is read into memory: the largest images that Pillow opens are smaller


@dataclass(frozen=True)
class ImageEntry:
    """A file of a root, image or not. `version` changes with it, as far as the place tells."""

    name: str
    size: int
    version: str


class ImageRoot(Protocol):
    """Images by their names. It travels to workers; threads may share it.

    A StoreError of any method means that the place cannot be reached: the work ends, and can be resumed.

    Attributes:
        location: what the user names it by: a path or a URI.
        threads: how many threads open its images ahead; 0: opening does not wait.
    """

    @property
    def location(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def where(self, name: str) -> str:
        """What messages call an image."""

    def contains(self, name: str) -> bool:
        """Whether there is such a file."""

    def open(self, name: str) -> ImageFile:
        """An image, to read the whole of it. Raises ImageError: it is missing, cut, replaced, or outside the root."""

    def peek(self, name: str) -> ImageFile:
        """As `open`, to read the header alone."""

    def entries(self) -> Iterator[ImageEntry]:
        """All files, in any order, one at a time."""


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES + HEIF_SUFFIXES


def image_error(error: OSError, where: str) -> ImageError | EngineError:
    """What to raise if an image cannot be read: an EngineError if this machine is the reason, which ends the work."""
    if error.errno in _OF_THE_MACHINE:
        return EngineError(f"{where} cannot be read: {reason_of(error)}")
    return ImageError(f"image cannot be read: {where} ({reason_of(error)})")


def safe_name(name: str) -> str:
    """A file name with `/` between its parts. Raises ImageError: it is empty, absolute, or leaves the root."""
    parts = name.replace("\\", "/")
    if not parts or "\0" in parts or PurePosixPath(parts).is_absolute() or ".." in PurePosixPath(parts).parts:
        raise ImageError(f"file_name {name!r} is not inside the image folder")
    return str(PurePosixPath(parts))


def checked_size(size: int, where: str) -> int:
    """The size in bytes of a file that is read into memory. Raises ImageError: it has none, or is no image's."""
    if size > MOST_BYTES:
        raise ImageError(f"image cannot be read: {where} (it has {size:,} bytes, more than any image)")
    if not size:
        raise ImageError(f"image cannot be read: {where} (the file is empty)")
    return size
