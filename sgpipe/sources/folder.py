"""Images without annotations, in a folder or another root. Files that are not read are named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, ImageRoot, image_root
from sgpipe.files.roots import HEIF_SUFFIXES, FolderRoot, size_and_time
from sgpipe.files.roots import SUFFIXES as _SUFFIXES
from sgpipe.images import ImageError, is_image, read_upright_size, reads_heif
from sgpipe.records import FOLDER_DATASET
from sgpipe.sources import fields
from sgpipe.sources.detections import Detections
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import prefetch

SUFFIXES = (*_SUFFIXES, *HEIF_SUFFIXES) if reads_heif() else _SUFFIXES

# Files that systems and tools leave in folders of images, and texts that belong to an image of the same name.
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_SIDECARS = (".json", ".txt", ".xml", ".xmp", ".csv", ".yaml", ".yml", ".md", ".aae")
_MOST_NAMED = 5
_HEADERS_PER_THREAD, _HEADERS_AT_ONCE = 4, 4096  # that are read together where opening a file waits


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder, relative to it and sorted, without hidden ones.

    `unread` are neither images nor texts that belong to one; `closed` folders are links or lack permission.
    """

    images: list[str]
    unread: list[str]
    closed: list[str]

    @property
    def notes(self) -> list[str]:
        """One line for each kind of files that are not read."""
        notes = []
        for names, noun, why in ((self.unread, "file", "not read"), (self.closed, "folder", "not entered")):
            if names:
                others = len(names) - _MOST_NAMED
                more = f" and {count(others, 'other')}" if others > 0 else ""
                shown = ", ".join(map(fields.single_line, names[:_MOST_NAMED]))
                notes.append(f"{count(len(names), noun)} {why}: {shown}{more}")
        if any(_suffix(name) in HEIF_SUFFIXES for name in self.unread):
            notes.append("pip install 'sgpipe[heif]' reads .heic and .heif")
        return notes


def list_folder(location: ImagePlace) -> FolderFiles:
    """Return the files of a root. Those without an ending are opened to see whether they are images."""
    root = image_root(location)
    images, others, closed = list[str](), list[str](), list[str]()
    if isinstance(root, FolderRoot):
        found = _walk(root.folder, closed)
    else:
        found = (entry.name for entry in root.entries() if not any(map(_is_hidden, entry.name.split("/"))))
    for name in found:
        known = _suffix(name) in SUFFIXES or (not _suffix(name) and is_image(root, name))
        (images if known else others).append(name)
    stems = {PurePosixPath(name).stem for name in images} | {PurePosixPath(name).name for name in images}
    unread = [name for name in others if not (_suffix(name) in _SIDECARS and PurePosixPath(name).stem in stems)]
    return FolderFiles(sorted(images), sorted(unread), sorted(closed))


def _walk(root: Path, closed: list[str]) -> Iterator[str]:
    """Yield all names below a folder that are not hidden: files, and folders that are named like images."""

    def forbidden(error: OSError) -> None:
        closed.append(Path(error.filename).relative_to(root).as_posix())

    for folder, folders, files in os.walk(root, onerror=forbidden):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        below = Path(folder).relative_to(root)
        closed += [(below / name).as_posix() for name in folders if os.path.islink(os.path.join(folder, name))]
        named_like_images = [name for name in folders if _suffix(name) in SUFFIXES]
        visible = [name for name in files if not _is_hidden(name)]
        yield from ((below / name).as_posix() for name in (*visible, *named_like_images))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX" or name.lower() in _SYSTEM_FILES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def read_folder(location: ImagePlace, *, split: str) -> tuple[Detections, dict[str, Any]]:
    """Return a root's images, boxless, by name; unreadable ones are error rows. Raises UserError: there are none."""
    root = image_root(location)
    detections, files = Detections(FOLDER_DATASET, split), list_folder(root)

    def read(name: str) -> tuple[tuple[int, int], str]:
        """Return width and height, or zeros and why there are none."""
        try:
            return read_upright_size(root, name), ""
        except ImageError as error:
            return (0, 0), str(error)

    with prefetch(read, files.images, _HEADERS_PER_THREAD * root.threads, _HEADERS_AT_ONCE) as sizes:
        for name, ((width, height), reason) in zip(files.images, sizes, strict=True):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if shown != name:
                reason = f"the file name is not UTF-8: {shown}; rename the file"
            row = detections.add_image({"id": shown, "file_name": shown, "width": width, "height": height})
            if reason and row is not None:
                detections.errors[row] = f"source: {fields.clean(reason)}"
    if not detections.file_names:
        raise UserError(no_images(root.location, files.notes))
    detections.problems["unread_files"] = len(files.unread)
    hashed = _hash([[name, size] for name, size, _ in _states(root, files.images)])
    origin = {"annotations": root.location, "captions": "", "annotations_sha256": hashed}
    return detections, origin | {"notes": files.notes}


def no_images(root: str | Path, notes: Iterable[str]) -> str:
    """Return why a folder cannot be labelled, with what it contains instead of images."""
    return "; ".join([f"{root} contains no images (expected files that end in {', '.join(SUFFIXES)})", *notes])


def fingerprint_folder(location: ImagePlace) -> list[Any]:
    """Detects changes of a root: a hash of its images, of their states, and of its other files."""
    root = image_root(location)
    files = list_folder(root)
    return [_hash(_states(root, files.images)), _hash([files.unread, files.closed])]


def _states(root: ImageRoot, names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Return name, size and version of files."""
    if isinstance(root, FolderRoot):
        return [(name, *size_and_time(root.folder / name)) for name in names]
    found = {entry.name: (entry.size, entry.version) for entry in root.entries()}
    return [(name, *found[name]) for name in names]


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
