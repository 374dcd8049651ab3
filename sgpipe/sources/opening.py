"""The sources of a recipe: annotation files, folders, datasets of the hub, runs and the miniworld.

Annotations in, an index of records out, without decoding any image.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.files import roots
from sgpipe.files.image_roots import ImagePlace, absolute, existing_images, image_root
from sgpipe.files.locations import Location, ObjectInfo, content_id, location
from sgpipe.images import reads_heif
from sgpipe.recipe import Recipe, SourceConfig, SplitConfig
from sgpipe.records import FOLDER_DATASET, SCHEMA, TRAINING_CONFIDENCE
from sgpipe.sources import fields
from sgpipe.sources.coco import locate_images, read_coco
from sgpipe.sources.detections import Detections, Origin, size_or_reason, write_detections
from sgpipe.sources.doubts import doubt_detections, settle_boxes
from sgpipe.sources.hub import prepare_hub, read_split, stamp_split
from sgpipe.sources.vocabulary import category_names
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth, RunFiles, RunFolder
from sgpipe.storage.shards import DATA, IMAGE_COLUMN, flat, read_checked, relation_rows
from sgpipe.storage.source_index import SourceIndex, write_index
from sgpipe.utils import __version__
from sgpipe.utils.console import count
from sgpipe.utils.hashing import file_sha256, fingerprint
from sgpipe.utils.prefetch import prefetch

# Texts that belong to an image of the same name.
_SIDECARS = (".json", ".txt", ".xml", ".xmp", ".csv", ".yaml", ".yml", ".md", ".aae")
_MOST_NAMED = 5
# that are read together where opening a file waits
_HEADERS_PER_THREAD = 4
_HEADERS_AT_ONCE = 4096


_COLUMNS = [name for name in SCHEMA.names if name not in ("triplets", "pairs")]
_TRIPLET = ("subject_category", "predicate", "object_category")
# Stages that run again. The errors of others stay: there are no objects, or nobody knows how large
# the image is.
_ERRORS_OF = ("load", "caption", "parse", "ground", "pair", "tag", "worker")


def prepare_source(
    source: SourceConfig, private: Path, say: Callable[[str], None]
) -> tuple[SourceConfig, GroundTruth | None]:
    """Return the source with its images in place, and their ground truth if there is any.

    `private`: the run's folder for files of its own; a source that makes its images puts them
    there. Raises UserError, StoreError.
    """
    if source.synthetic:
        from sgpipe.sources.miniworld import (
            MiniworldFiles,
        )  # takes longer to import than other sources to open

        return MiniworldFiles(private / "drawn").prepare(source, say)
    if source.format == "hub":
        source = prepare_hub(source)
    if source.format == "run":
        source = _prepare_run(source)
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

    `images`: where they are, if not where the source says.
    """
    images = images or existing_images(source.images(split))
    files = _stamp(source, split, images)
    try:
        index = SourceIndex(path)
        known = index.meta
        if (
            known.get("files") == files
            and known.get("located")
            and known.get("sha256") == file_sha256(path)
        ):
            return index
    except UserError:  # missing or damaged: it is only a cache
        pass
    if source.format == "run":
        _index_run(source, split, path, files)
        return SourceIndex(path)
    config = source.splits[split]
    located = True
    notes = list[str]()
    if source.format == "hub":
        detections, meta = read_split(source, split)
    elif config.annotations is None:
        detections, meta = read_folder(images, split=split)
    else:
        captions = source.path(config.captions) if config.captions else None
        detections, meta = read_coco(
            source.path(config.annotations), captions, dataset=source.format, split=split
        )
        notes = settle_boxes(detections, source.boxes, str(config.annotations))
        if source.boxes not in (None, "xywh"):
            meta["annotations_sha256"] += f" as {source.boxes}"
        if source.format == "objects365":
            names = category_names("objects365")  # the file's have spelling errors
            detections.categories = {
                number: names.get(number, name) for number, name in detections.categories.items()
            }
            located = locate_images(detections, images)
    notes = [
        *meta.get("notes", ()),
        *notes,
        *doubt_detections(detections, meta["captions"] or meta["annotations"]),
    ]
    write_detections(path, detections, {**meta, "files": files, "located": located, "notes": notes})
    return SourceIndex(path)


