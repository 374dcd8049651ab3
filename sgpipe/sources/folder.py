"""A folder of images as a source: images without annotations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from sgpipe.errors import UserError
from sgpipe.files import roots
from sgpipe.files.image_roots import ImagePlace, image_root
from sgpipe.files.stores import ObjectInfo
from sgpipe.images import reads_heif
from sgpipe.records import FOLDER_DATASET
from sgpipe.sources import fields
from sgpipe.sources.detections import Detections, Origin, size_or_reason
from sgpipe.utils.console import count
from sgpipe.utils.hashing import json_sha256
from sgpipe.utils.prefetch import prefetch

SUFFIXES = (*roots.SUFFIXES, *roots.HEIF_SUFFIXES) if reads_heif() else roots.SUFFIXES
# Texts that belong to an image of the same name.
SIDECARS = (".json", ".txt", ".xml", ".xmp", ".csv", ".yaml", ".yml", ".md", ".aae")
MOST_NAMED = 5
# that are read together where opening a file waits
HEADERS_PER_THREAD = 4
_HEADERS_AT_ONCE = 4096


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder, without hidden ones.

    Attributes:
        images: by name, sorted.
        unread: files that are neither images nor texts of one.
    """

    images: Mapping[str, ObjectInfo]
    unread: Sequence[str]

    @property
    def notes(self) -> list[str]:
        has_heif = any(_suffix(name) in roots.HEIF_SUFFIXES for name in self.unread)
        return notes_on_unread(len(self.unread), self.unread[:MOST_NAMED], has_heif=has_heif)


def notes_on_unread(number: int, first: Sequence[str], *, has_heif: bool) -> list[str]:
    """Return what the user should know of files that are neither images nor texts of one."""
    if not number:
        return []
    shown = ", ".join(map(fields.single_line, first))
    further = number - len(first)
    if further > 0:
        shown += f" and {count(further, 'other')}"
    notes = [f"{count(number, 'file')} not read: {shown}"]
    if has_heif:
        notes.append("pip install 'sgpipe[heif]' reads .heic and .heif")
    return notes


def list_folder(location: ImagePlace) -> FolderFiles:
    images: dict[str, ObjectInfo] = {}
    further: list[str] = []
    stems: set[str] = set()  # the names of images, with and without their suffixes
    for entry in sorted(image_root(location).entries(), key=lambda entry: entry.name):
        path = PurePosixPath(entry.name)
        if "/." in f"/{entry.name}":
            continue
        if _suffix(entry.name) in SUFFIXES:
            images[entry.name] = entry
            stems |= {path.name, path.stem}
        else:
            further.append(entry.name)
    unread = [name for name in further if not _is_sidecar(name, stems)]
    return FolderFiles(images, unread)


def _is_sidecar(name: str, stems: set[str]) -> bool:
    return _suffix(name) in SIDECARS and PurePosixPath(name).stem in stems


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def read_folder(location: ImagePlace, *, split: str) -> tuple[Detections, Origin]:
    """Return a root's images, boxless, by name; unreadable ones are error rows.

    Raises:
        UserError: there are none.
    """
    root = image_root(location)
    detections = Detections(FOLDER_DATASET, split)
    files = list_folder(root)
    read = partial(size_or_reason, root)
    threads = HEADERS_PER_THREAD * root.threads
    with prefetch(read, files.images, threads, _HEADERS_AT_ONCE) as sizes:
        for name, (size, reason) in zip(files.images, sizes, strict=True):
            shown = fields.escape_name(name)
            image = {"id": shown, "file_name": shown, "width": size[0], "height": size[1]}
            detections.add_image(image, fields.why_not_stored(name) or reason)
    if not detections.file_names:
        raise UserError(no_images(root.location, files.notes))
    detections.problems["unread_files"] = len(files.unread)
    hashed = json_sha256([[image.name, image.size] for image in files.images.values()])
    origin = Origin(
        annotations=root.location, captions="", annotations_sha256=hashed, notes=files.notes
    )
    return detections, origin


def no_images(root: str | Path, notes: Iterable[str]) -> str:
    """Return why a folder cannot be labelled, with what it contains instead of images."""
    expected = f"expected files that end in {', '.join(SUFFIXES)}"
    return "; ".join([f"{root} contains no images ({expected})", *notes])
