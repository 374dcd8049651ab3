"""Images without annotations, in a folder or another root. Files that are not read are named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, ImageRoot, image_root
from sgpipe.files.object_store import ObjectInfo
from sgpipe.files.roots import HEIF_SUFFIXES
from sgpipe.files.roots import SUFFIXES as _SUFFIXES
from sgpipe.images import ImageError, read_upright_size, reads_heif
from sgpipe.records import FOLDER_DATASET
from sgpipe.sources import fields
from sgpipe.sources.detections import Detections
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import prefetch

SUFFIXES = (*_SUFFIXES, *HEIF_SUFFIXES) if reads_heif() else _SUFFIXES

# Texts that belong to an image of the same name.
_SIDECARS = (".json", ".txt", ".xml", ".xmp", ".csv", ".yaml", ".yml", ".md", ".aae")
_MOST_NAMED = 5
_HEADERS_PER_THREAD, _HEADERS_AT_ONCE = 4, 4096  # that are read together where opening a file waits


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder by name, sorted, without hidden ones; `unread`: neither images nor texts of one."""

    images: Mapping[str, ObjectInfo]
    unread: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """Name the files that are not read."""
        others = len(self.unread) - _MOST_NAMED
        more = f" and {count(others, 'other')}" if others > 0 else ""
        shown = ", ".join(map(fields.single_line, self.unread[:_MOST_NAMED]))
        notes = [f"{count(len(self.unread), 'file')} not read: {shown}{more}"] if self.unread else []
        if any(_suffix(name) in HEIF_SUFFIXES for name in self.unread):
            notes.append("pip install 'sgpipe[heif]' reads .heic and .heif")
        return notes


def list_folder(location: ImagePlace) -> FolderFiles:
    """Return the files of a root."""
    found = [entry for entry in image_root(location).entries() if "/." not in f"/{entry.name}"]
    found.sort(key=lambda entry: entry.name)
    images = {entry.name: entry for entry in found if _suffix(entry.name) in SUFFIXES}
    others = [entry.name for entry in found if entry.name not in images]
    stems = {PurePosixPath(name).stem for name in images} | {PurePosixPath(name).name for name in images}
    unread = [name for name in others if not (_suffix(name) in _SIDECARS and PurePosixPath(name).stem in stems)]
    return FolderFiles(images, unread)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def read_folder(location: ImagePlace, *, split: str) -> tuple[Detections, dict[str, Any]]:
    """Return a root's images, boxless, by name; unreadable ones are error rows. Raises UserError: there are none."""
    root = image_root(location)
    detections, files = Detections(FOLDER_DATASET, split), list_folder(root)

    read, threads = partial(size_or_reason, root), _HEADERS_PER_THREAD * root.threads
    with prefetch(read, files.images, threads, _HEADERS_AT_ONCE) as sizes:
        for name, ((width, height), reason) in zip(files.images, sizes, strict=True):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if shown != name:
                reason = f"the file name is not UTF-8: {shown}; rename the file"
            row = detections.add_image({"id": shown, "file_name": shown, "width": width, "height": height})
            if reason and row is not None:
                detections.errors[row] = f"source: {reason}"
    if not detections.file_names:
        raise UserError(no_images(root.location, files.notes))
    detections.problems["unread_files"] = len(files.unread)
    hashed = _hash([[each.name, each.size] for each in files.images.values()])
    origin = {"annotations": root.location, "captions": "", "annotations_sha256": hashed}
    return detections, origin | {"notes": files.notes}


def size_or_reason(root: ImageRoot, name: str) -> tuple[tuple[int, int], str]:
    """Return width and height of an image as displayed, or zeros and why there are none."""
    try:
        return read_upright_size(root, name), ""
    except ImageError as error:
        return (0, 0), fields.clean(str(error))


def no_images(root: str | Path, notes: Iterable[str]) -> str:
    """Return why a folder cannot be labelled, with what it contains instead of images."""
    return "; ".join([f"{root} contains no images (expected files that end in {', '.join(SUFFIXES)})", *notes])


def fingerprint_folder(location: ImagePlace) -> list[Any]:
    """Detects changes of a root: a hash of its images, of their states, and of its other files."""
    files = list_folder(location)
    return [_hash([(each.name, each.size, each.state) for each in files.images.values()]), _hash(files.unread)]


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