def _stamp(source: SourceConfig, split: str, images: ImagePlace) -> dict[str, Any]:
    """Return what identifies the files that an index was read from; if it changes, they are read
    again.
    """
    config = source.splits[split]
    stamp = dict[str, Any](version=__version__)
    if source.format == "hub":
        return stamp | stamp_split(source, split)
    if source.format == "run":
        manifest = open_parent(source.run).manifest
        shards = [shard.sha256 for shard in manifest.shards if shard.split == split]
        content = {"shards": shards} | (
            {} if source.threshold is None else {"threshold": source.threshold}
        )
        return stamp | {
            "run": str(manifest.run.get("fingerprint")),
            "annotations_sha256": fingerprint(content),
        }
    stamp |= {"format": source.format, "images": absolute(images), "boxes": source.boxes}
    if config.annotations is None:
        folder = list_folder(images)
        states = [(image.name, image.size, image.state) for image in folder.images.values()]
        return stamp | {"contents": [_hash(states), _hash(folder.unread)]}
    files = {"annotations": config.annotations, "captions": config.captions}
    return stamp | {
        name: content_id(source.path(path)) for name, path in files.items() if path is not None
    }


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


SUFFIXES = (*roots.SUFFIXES, *roots.HEIF_SUFFIXES) if reads_heif() else roots.SUFFIXES


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder by name, sorted, without hidden ones; `unread`: neither images nor
    texts of one.
    """

    images: Mapping[str, ObjectInfo]
    unread: Sequence[str]

    @property
    def notes(self) -> list[str]:
        others = len(self.unread) - _MOST_NAMED
        more = f" and {count(others, 'other')}" if others > 0 else ""
        shown = ", ".join(map(fields.single_line, self.unread[:_MOST_NAMED]))
        notes = (
            [f"{count(len(self.unread), 'file')} not read: {shown}{more}"] if self.unread else []
        )
        if any(_suffix(name) in roots.HEIF_SUFFIXES for name in self.unread):
            notes.append("pip install 'sgpipe[heif]' reads .heic and .heif")
        return notes


def list_folder(location: ImagePlace) -> FolderFiles:
    found = [entry for entry in image_root(location).entries() if "/." not in f"/{entry.name}"]
    found.sort(key=lambda entry: entry.name)
    images = {entry.name: entry for entry in found if _suffix(entry.name) in SUFFIXES}
    others = [entry.name for entry in found if entry.name not in images]
    stems = {PurePosixPath(name).stem for name in images} | {
        PurePosixPath(name).name for name in images
    }
    unread = [
        name
        for name in others
        if not (_suffix(name) in _SIDECARS and PurePosixPath(name).stem in stems)
    ]
    return FolderFiles(images, unread)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def read_folder(location: ImagePlace, *, split: str) -> tuple[Detections, Origin]:
    """Return a root's images, boxless, by name; unreadable ones are error rows. Raises UserError:
    there are none.
    """
    root = image_root(location)
    detections = Detections(FOLDER_DATASET, split)
    files = list_folder(root)
    read = partial(size_or_reason, root)
    threads = _HEADERS_PER_THREAD * root.threads
    with prefetch(read, files.images, threads, _HEADERS_AT_ONCE) as sizes:
        for name, (size, reason) in zip(files.images, sizes, strict=True):
            shown = fields.escape_name(name)
            image = {"id": shown, "file_name": shown, "width": size[0], "height": size[1]}
            detections.add_image(image, fields.why_not_stored(name) or reason)
    if not detections.file_names:
        raise UserError(no_images(root.location, files.notes))
    detections.problems["unread_files"] = len(files.unread)
    hashed = _hash([[image.name, image.size] for image in files.images.values()])
    origin = Origin(
        annotations=root.location, captions="", annotations_sha256=hashed, notes=files.notes
    )
    return detections, origin


def no_images(root: str | Path, notes: Iterable[str]) -> str:
    """Return why a folder cannot be labelled, with what it contains instead of images."""
    return "; ".join(
        [f"{root} contains no images (expected files that end in {', '.join(SUFFIXES)})", *notes]
    )


def open_parent(place: str | Location | None) -> RunFiles:
    """Return a run that is extended. Raises UserError: it is missing, incomplete, being written, or
    empty.
    """
    if place is None:
        raise UserError("source.run is not set (--extend)")
    place = location(place)
    files = RunFiles(place)
    run = files.manifest.run
    shards = files.manifest.shards
    if files.problems:
        raise UserError(files.problems[0])
    if isinstance(place, Path) and RunFolder(place).is_locked:
        raise UserError(f"another process is writing into {place}; try again when it has ended")
    stops = {shard.split: shard.stop for shard in shards}
    lacking = sum(
        stop - start
        for split, n in stops.items()
        for start, stop in files.manifest.missing(split, n)
    )
    if not shards or lacking or run.get("finished") is False:
        lacks = (
            f"lacks {count(lacking, 'image')}"
            if lacking
            else "is not complete"
            if shards
            else "contains no images"
        )
        raise UserError(f"{place} {lacks}: finish it first with the command that started it")
    return files


def check_run(recipe: Recipe) -> None:
    """Raises UserError: as `open_parent`; nothing gives captions; or a setting is not for runs that
    are extended.
    """
    shards = open_parent(recipe.source.run).manifest.shards
    if recipe.pair.restrict == "group":
        raise UserError(
            "pair.restrict=group gives pairs the predicates of others, known or not: not with"
            " --extend"
        )
    pair = recipe.pair
    captioner = recipe.caption.captioner
    known = pair.known if recipe.tag.scores else 0
    needed = captioner is None and pair.candidates in ("captions", "image") and not known
    if needed and not any(shard.counts.get("captions") for shard in shards):
        raise UserError(
            f"{recipe.source.run} has no captions: set caption.captioner (--captioner) or"
            " pair.known"
        )


def _prepare_run(source: SourceConfig) -> SourceConfig:
    files = open_parent(source.run)
    shards = {shard.split: shard for shard in reversed(files.manifest.shards)}
    unknown = source.splits.keys() - shards.keys()
    if unknown:
        raise UserError(
            f"{source.run} has no split {min(unknown)!r}; it has {', '.join(sorted(shards))}"
        )
    splits = {split: SplitConfig(images=source.images(split)) for split in source.splits}
    for split in sorted(shards.keys() - splits.keys()):
        with files.open(shards[split].file) as file:
            embedded = IMAGE_COLUMN in file.schema_arrow.names
        if embedded and not isinstance(files.storage, Path):
            raise UserError(
                f"{source.run} keeps its images in a store: `sgpipe fetch` it first, or pass"
                " --images"
            )
        images = (
            f"{files.storage / DATA}/{split}"
            if embedded
            else files.manifest.image_root(split).location
        )
        splits[split] = SplitConfig(images=images)
    return source.model_copy(update={"splits": splits})


def _index_run(source: SourceConfig, split: str, path: Path, stamp: Mapping[str, Any]) -> None:
    """Write the source index of a split: the rows of the run before its stages filled in triplets
    and pairs.
    """
    files = open_parent(source.run)
    numbers = dict[str, int].fromkeys(files.manifest.class_lists["objects"], 0)
    known = Counter[tuple[str, ...]]()

    def replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
        return table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), values
        )

    def tables() -> Iterator[pa.Table]:
        for shard in (shard for shard in files.manifest.shards if shard.split == split):
            table = read_checked(files.storage, shard, _COLUMNS, source.run)
            if source.threshold is not None:
                rows, relations = flat(table["relations"])
                least = pa.scalar(source.threshold, pa.float32())
                enough = pc.greater_equal(pc.struct_field(relations, "confidence"), least)
                kept = pc.fill_null(enough, True)  # human annotations have no confidence
                ends = np.cumsum(
                    np.bincount(rows[kept.to_numpy(zero_copy_only=False)], minlength=len(table))
                )
                values = pa.ListArray.from_arrays(
                    pa.array([0, *ends.tolist()], pa.int32()), relations.filter(kept)
                )
                table = replaced(table, "relations", values.cast(SCHEMA.field("relations").type))
            confident = relation_rows(table, TRAINING_CONFIDENCE).group_by(list(_TRIPLET))
            for row in confident.aggregate([([], "count_all")]).to_pylist():
                known[tuple(row[name] for name in _TRIPLET)] += row["count_all"]
            objects = flat(table["objects"])[1]
            classes = pa.table(
                {name: pc.struct_field(objects, name) for name in ("category", "category_id")}
            )
            distinct = classes.group_by(classes.column_names).aggregate([]).to_pylist()
            numbers.update((row["category"], row["category_id"]) for row in distinct)
            errors = table["error"].to_pylist()
            errors = [
                None if error and error.partition(":")[0] in _ERRORS_OF else error
                for error in errors
            ]
            table = replaced(table, "error", pa.array(errors, pa.string()))
            yield replaced(
                table, "status", pa.array(["error" if error else "ok" for error in errors])
            )

    def meta() -> dict[str, Any]:  # complete only after the last table
        return {
            **{
                "annotations": str(source.run),
                "captions": "",
                "problems": {},
                "located": True,
                "files": stamp,
            },
            **{"run": stamp["run"], "annotations_sha256": stamp["annotations_sha256"]},
            **{
                "categories": sorted(numbers),
                "category_ids": [number for _, number in sorted(numbers.items())],
            },
            "known": [[*triplet, times] for triplet, times in sorted(known.items())],
        }

    write_index(path, tables(), meta)
