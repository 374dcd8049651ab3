"""Folders of images without annotations. Files in them that are not read are named, not passed over in silence."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sgpipe.errors import UserError
from sgpipe.images import HEIF_SUFFIXES, ImageError, is_image, read_upright_size, reads_heif
from sgpipe.records import FOLDER_DATASET
from sgpipe.sources.annotated import replace_surrogates, to_single_line
from sgpipe.sources.detections import Detections
from sgpipe.utils.console import count

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
SUFFIXES = (*_SUFFIXES, *HEIF_SUFFIXES) if reads_heif() else _SUFFIXES

# Files that systems and tools leave in folders of images, and texts that belong to an image of the same name.
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_SIDECARS = (".json", ".txt", ".xml", ".xmp", ".csv", ".yaml", ".yml", ".md", ".aae")
_MOST_NAMED = 5


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder, relative to it and sorted, without hidden files and folders.

    Attributes:
        images: what its ending or, without an ending, its content shows to be an image.
        unread: other files, except for texts that belong to an image.
        closed: folders that are not entered: links, and those without permission.
    """

    images: list[str]
    unread: list[str]
    closed: list[str]

    @property
    def notes(self) -> list[str]:
        """One line for each kind of files that are not read."""
        notes = []
        if self.unread:
            what = "is not an image" if len(self.unread) == 1 else "are not images"
            heif = any(_suffix(name) in HEIF_SUFFIXES for name in self.unread)
            hint = "; pip install 'sgpipe[heif]' reads .heic and .heif" if heif else ""
            notes.append(f"{count(len(self.unread), 'file')} {what} that sgpipe reads: {_listed(self.unread)}{hint}")
        if self.closed:
            what = "folder is a link or may" if len(self.closed) == 1 else "folders are links or may"
            notes.append(f"{len(self.closed):,} {what} not be read, and left out: {_listed(self.closed)}")
        return notes


def list_folder(root: Path) -> FolderFiles:
    """The files below a folder. Those without an ending are opened to see whether they are images."""
    images: list[str] = []
    others: list[str] = []
    closed: list[str] = []
    for name in _walk(root, closed):
        known = _suffix(name) in SUFFIXES or (not _suffix(name) and is_image(root / name))
        (images if known else others).append(name)
    stems = {PurePosixPath(name).stem for name in images} | {PurePosixPath(name).name for name in images}
    unread = [name for name in others if not (_suffix(name) in _SIDECARS and PurePosixPath(name).stem in stems)]
    return FolderFiles(sorted(images), sorted(unread, key=_texts_last), sorted(closed))


def _walk(root: Path, closed: list[str]) -> Iterator[str]:
    """All names below a folder that are not hidden: files, and folders that are named like images."""

    def forbidden(error: OSError) -> None:
        closed.append(Path(error.filename).relative_to(root).as_posix())

    for folder, folders, files in os.walk(root, onerror=forbidden):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        below = Path(folder).relative_to(root)
        closed += [(below / name).as_posix() for name in folders if os.path.islink(os.path.join(folder, name))]
        named_like_images = [name for name in folders if _suffix(name) in SUFFIXES]
        visible = [name for name in files if not name.startswith(".") and name.lower() not in _SYSTEM_FILES]
        yield from ((below / name).as_posix() for name in (*visible, *named_like_images))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _texts_last(name: str) -> tuple[bool, str]:
    return _suffix(name) in _SIDECARS, name


def _listed(names: list[str]) -> str:
    shown = [to_single_line(name) for name in names[:_MOST_NAMED]]
    others = len(names) - len(shown)
    return ", ".join(shown) + (f" and {count(others, 'other')}" if others else "")


def iter_images(root: Path) -> Iterator[str]:
    """The names of all images below a folder, relative to it and sorted, without hidden files and folders."""
    yield from list_folder(root).images


def read_folder(root: Path, *, split: str) -> tuple[Detections, dict[str, Any]]:
    """The images of a folder, without boxes; unreadable ones are error rows. The id of an image is its name.

    Raises UserError: the folder contains no images.
    """
    detections, files = Detections(FOLDER_DATASET, split), list_folder(root)
    for name in files.images:
        try:
            (width, height), reason = read_upright_size(root, name), ""
        except ImageError as error:
            (width, height), reason = (0, 0), str(error)
        detections.add_image({"id": name, "file_name": name, "width": width, "height": height})
        if reason:
            detections.errors[detections.position[replace_surrogates(name)]] = f"source: {replace_surrogates(reason)}"
    if not detections.file_names:
        raise UserError(no_images(root, files.notes))
    detections.problems.unread_files = len(files.unread)
    origin = {"annotations": str(root), "captions": "", "annotations_sha256": _hash_listing(root, files.images)}
    return detections, origin | {"notes": files.notes}


def no_images(root: Path, notes: Iterable[str]) -> str:
    """Why a folder cannot be labelled, with what it contains instead of images."""
    instead = "".join(f"; {note}" for note in notes)
    return f"{root} contains no images (expected files that end in {', '.join(SUFFIXES)}){instead}"


def _hash_listing(root: Path, images: Iterable[str]) -> str:
    """A hash of the names and file sizes of images."""
    files = [[name, _size_and_time(root / name)[0]] for name in images]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def fingerprint_folder(root: Path) -> list[Any]:
    """Detects changes of a folder: a hash of its images, the time of their last change, a hash of its other files."""
    files = list_folder(root)
    times = (_size_and_time(root / name)[1] for name in files.images)
    others = hashlib.sha256(json.dumps([files.unread, files.closed]).encode()).hexdigest()
    return [_hash_listing(root, files.images), max(times, default=0), others]


def _size_and_time(file: Path) -> tuple[int, int]:
    """Size and modification time; (-1, 0) for a broken link and the like, which becomes an error row."""
    try:
        status = file.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
