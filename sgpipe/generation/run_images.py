"""Where the images of a run are: their roots, and the indexes of these that the run keeps for its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.archives import ArchiveRoot
from sgpipe.files.image_roots import ImageRoot, IndexFolder, absolute, existing_images
from sgpipe.files.object_store import is_uri
from sgpipe.files.roots import ObjectRoot
from sgpipe.generation.work_units import WorkUnit
from sgpipe.recipe import SourceConfig
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils.console import Progress, count, single_line

_MOST_LOOKED_FOR, _AT_ONCE = 100_000, 1000  # images of a split


def open_image_roots(source: SourceConfig, folder: RunFolder, progress: Progress) -> dict[str, ImageRoot]:
    """The root of each split, as it is now, with the indexes in the run; what was noticed while they were read is said.

    A dataset of the hub stays at the commit that it had when the run began.

    Raises UserError, StoreError, OSError: as `existing_images`.
    """
    uri = folder.store.uri if folder.store else None
    indexes = IndexFolder(folder.private, uri, progress, whole=True)
    before = Manifest.load(folder.root).run.get("images", {}) if (folder.root / MANIFEST).exists() else {}
    roots = {}
    for split in source.splits:
        location = absolute(source.images(split))
        if location.startswith("hf://") and before.get(split, "").startswith(f"{location}@"):
            location = before[split]
        roots[split] = existing_images(location, indexes)
    for root in roots.values():
        for note in root.notes if isinstance(root, ArchiveRoot) else ():
            progress.say(f"NOTE: {note}")
    return roots


def check_names(roots: Mapping[str, ImageRoot], indexes: Mapping[str, SourceIndex], units: Sequence[WorkUnit]) -> None:
    """Look for the images of the units of a new run, until one of each split is found.

    Raises UserError: none of them is there, so that every row would be an error; StoreError: see `ImageRoot`.
    """
    for split in dict.fromkeys(unit.split for unit in units):
        root, index, of_split = roots[split], indexes[split], [unit for unit in units if unit.split == split]
        step = -(-sum(unit.rows for unit in of_split) // _MOST_LOOKED_FOR)
        parts = ((unit, start) for unit in of_split for start in range(unit.start, unit.stop, _AT_ONCE))
        looked_for = (
            record for unit, start in parts for record in index.records(start, min(start + _AT_ONCE, unit.stop))[::step]
        )
        missing = []
        for record in looked_for:
            if root.contains(record.file_name):
                break
            missing.append(record.file_name)
        else:
            raise UserError(
                f"{root.location} has no image of the split {split}: {count(len(missing), 'image')} looked for, such "
                f"as {single_line(missing[0])}; check this location, and the names in the annotations"
            )


def keep_indexes(roots: Mapping[str, ImageRoot], folder: RunFolder) -> None:
    """Copy the indexes of the roots into the run's store, and delete those of earlier states of its images."""
    used = {index for root in roots.values() if (index := _index(root)) is not None}
    for path in used:
        name = path.relative_to(folder.root.absolute()).as_posix()
        if folder.store and not folder.store.head(name):
            folder.store.put(name, path)
    for path in folder.private.absolute().glob("images-*.arrow"):
        if path not in used:
            path.unlink()


def _index(root: ImageRoot) -> Path | None:
    if isinstance(root, ArchiveRoot | ObjectRoot) and root.index:
        return root.index.path
    return None


def as_named(root: ImageRoot, folder: RunFolder) -> str:
    """A location as the manifest names it: a folder within the run is relative, so that both can be moved."""
    if is_uri(root.location) or folder.store:
        return root.location
    path, run = Path(root.location), folder.root.resolve()
    return str(path.relative_to(run) if path.is_relative_to(run) else path)
