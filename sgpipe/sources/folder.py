"""Folders of images without annotations."""

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

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm", ".avif")


def iter_images(root: Path) -> Iterator[str]:
    """The names of all image files below a folder, relative to it and sorted, without hidden files and folders."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    yield from sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def read_folder(root: Path, *, split: str) -> tuple[Detections, dict[str, Any]]:
    """The images of a folder, without boxes; unreadable ones are error rows. The id of an image is its name.

    Raises UserError: the folder contains no images.
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
        raise UserError(f"{root} contains no images (expected files that end in {', '.join(SUFFIXES)})")
    return detections, {"annotations": str(root), "captions": "", "annotations_sha256": _hash_listing(root)}


def _hash_listing(root: Path) -> str:
    """A hash of the names and file sizes of all images."""
    files = [[name, _size_and_time(root / name)[0]] for name in iter_images(root)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def fingerprint_folder(root: Path) -> list[Any]:
    """Detects changes of a folder: the hash of its listing, and the time of the last change of an image."""
    times = (_size_and_time(root / name)[1] for name in iter_images(root))
    return [_hash_listing(root), max(times, default=0)]


def _size_and_time(file: Path) -> tuple[int, int]:
    """Size and modification time; (-1, 0) for a broken link and the like, which becomes an error row."""
    try:
        status = file.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
