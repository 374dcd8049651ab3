"""A run, import or corrected run as a source: its images, boxes, captions and relations, for `generate --extend`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, location
from sgpipe.recipe import Recipe, SourceConfig, SplitConfig
from sgpipe.records import SCHEMA, TRAINING_CONFIDENCE
from sgpipe.storage.manifest import MANIFEST
from sgpipe.storage.run_folder import RunFiles, RunFolder
from sgpipe.storage.shards import DATA, IMAGE_COLUMN, read_checked, relation_rows
from sgpipe.storage.source_index import write_index
from sgpipe.utils.console import count
from sgpipe.utils.hashing import fingerprint

_COLUMNS = [name for name in SCHEMA.names if name not in ("triplets", "pairs")]
_TRIPLET = ("subject_category", "predicate", "object_category")
# Stages that run again. The errors of others stay: there are no objects, or nobody knows how large the image is.
_ERRORS_OF = ("load", "caption", "parse", "ground", "pair", "tag", "worker")


def open_parent(place: str | Location | None) -> RunFiles:
    """Return a run that is extended. Raises UserError: it is missing, incomplete, being written, or empty."""
    if place is None:
        raise UserError("source.run is not set (--extend)")
    place = location(place)
    if isinstance(place, Path) and not (place / MANIFEST).is_file():
        raise UserError(f"{place} is not a run or an import: `sgpipe import` makes one of annotations and exports")
    files = RunFiles(place)
    run, shards = files.manifest.run, files.manifest.shards
    if files.problems:
        raise UserError(files.problems[0])
    if isinstance(place, Path) and RunFolder(place).is_locked:
        raise UserError(f"another process is writing into {place}; try again when it has ended")
    stops = {shard.split: shard.stop for shard in shards}
    lacking = sum(stop - start for split, n in stops.items() for start, stop in files.manifest.missing(split, n))
    if not shards or lacking or run.get("finished") is False:
        lacks = f"lacks {count(lacking, 'image')}" if lacking else "is not complete" if shards else "contains no images"
        raise UserError(f"{place} {lacks}: finish it first with the command that started it")
    return files


def check_run(recipe: Recipe) -> None:
    """Raises UserError: as `open_parent`; nothing gives captions; or a setting is not for runs that are extended."""
    shards = open_parent(recipe.source.run).manifest.shards
    if recipe.pair.restrict == "group":
        raise UserError("pair.restrict=group gives pairs the predicates of others, known or not: not with --extend")
    pair, captioner = recipe.pair, recipe.caption.captioner
    known = pair.known if recipe.tag.scores else 0
    needed = captioner is None and pair.candidates in ("captions", "image") and not known
    if needed and not any(shard.counts.get("captions") for shard in shards):
        raise UserError(f"{recipe.source.run} has no captions: set caption.captioner (--captioner) or pair.known")


def prepare_run(source: SourceConfig) -> SourceConfig:
    """Return the source with the splits of its run, and where their images are. Raises UserError."""
    files = open_parent(source.run)
    shards = {shard.split: shard for shard in reversed(files.manifest.shards)}
    if unknown := source.splits.keys() - shards.keys():
        raise UserError(f"{source.run} has no split {min(unknown)!r}; it has {', '.join(sorted(shards))}")
    splits = {split: SplitConfig(images=source.images(split)) for split in source.splits}
    for split in sorted(shards.keys() - splits.keys()):
        with files.open(shards[split].file) as file:
            embedded = IMAGE_COLUMN in file.schema_arrow.names
        if embedded and not isinstance(files.storage, Path):
            raise UserError(f"{source.run} keeps its images in a store: `sgpipe fetch` it first, or pass --images")
        images = f"{files.storage / DATA}/{split}" if embedded else files.manifest.image_root(split).location
        splits[split] = SplitConfig(images=images)
    return source.model_copy(update={"splits": splits})


def stamp_run(source: SourceConfig, split: str) -> dict[str, str]:
    """Return what identifies the rows of a split: the run, and the content of its shards."""
    manifest = open_parent(source.run).manifest
    shards = [shard.sha256 for shard in manifest.shards if shard.split == split]
    content = {"shards": shards} | ({} if source.threshold is None else {"threshold": source.threshold})
    return {"run": str(manifest.run.get("fingerprint")), "annotations_sha256": fingerprint(content)}


def _keep_confident(table: pa.Table, threshold: float) -> pa.Table:
    """Return the rows without relations of a lower confidence; human annotations, which have none, stay."""
    lists = table["relations"].combine_chunks()
    relations, images = pc.list_flatten(lists), pc.list_parent_indices(lists)
    enough = pc.greater_equal(pc.struct_field(relations, "confidence"), pa.scalar(threshold, pa.float32()))
    kept = pc.fill_null(enough, True)
    ends = np.cumsum(np.bincount(images.filter(kept), minlength=len(table)))
    made = pa.ListArray.from_arrays(pa.array([0, *ends.tolist()], pa.int32()), relations.filter(kept), lists.type)
    return table.set_column(table.schema.get_field_index("relations"), table.schema.field("relations"), made)


def index_run(source: SourceConfig, split: str, path: Path, meta: Mapping[str, Any]) -> None:
    """Write the source index of a split: the rows of the run before its stages filled in triplets and pairs."""
    files = open_parent(source.run)
    numbers = dict[str, int].fromkeys((files.manifest.run.get("labels") or {}).get("objects", ()), 0)
    known = Counter[tuple[str, ...]]()

    def tables() -> Iterator[pa.Table]:
        for shard in (shard for shard in files.manifest.shards if shard.split == split):
            table = read_checked(files.storage, shard, _COLUMNS, source.run)
            if source.threshold is not None:
                table = _keep_confident(table, source.threshold)
            confident = relation_rows(table, TRAINING_CONFIDENCE).group_by(list(_TRIPLET))
            for row in confident.aggregate([([], "count_all")]).to_pylist():
                known[tuple(row[name] for name in _TRIPLET)] += row["count_all"]
            objects = pc.list_flatten(table["objects"].combine_chunks())
            classes = pa.table({name: pc.struct_field(objects, name) for name in ("category", "category_id")})
            distinct = classes.group_by(classes.column_names).aggregate([]).to_pylist()
            numbers.update((row["category"], row["category_id"]) for row in distinct)
            errors = table["error"].to_pylist()
            errors = [None if error and error.partition(":")[0] in _ERRORS_OF else error for error in errors]
            for name, values in (("error", errors), ("status", ["error" if error else "ok" for error in errors])):
                field = table.schema.field(name)
                table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
            yield table

    described = {"annotations": str(source.run), "captions": "", "problems": {}, "located": True, **meta}

    def found() -> dict[str, Any]:
        counts = [[*triplet, times] for triplet, times in sorted(known.items())]
        ids = [number for _, number in sorted(numbers.items())]
        stated = {"categories": sorted(numbers), "category_ids": ids, "known": counts}
        return {**described, **stamp_run(source, split), **stated}

    write_index(path, tables(), found)
