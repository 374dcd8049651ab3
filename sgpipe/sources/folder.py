"""Folders of images that nobody has annotated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.images import ImageError, read_upright_size
from sgpipe.records import FOLDER_DATASET
from sgpipe.sources.annotated import replace_surrogates
from sgpipe.sources.detections import Detections

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm", ".avif")


def iter_images(root: Path) -> Iterator[str]:
    """The names of all image files below a folder, relative to it, sorted; hidden ones are left out."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in ENDINGS)
    yield from sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def read_folder(root: Path, *, split: str) -> tuple[Detections, dict[str, Any]]:
    """The images of a folder, without boxes; those that cannot be read are error rows. An image's id is its name.

    Raises UserError: there is none.
    """
    detections = Detections(FOLDER_DATASET, split)
    for name in iter_images(root):
        try:
            (width, height), reason = read_upright_size(root, name), ""
        except ImageError as error:
            (width, height), reason = (0, 0), str(error)
        detections.add_image({"id": name, "file_name": name, "width": width, "height": height})
        if reason:
            detections.errors[detections.position[replace_surrogates(name)]] = f"source: {replace_surrogates(reason)}"
    if not detections.file_names:
        raise UserError(f"{root} holds no images (files that end in {', '.join(ENDINGS)})")
    return detections, {"annotations": str(root), "captions": "", "annotations_sha256": _listing(root)}


def _listing(root: Path) -> str:
    """A hash of which images there are, and how large their files."""
    files = [[name, _size_and_time(root / name)[0]] for name in iter_images(root)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def fingerprint_folder(root: Path) -> list[Any]:
    """What tells that the images of a folder are still the ones that were read."""
    times = (_size_and_time(root / name)[1] for name in iter_images(root))
    return [_listing(root), max(times, default=0)]


def _size_and_time(file: Path) -> tuple[int, int]:
    """Size and time of change; of what cannot be looked at, such as a link to nowhere, none: it is an error row."""
    try:
        status = file.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
