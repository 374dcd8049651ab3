"""Image roots of locations, the texts by which recipes and manifests name folders, archives,
prefixes and datasets.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Lock

from sgpipe.errors import UserError, existing_folder
from sgpipe.files.archives import LAYOUT, ArchiveRoot, build_index, is_archive, refuse_compressed
from sgpipe.files.index import IndexFolder
from sgpipe.files.inventory import inventory_index
from sgpipe.files.listing import prefix_index
from sgpipe.files.locations import Location, below, info_of
from sgpipe.files.roots import (
    FolderRoot,
    HubRoot,
    ImageFile,
    ImageRoot,
    ObjectRoot,
    RunRoot,
    is_image,
)
from sgpipe.files.stores import ObjectInfo, StorePath, is_uri
from sgpipe.utils.prefetch import prefetch

__all__ = [
    "ImageFile",
    "ImagePlace",
    "ImageRoot",
    "ImageRoots",
    "IndexFolder",
    "absolute",
    "check_images",
    "existing_images",
    "has_images",
    "image_root",
    "lacks_images",
    "located",
]

ImagePlace = str | Path | StorePath | ImageRoot
_HEADS = 8  # archives that a store is asked for at once
# WebDataset's way to name many: train-{000000..000127}.tar
_SHARDS = re.compile(r"\{(\d+)\.\.(\d+)\}")
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
    """Return the root of a location: a folder, which need not exist, one or more archives, or a
    prefix of a store.

    Raises UserError: an archive or a store is missing, or cannot be read; StoreError; OSError: no
    index is written.
    """
    if not isinstance(location, str | Path | StorePath):
        return location
    indexes = indexes or IndexFolder()
    key = (located(location), indexes)
    with _making:
        if key not in _made:
            _made[key] = _open_root(*key)
        return _made[key]


def existing_images(location: ImagePlace, indexes: IndexFolder | None = None) -> ImageRoot:
    """As `image_root`, of a location as it is now, on the hub its commit.

    Raises:
        UserError: it does not exist.
    """
    if located(location).startswith("hf://"):
        dataset, names = HubRoot(located(location)).dataset.list()
        root = HubRoot(dataset.uri)
        vars(root)["_names"] = frozenset(names)  # a commit does not change: it is not listed again
        return root
    check_images(location)
    with _making:  # the archives or objects may have been replaced since the root was made
        outdated = [key for key in _made if key[0] == located(location)]
        for key in outdated:
            del _made[key]
    return image_root(location, indexes)


def check_images(location: ImagePlace) -> None:
    """Check that a location can have images.

    Raises:
        UserError: a location does not exist, or is nothing that images are in; archives are not
            read.
    """
    text = located(location)
    if text.startswith("hf://"):
        HubRoot(text).dataset.list()
    elif is_uri(text):
        _place(text)
    elif Path(text).is_file():
        refuse_compressed(text)
        if not is_archive(text):
            raise UserError(
                f"{text} is a file, not a folder of images or an archive of them (.zip, .tar)"
            )
    elif not _SHARDS.search(Path(text).name) and not RunRoot.is_named(text):
        existing_folder(Path(text))


def has_images(location: ImagePlace) -> bool:
    """Return whether a folder has an image or an archive at any depth; only the first one is looked
    for.

    Of anything but a folder on this machine, True: it is not looked into.
    """
    names = _file_names(location)
    return names is None or any(is_image(name) or is_archive(name) for name in names)


def lacks_images(location: ImagePlace, file_names: Iterable[str]) -> bool:
    """Return whether a folder has no file of any of these names at any depth, and no archive that
    could have one.

    Of anything but a folder on this machine, False: it is not looked into.
    """
    base_names: set[str] = set()
    for name in file_names:  # backslashes belong to a name, or stand for slashes
        base_names |= {PurePosixPath(name).name, PureWindowsPath(name).name}
    names = _file_names(location)
    if names is None or any("#" in name for name in base_names):  # rows of Parquet files
        return False
    return not any(name in base_names or is_archive(name) for name in names)


def _file_names(location: ImagePlace) -> Iterator[str] | None:
    """Return the last names of all files below a folder; None: it is no folder of this machine."""
    text = located(location)
    if is_uri(text) or not Path(text).is_dir():
        return None
    return chain.from_iterable(names for _, _, names in os.walk(text, followlinks=True))


def absolute(location: ImagePlace) -> str:
    """Return the text of a location that does not depend on the working folder."""
    text = located(location)
    return text if is_uri(text) else str(Path(text).resolve())


class ImageRoots(Mapping[str, ImageRoot]):
    """The roots of the splits of a run, each made when it is needed."""

    def __init__(self, locations: Mapping[str, str], indexes: IndexFolder | None = None) -> None:
        self.locations = locations
        self._indexes = indexes

    def __getitem__(self, split: str) -> ImageRoot:
        return image_root(self.locations[split], self._indexes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)


def _open_root(text: str, indexes: IndexFolder) -> ImageRoot:
    if text.startswith("hf://"):
        return HubRoot(text)
    if RunRoot.is_named(text):
        return RunRoot(text)
    folder, names = _place(text)
    if indexes.inventory is not None:
        return _open_listed(text, folder, names, indexes)
    names = names or _archives_alone(text, folder)
    if names:
        return _open_archives(text, folder, names, indexes)
    if isinstance(folder, Path):
        return FolderRoot(folder)
    if not indexes.versioned:
        return ObjectRoot(text, folder)
    return ObjectRoot(text, folder, prefix_index(text, folder, indexes))


def _open_listed(
    text: str, folder: Location, archives: Sequence[str], indexes: IndexFolder
) -> ImageRoot:
    """Return the root of the images that an inventory lists.

    Raises:
        UserError: as `inventory_index`; or the location is one of archives.
    """
    if archives:
        raise UserError(
            f"{text} is an archive, which lists its images itself: omit --inventory, which is for a"
            " folder or a store"
        )
    index = inventory_index(text, folder, indexes)
    if isinstance(folder, Path):
        return FolderRoot(folder, index)
    return ObjectRoot(text, folder, index)


def _open_archives(
    text: str, folder: Location, names: Sequence[str], indexes: IndexFolder
) -> ArchiveRoot:
    """Return the root of archives, whose index is made unless there is one.

    Raises:
        UserError: one is missing.
    """
    archives: list[ObjectInfo] = []
    with prefetch(lambda name: info_of(folder / name), names, _HEADS, _HEADS) as infos:
        for name, info in zip(names, infos, strict=True):
            if info is None:
                raise UserError(f"no such file: {folder}/{name}")
            archives.append(replace(info, name=name))  # which may be below folders of a prefix
    states = [[archive.name, archive.size, archive.state] for archive in archives]
    reference = indexes.reference([LAYOUT, states])
    if not reference.exists:
        build_index(reference.path, text, folder, archives, indexes.progress)
    return ArchiveRoot(text, folder, reference)


def _place(text: str) -> tuple[Location, list[str]]:
    """Return the folder or prefix of a location, and the archives it names there.

    Raises:
        UserError: no such bucket.
    """
    if not is_uri(text):
        path = Path(text)
        is_file = path.is_file() and is_archive(path.name)
        if is_file or (not path.exists() and _SHARDS.search(path.name)):
            return path.parent, _shards(path.name)
        return path, []
    parent, _, name = text.rstrip("/").rpartition("/")
    refuse_compressed(text)
    names = _shards(name) if is_archive(name) else []
    files = StorePath(parent if names else text)
    files.check()
    return files, names


def _archives_alone(text: str, folder: Location) -> list[str]:
    """Return the archives of a folder or prefix in which is nothing else that is read, and no
    folder of a disk.
    """
    names: list[str] = []
    for name in _entries(folder):
        if is_image(name) or name.endswith((".parquet", "/")):
            return []
        names.append(name)
        if len(names) == _PROBED and not any(map(is_archive, names)):
            return []
    if not names and isinstance(folder, StorePath):
        raise UserError(f"{text} contains nothing")
    for name in sorted(names):
        refuse_compressed(f"{text}/{name}")
    return sorted(filter(is_archive, names))


def _entries(folder: Location) -> Iterator[str]:
    """Yield the names of objects, or of what is visible in a folder, where folders end in /."""
    if isinstance(folder, StorePath):
        yield from (info.name for info in folder.list())
        return
    with suppress(OSError), os.scandir(folder) as entries:  # opening an image will say why
        for entry in entries:
            if not entry.name.startswith("."):
                yield f"{entry.name}/" if entry.is_dir() else entry.name


def _shards(name: str) -> list[str]:
    """Return the names that a name with a range stands for: itself, if it has none.

    Raises:
        UserError: it is empty.
    """
    span = _SHARDS.search(name)
    if span is None:
        return [name]
    first, last = span.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise UserError(f"{name} names no archive: {first} is larger than {last}")
    start = name[: span.start()]
    end = name[span.end() :]
    return [f"{start}{number:0{len(first)}d}{end}" for number in numbers]
