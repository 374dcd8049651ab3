"""Opening pictures safely: inside their root, within Pillow's limits, as RGB in the annotated orientation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from sgpipe.records import Record


class ImageError(Exception):
    """The picture of a record cannot be used; the message says why."""


def resolve(root: Path, file_name: str) -> Path:
    """The path of `file_name` under `root`.

    Raises:
        ImageError: the name is empty, absolute, or leaves the root. Symbolic links are followed: whoever owns
            the folder put them there, not the annotation file.
    """
    name = file_name.replace("\\", "/")
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ImageError(f"file_name {file_name!r} does not stay inside the image folder")
    return root / name


def open_image(roots: Mapping[str, Path], record: Record) -> Image.Image:
    """The record's picture as RGB; `roots` maps a split to its image folder.

    An EXIF rotation is applied only where the annotated size asks for it, since boxes are given in the
    annotated frame.

    Raises:
        ImageError: missing, outside its folder, broken, too large, or not of the annotated size.
    """
    path = resolve(roots[record.split], record.file_name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                image = _orient(opened, (record.width, record.height))
                return _to_rgb(image)
    except FileNotFoundError:
        raise ImageError(f"image file not found: {path}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"image is larger than Pillow's safety limit of pixels: {path}") from None
    # Decoders are foreign code on foreign bytes: besides OSError they raise struct.error, RuntimeError, MemoryError…
    except Exception as reason:  # noqa: BLE001
        raise ImageError(f"image cannot be read: {path} ({str(reason) or type(reason).__name__})") from None


def _orient(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    rotated = ImageOps.exif_transpose(image)
    if rotated.size == size:
        return rotated
    width, height = image.size
    raise ValueError(f"it is {width}x{height}, the annotation says {size[0]}x{size[1]}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
