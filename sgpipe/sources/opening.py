"""The sources of a recipe: annotation files, folders, datasets of the hub, runs and the miniworld.

Annotations in, an index of records out, without decoding any image.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, absolute, existing_images
from sgpipe.files.index import IndexReference
from sgpipe.files.locations import Location, content_id
from sgpipe.files.roots import FolderRoot, ObjectRoot
from sgpipe.recipe import SourceConfig
from sgpipe.sources.coco import locate_images, read_coco
from sgpipe.sources.detections import Detections, Origin, write_detections
from sgpipe.sources.doubts import doubt_detections, settle_boxes
from sgpipe.sources.extended_run import index_run, prepare_run, stamp_run
from sgpipe.sources.folder import list_folder, read_folder
from sgpipe.sources.hub import prepare_hub, read_split, stamp_split
from sgpipe.sources.stored_folder import index_prefix
from sgpipe.sources.vocabulary import category_names
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils import __version__
from sgpipe.utils.hashing import json_sha256


def prepare_source(
    source: SourceConfig, private: Path, say: Callable[[str], None]
) -> tuple[SourceConfig, GroundTruth | None]:
    """Return the source with its images in place, and their ground truth if there is any.

    Args:
        private: the run's folder for files of its own; a source that makes its images puts them
            there.

    Raises:
        UserError, StoreError: the source cannot be used.
    """
    if source.synthetic:
        # It takes longer to import than other sources to open.
        from sgpipe.sources.miniworld import MiniworldFiles

        return MiniworldFiles(private / "drawn").prepare(source, say)
    if source.format == "hub":
        source = prepare_hub(source)
    if source.format == "run":
        source = prepare_run(source)
    if source.ground_truth is None:
        return source, None
    ground_truth = GroundTruth(
        source.path(source.ground_truth),
        image_data=source.image_data and source.path(source.image_data),
    )
    Manifest.load(ground_truth.relations)  # fails now, not at the end of a long run
    if ground_truth.image_data:
        content_id(ground_truth.image_data)
    return source, ground_truth


def open_source(
    source: SourceConfig, split: str, path: Path, images: ImagePlace | None = None
) -> SourceIndex:
    """Return the index of a split at `path`, built from its annotation file unless it is already
    there.

    Args:
        images: where they are, if not where the source says.
    """
    images = images or existing_images(source.images(split))
    files = _stamp(source, split, images)
    index = _fresh_index(path, files)
    if index is not None:
        return index
    if source.format == "run":
        index_run(source, split, path, files)
        return SourceIndex(path)
    annotations = source.splits[split].annotations
    listing = _listing(images)
    located = True
    if source.format == "hub":
        detections, origin = read_split(source, split)
    elif annotations is None and listing is not None:
        index_prefix(path, absolute(images), listing.opened, split, files)
        return SourceIndex(path)
    elif annotations is None:
        detections, origin = read_folder(images, split=split)
    else:
        detections, origin = _read_annotations(source, annotations, split)
        if source.format == "objects365":
            located = locate_images(detections, images)
    doubts = doubt_detections(detections, origin["captions"] or origin["annotations"])
    notes = [*origin.get("notes", ()), *doubts]
    meta = {**origin, "files": files, "located": located, "notes": notes}
    write_detections(path, detections, meta)
    return SourceIndex(path)


def _listing(images: ImagePlace) -> IndexReference | None:
    """Return the list of a prefix of a store, or of an inventory; None: they are elsewhere, or not
    listed.
    """
    return images.index if isinstance(images, ObjectRoot | FolderRoot) else None


def _fresh_index(path: Path, files: Mapping[str, object]) -> SourceIndex | None:
    """Return the index if it was built from these files."""
    try:
        index = SourceIndex(path)
        known = index.meta
        is_same = known.get("located") and known.get("files") == files
        return index if is_same and index.is_whole else None
    except UserError:  # missing or damaged: it is only a cache
        return None


def _read_annotations(
    source: SourceConfig, annotations: Location, split: str
) -> tuple[Detections, Origin]:
    """Return the boxes and captions of annotation files in COCO's format."""
    captions = source.splits[split].captions
    detections, origin = read_coco(
        source.path(annotations),
        source.path(captions) if captions else None,
        dataset=source.format,
        split=split,
    )
    origin["notes"] = settle_boxes(detections, source.boxes, str(annotations))
    if source.boxes not in (None, "xywh"):
        origin["annotations_sha256"] += f" as {source.boxes}"
    if source.format == "objects365":
        spelled = category_names("objects365")  # the file's have spelling errors
        detections.categories |= {
            number: spelled[number] for number in detections.categories.keys() & spelled.keys()
        }
    return detections, origin


def _stamp(source: SourceConfig, split: str, images: ImagePlace) -> dict[str, object]:
    """Return what identifies the files that an index was read from; if it changes, they are read
    again.
    """
    config = source.splits[split]
    stamp: dict[str, object] = {"version": __version__}
    if source.format == "hub":
        return stamp | stamp_split(source, split)
    if source.format == "run":
        return stamp | stamp_run(source, split)
    stamp |= {"format": source.format, "images": absolute(images), "boxes": source.boxes}
    listing = _listing(images)
    if config.annotations is None and listing is not None:
        return stamp | {"contents": listing.name}
    if config.annotations is None:
        folder = list_folder(images)
        states = [(image.name, image.size, image.state) for image in folder.images.values()]
        return stamp | {"contents": [json_sha256(states), json_sha256(folder.unread)]}
    files = {"annotations": config.annotations, "captions": config.captions}
    return stamp | {
        name: content_id(source.path(path)) for name, path in files.items() if path is not None
    }
