"""Image roots: folders, archives and object stores that hold the images of a split, behind one protocol.

A recipe and a manifest name a root by a text, its location. `image_root` makes the root of one, once per process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Lock

from sgpipe.errors import UserError, existing_folder
from sgpipe.files import archives
from sgpipe.files.archives import ArchiveRoot, is_archive, refuse_compressed
from sgpipe.files.index import IndexFolder, write_index
from sgpipe.files.locations import Location, below, info_of
from sgpipe.files.object_store import ObjectInfo, StorePath, is_uri
from sgpipe.files.roots import (
    FolderRoot,
    HubRoot,
    ImageFile,
    ImageRoot,
    ObjectRoot,
    RunRoot,
    is_image,
    list_objects,
)
from sgpipe.utils.prefetch import prefetch

__all__ = ["ImageFile", "ImagePlace", "ImageRoot", "ImageRoots", "IndexFolder"]
__all__ += ["absolute", "check_images", "existing_images", "image_root", "located"]

ImagePlace = str | Path | StorePath | ImageRoot
_SHARDS = re.compile(r"\{(\d+)\.\.(\d+)\}")  # WebDataset's way to name many: train-{000000..000127}.tar
_HEADS = 8  # archives that a store is asked for at once
_PROBED = 1000  # objects of a prefix that tell what is in it: those of one answer

_made: dict[tuple[str, IndexFolder], ImageRoot] = {}
_making = Lock()


def located(location: ImagePlace, base: Location | None = None) -> str:
    """Return the text of a location, a path relative to `base`."""
    if not isinstance(location, str | Path | StorePath):
        return location.location
    text = str(location)
    return text if base is None or is_uri(text) else str(below(base, text))


def image_root(location: ImagePlace, indexes: IndexFolder | None = None) -> ImageRoot:
    """Return the root of a location: a folder, which need not exist, one or more archives, or a prefix of a store.

    Raises UserError: an archive or a store is missing, or cannot be read; StoreError; OSError: no index is written.
    """
    if not isinstance(location, str | Path | StorePath):
        return location
    indexes = indexes or IndexFolder()
    key = (located(location), indexes)
    with _making:
        if key not in _made:
            _made[key] = _remote(*key) if is_uri(key[0]) else _local(*key)
        return _made[key]


def existing_images(location: ImagePlace, indexes: IndexFolder | None = None) -> ImageRoot:
    """As `image_root`, of a location as it is now, on the hub its commit. Raises UserError: it does not exist."""
    if located(location).startswith("hf://"):
        dataset, names = HubRoot(located(location)).dataset.list()
        root = HubRoot(dataset.uri)
        vars(root)["_names"] = frozenset(names)  # a commit does not change: it is not listed again
        return root
    check_images(location)
    with _making:  # the archives or objects may have been replaced since the root was made
        for key in [key for key in _made if key[0] == located(location)]:
            del _made[key]
    return image_root(location, indexes)


def check_images(location: ImagePlace) -> None:
    """Raises UserError: a location does not exist, or is nothing that images are in; archives are not read."""
    text = located(location)
    if text.startswith("hf://"):
        HubRoot(text).dataset.list()
    elif is_uri(text):
        _place(text)
    elif Path(text).is_file():
        refuse_compressed(text)
        if not is_archive(text):
            raise UserError(f"{text} is a file, not a folder of images or an archive of them (.zip, .tar)")
    elif not _SHARDS.search(Path(text).name) and not RunRoot.is_named(text):
        existing_folder(Path(text))


def absolute(location: ImagePlace) -> str:
    """Return the text of a location that does not depend on the working folder."""
    text = located(location)
    return text if is_uri(text) else str(Path(text).resolve())


class ImageRoots(Mapping[str, ImageRoot]):
    """The roots of the splits of a run, each made when it is asked for."""

    def __init__(self, locations: Mapping[str, str], indexes: IndexFolder | None = None) -> None:
        self.locations = locations
        self._indexes = indexes

    def __getitem__(self, split: str) -> ImageRoot:
        return image_root(self.locations[split], self._indexes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)


def _local(text: str, indexes: IndexFolder) -> ImageRoot:
    path = Path(text)
    if RunRoot.is_named(text):
        return RunRoot(text)
    folder, names = path.parent, [path.name] if path.is_file() and is_archive(path.name) else []
    if _SHARDS.search(path.name) and not path.exists():
        names = _shards(path.name)
    elif path.is_dir():
        folder = path
        with suppress(OSError), os.scandir(path) as entries:  # opening an image will say why
            there = [entry for entry in entries if not entry.name.startswith(".")]
            if not any(_is_read(entry.name) or entry.is_dir() for entry in there):
                names = _only_archives(text, [entry.name for entry in there])
    return _archive_root(text, folder, names, indexes) if names else FolderRoot(path)


def _is_read(name: str) -> bool:
    """Return whether a file beside archives says that it is the folder that is meant: an image, or a Parquet file."""
    return is_image(name) or name.endswith(".parquet")


def _only_archives(location: str, names: Iterable[str]) -> list[str]:
    """Raises UserError: there are archives that are compressed as a whole."""
    names = sorted(names)
    for name in names:
        refuse_compressed(f"{location}/{name}")
    return [name for name in names if is_archive(name)]


def _remote(text: str, indexes: IndexFolder) -> ImageRoot:
    if text.startswith("hf://"):
        return HubRoot(text)
    files, names = _place(text)
    if not names:
        found = [info.name for info in islice(files.list(), _PROBED)]
        if not found:
            raise UserError(f"{text} contains nothing")
        if not any(map(_is_read, found)) and _only_archives(text, found):
            names = _only_archives(text, [info.name for info in files.list()])
    if names:
        return _archive_root(text, files, names, indexes)
    if not indexes.whole:
        return ObjectRoot(text, files)
    indexes.progress.say(f"listing {text}")
    stamp, listed = list_objects(files, indexes.progress)
    reference = indexes.reference(stamp)
    if not reference.exists:
        write_index(reference.path, listed, {})
    return ObjectRoot(text, files, reference)


def _place(uri: str) -> tuple[StorePath, list[str]]:
    """Return the prefix that a URI leads to, and the archives there that it names. Raises UserError: no such bucket."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    refuse_compressed(uri)
    names = _shards(name) if is_archive(name) else []
    files = StorePath(parent if names else uri)
    files.check()
    return files, names


def _shards(name: str) -> list[str]:
    """Return the names that a name with a range stands for: itself, if it has none. Raises UserError: it is empty."""
    found = _SHARDS.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise UserError(f"{name} names no archive: {first} is larger than {last}")
    return [f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}" for number in numbers]


def _archive_root(location: str, folder: Location, names: Iterable[str], indexes: IndexFolder) -> ArchiveRoot:
    """Raises UserError: an archive does not exist, or is damaged."""
    infos, names = list[ObjectInfo](), list(names)
    with prefetch(lambda name: info_of(folder / name), names, _HEADS, _HEADS) as found:
        for name, info in zip(names, found, strict=True):
            if info is None:
                raise UserError(f"no such file: {folder}/{name}")
            infos.append(replace(info, name=name))  # which may be below folders of a prefix
    reference = indexes.reference([archives.LAYOUT, [[info.name, info.size, info.state] for info in infos]])
    if not reference.exists:
        archives.build_index(reference.path, location, folder, infos, indexes.progress)
    return ArchiveRoot(location, folder, reference)
