"""Open the source of a recipe: annotations in, an index of records out, without decoding any image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, absolute, existing_images
from sgpipe.files.locations import content_id
from sgpipe.recipe import SourceConfig
from sgpipe.sources import miniworld
from sgpipe.sources.coco import locate_images, read_coco
from sgpipe.sources.detections import write_detections
from sgpipe.sources.doubts import doubt_detections, settle_boxes
from sgpipe.sources.folder import fingerprint_folder, read_folder
from sgpipe.sources.hub import prepare_hub, read_split, stamp_split
from sgpipe.sources.run import index_run, prepare_run, stamp_run
from sgpipe.sources.vocabulary import category_names
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils import __version__


def prepare_source(
    source: SourceConfig, private: Path, say: Callable[[str], None]
) -> tuple[SourceConfig, GroundTruth | None]:
    """Return the source with its images in place, and their ground truth if there is any.

    `private`: the run's folder for files of its own; a source that makes its images puts them there. Raises UserError,
    StoreError.
    """
    if source.synthetic:
        splits, ground_truth = miniworld.prepare(source.miniworld, private, say)
        return source.model_copy(update={"root": None, "splits": splits}), ground_truth
    if source.format == "hub":
        source = prepare_hub(source)
    if source.format == "run":
        source = prepare_run(source)
    if source.ground_truth is None:
        return source, None
    ground_truth = GroundTruth(
        source.path(source.ground_truth), image_data=source.image_data and source.path(source.image_data)
    )
    Manifest.load(ground_truth.relations)  # fails now, not at the end of a long run
    if ground_truth.image_data:
        content_id(ground_truth.image_data)
    return source, ground_truth


def open_source(
    source: SourceConfig, split: str, path: Path, images: ImagePlace | None = None, new: Path | None = None
) -> SourceIndex:
    """Return the index of a split at `path`, built from its annotation file unless it is already there.

    `images`: where they are, if not where the source says. `new`: where it is built, by default in its place.
    """
    images = images or existing_images(source.images(split))
    files = _stamp(source, split, images)
    try:
        index = SourceIndex(path)
        if index.meta.get("files") == files and index.meta.get("located") and index.is_whole():
            return index
    except UserError:  # missing or damaged: it is only a cache
        pass
    if source.format == "run":
        index_run(source, split, new or path, {"files": files})
        return SourceIndex(new or path)
    config, located, notes = source.splits[split], True, list[str]()
    if source.format == "hub":
        detections, meta = read_split(source, split)
    elif config.annotations is None:
        detections, meta = read_folder(images, split=split)
    else:
        detections, meta = read_coco(
            source.path(config.annotations),
            source.path(config.captions) if config.captions else None,
            dataset=source.format,
            split=split,
            names=category_names("objects365") if source.format == "objects365" else None,
        )
        notes = settle_boxes(detections, source.boxes, str(config.annotations))
        if source.boxes not in (None, "xywh"):
            meta["annotations_sha256"] += f" as {source.boxes}"
        if source.format == "objects365":
            located = locate_images(detections, images)
    notes = [*meta.get("notes", ()), *notes, *doubt_detections(detections, meta["captions"] or meta["annotations"])]
    write_detections(new or path, detections, meta | {"files": files, "located": located, "notes": notes})
    return SourceIndex(new or path)


def _stamp(source: SourceConfig, split: str, images: ImagePlace) -> dict[str, Any]:
    """Return what identifies the files that an index was read from; if it changes, they are read again."""
    config = source.splits[split]
    if source.format == "hub":
        return {"version": __version__, **stamp_split(source, split)}
    if source.format == "run":
        return {"version": __version__, **stamp_run(source, split)}
    files = {"annotations": config.annotations, "captions": config.captions}
    stamp: dict[str, Any] = {
        "version": __version__,
        "format": source.format,
        "images": absolute(images),
        "boxes": source.boxes,
    }
    if config.annotations is None:
        stamp["contents"] = fingerprint_folder(images)
    return stamp | {name: content_id(source.path(path)) for name, path in files.items() if path is not None}
