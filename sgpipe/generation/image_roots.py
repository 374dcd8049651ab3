"""The images of a run: whether they are there, and where they are now."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import (
    ImageRoot,
    IndexFolder,
    absolute,
    existing_images,
    has_images,
    lacks_images,
)
from sgpipe.files.index import IndexReference, KeptListing, copy_index, put_index
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.files.roots import FolderRoot, ObjectRoot
from sgpipe.recipe import SourceConfig
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_folder import PRIVATE, RunFolder
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import Progress, single_line

# images of a split
_MOST_LOOKED_FOR = 100_000
_AT_ONCE = 1000
_LISTINGS = "listings.json"  # in the private folder of a run
_NAMES_PEEKED = 20  # of annotations that are not read yet


def check_image_folders(source: SourceConfig) -> None:
    """Look into folders for annotated images before annotations are read, which takes minutes.

    Raises:
        UserError: a folder has no images, or none of the first ones that the annotations name.
    """
    for name, split in source.splits.items():
        if split.annotations is None:
            continue
        place = source.images(name)
        if not has_images(place):
            raise UserError(
                f"{place} contains no images and no archives of them: check the image folder of"
                f" {name}"
            )
        image_names = first_image_names(source.path(split.annotations))
        if image_names and lacks_images(place, image_names):
            raise _no_image_of(place, name, image_names[0])


def first_image_names(annotations: Location) -> list[str]:
    """Return the first file names of a COCO file on this machine; none if it lists other things
    before.
    """
    names: list[str] = []
    if not isinstance(annotations, Path):
        return names
    with suppress(UserError):  # whoever reads the whole file says what is wrong with it
        for key, item in JsonStream(annotations):
            if key == "images" and isinstance(item, dict):
                names.append(str(item.get("file_name", "")))
            if key == "annotations" or len(names) == _NAMES_PEEKED:
                break
    return names


def _no_image_of(place: object, split: str, file_name: str) -> UserError:
    """Return the error of an image folder that is another dataset's."""
    return UserError(
        f"{place} has no image of the split {split}, such as {single_line(file_name)}; check this"
        " location, and the names in the annotations"
    )


def open_image_roots(
    source: SourceConfig, folder: RunFolder, progress: Progress, *, relists: bool = False
) -> dict[str, ImageRoot]:
    """Return the root of each split as it is now, on the hub and in a store as when the run began.
    Raises as `existing_images`.

    Args:
        relists: prefixes of stores are as they are now.
    """
    run = folder.store or folder.root
    listings = kept_listings(folder)
    indexes = IndexFolder(run, progress, versioned=True, kept=listings, relists=relists)
    before = (
        Manifest.load(folder.root).run.get("images", {})
        if (folder.root / MANIFEST).exists()
        else {}
    )
    roots = {}
    for split in source.splits:
        location = absolute(source.images(split))
        if location.startswith("hf://") and before.get(split, "").startswith(f"{location}@"):
            location = before[split]
        inventory = source.splits[split].inventory
        listed = replace(indexes, inventory=inventory and source.path(inventory))
        roots[split] = existing_images(location, listed)
    return roots


def check_names(
    roots: Mapping[str, ImageRoot], indexes: Mapping[str, SourceIndex], rows: Mapping[str, range]
) -> None:
    """Look for an image of each split of a new run among the rows that are asked for.

    Raises:
        UserError: none is there, so all rows would be errors.
    """
    for split, asked in rows.items():
        root = roots[split]
        step = -(-len(asked) // _MOST_LOOKED_FOR)
        starts = asked[::_AT_ONCE]
        stops = (min(start + _AT_ONCE, asked.stop) for start in starts)
        parts = map(indexes[split].records, starts, stops)
        names = (record.file_name for part in parts for record in part[::step])
        first = next(names, None)
        if first is not None and not root.contains(first) and not any(map(root.contains, names)):
            raise _no_image_of(root.location, split, first)


def kept_listings(folder: RunFolder) -> dict[str, KeptListing]:
    """Return what the run has listed, by location, as its folder or else its store says."""
    path = folder.private / _LISTINGS
    content = path.read_bytes() if path.exists() else None
    if content is None and folder.store is not None:
        content = (folder.store / f"{PRIVATE}/{_LISTINGS}").read()
    listings = json.loads(content or b"{}")
    return {location: KeptListing(**listing) for location, listing in listings.items()}


def keep_listings(roots: Mapping[str, ImageRoot], folder: RunFolder, when: str) -> None:
    """Note which prefixes were listed, so that they are not listed again.

    Args:
        when: for those whose objects are others than before.
    """
    before = kept_listings(folder)
    listings: dict[str, dict[str, str]] = {}
    for root in roots.values():
        if isinstance(root, ObjectRoot | FolderRoot) and root.index is not None:
            listing = before.get(root.location)
            if listing is None or listing.index != root.index.name:
                listing = KeptListing(root.index.name, when)
            listings[root.location] = vars(listing)
    if listings:
        write_text(folder.private / _LISTINGS, json.dumps(listings))


def keep_indexes(roots: Mapping[str, ImageRoot], folder: RunFolder) -> None:
    """Copy the indexes of the roots into the run and its store, and delete those of earlier states
    of its images.
    """
    names: set[str] = set()
    for root in roots.values():
        if root.index is not None:
            names.add(root.index.name)
            _keep_index(root.index, folder)
    listings = folder.private / _LISTINGS
    if folder.store is not None and listings.exists():
        (folder.store / f"{PRIVATE}/{_LISTINGS}").put(listings)
    for path in folder.private.glob("images-*"):
        if path.name not in names:
            shutil.rmtree(path)


def _keep_index(index: IndexReference, folder: RunFolder) -> None:
    copy = folder.private / index.name
    copy_index(index.path, copy)
    if folder.store is not None:
        put_index(copy, folder.store / f"{PRIVATE}/{index.name}")
