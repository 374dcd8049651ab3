"""A run as a source: its rows, before its stages filled in triplets and pairs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, location
from sgpipe.recipe import Recipe, SourceConfig, SplitConfig
from sgpipe.records import SCHEMA, TRAINING_CONFIDENCE
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.run_folder import RunFiles, RunFolder
from sgpipe.storage.run_records import relation_rows
from sgpipe.storage.shards import DATA, IMAGE_COLUMN, flat, read_checked, replace_column
from sgpipe.storage.source_index import write_index
from sgpipe.utils.console import count
from sgpipe.utils.hashing import fingerprint

_COLUMNS = [name for name in SCHEMA.names if name not in ("triplets", "pairs")]
_TRIPLET = ("subject_category", "predicate", "object_category")
# Stages that run again. The errors of others stay: there are no objects, or nobody knows how large
# the image is.
_ERRORS_OF = ("load", "caption", "parse", "ground", "pair", "tag", "worker")


def open_parent(place: str | Location | None) -> RunFiles:
    """Return a run that is extended.

    Raises:
        UserError: it is missing, incomplete, being written, or empty.
    """
    if place is None:
        raise UserError("source.run is not set (--extend)")
    place = location(place)
    files = RunFiles(place)
    if files.problems:
        raise UserError(files.problems[0])
    if isinstance(place, Path) and RunFolder(place).is_locked:
        raise UserError(f"another process is writing into {place}; try again when it has ended")
    lacks = _lacks(files)
    if lacks is not None:
        raise UserError(f"{place} {lacks}: finish it first with the command that started it")
    return files


def _lacks(files: RunFiles) -> str | None:
    """Return what an incomplete run lacks."""
    manifest = files.manifest
    first_rows: dict[str, int] = {}
    stops: dict[str, int] = {}
    for shard in manifest.shards:
        first_rows.setdefault(shard.split, shard.start if "part" in manifest.run else 0)
        stops[shard.split] = shard.stop
    images = 0
    for split, first_row in first_rows.items():
        missing = manifest.missing(split, range(first_row, stops[split]))
        images += sum(stop - start for start, stop in missing)
    if images:
        return f"lacks {count(images, 'image')}"
    if not manifest.shards:
        return "contains no images"
    return "is not complete" if manifest.run.get("finished") is False else None


def check_run(recipe: Recipe) -> None:
    """Check the settings of a recipe that extends a run.

    Raises:
        UserError: as `open_parent`; nothing gives captions; or a setting is not for such runs.
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


def prepare_run(source: SourceConfig) -> SourceConfig:
    """Return the source with all splits of its run, and where their images are.

    Raises:
        UserError: as `open_parent`; there is no such split; or images are in shards in a store.
    """
    files = open_parent(source.run)
    first_shards = {shard.split: shard for shard in reversed(files.manifest.shards)}
    unknown = source.splits.keys() - first_shards.keys()
    if unknown:
        raise UserError(
            f"{source.run} has no split {min(unknown)!r}; it has {', '.join(sorted(first_shards))}"
        )
    splits = {split: SplitConfig(images=source.images(split)) for split in source.splits}
    for split in sorted(first_shards.keys() - splits.keys()):
        splits[split] = SplitConfig(images=_images_of(files, first_shards[split], source))
    return source.model_copy(update={"splits": splits})


def _images_of(files: RunFiles, shard: ShardEntry, source: SourceConfig) -> str:
    """Return where the images of a shard's split are: in the shards, or in a root."""
    with files.open(shard.file) as file:
        is_embedded = IMAGE_COLUMN in file.schema_arrow.names
    if not is_embedded:
        return files.manifest.image_root(shard.split).location
    if not isinstance(files.storage, Path):
        raise UserError(
            f"{source.run} keeps its images in a store: `sgpipe fetch` it first, or pass --images"
        )
    return f"{files.storage / DATA}/{shard.split}"


def stamp_run(source: SourceConfig, split: str) -> dict[str, str]:
    """Return what identifies the rows that the records of a split are read from."""
    manifest = open_parent(source.run).manifest
    content: dict[str, object] = {
        "shards": [shard.sha256 for shard in manifest.shards if shard.split == split]
    }
    if source.threshold is not None:
        content["threshold"] = source.threshold
    return {
        "run": str(manifest.run.get("fingerprint")),
        "annotations_sha256": fingerprint(content),
    }


def index_run(source: SourceConfig, split: str, path: Path, stamp: Mapping[str, object]) -> None:
    """Write the source index of a split: the rows of the run before its stages filled in triplets
    and pairs.
    """
    files = open_parent(source.run)
    numbers = dict[str, int].fromkeys(files.manifest.class_lists["objects"], 0)
    known = Counter[tuple[str, ...]]()

    def tables() -> Iterator[pa.Table]:
        for shard in files.manifest.shards:
            if shard.split != split:
                continue
            table = read_checked(files.storage, shard, _COLUMNS, source.run)
            if source.threshold is not None:
                table = _without_doubtful(table, source.threshold)
            _count_triplets(table, known)
            _add_numbers(table, numbers)
            yield _without_errors(table)

    def meta() -> dict[str, object]:  # complete only after the last table
        return {
            "annotations": str(source.run),
            "captions": "",
            "problems": {},
            "located": True,
            "files": stamp,
            "run": stamp["run"],
            "annotations_sha256": stamp["annotations_sha256"],
            "categories": sorted(numbers),
            "category_ids": [number for _, number in sorted(numbers.items())],
            "known": [[*triplet, times] for triplet, times in sorted(known.items())],
        }

    write_index(path, tables(), meta)


def _without_doubtful(table: pa.Table, threshold: float) -> pa.Table:
    """Return a table without relations of less confidence; human annotations have none."""
    rows, relations = flat(table["relations"])
    confidences = pc.struct_field(relations, "confidence")
    is_enough = pc.greater_equal(confidences, pa.scalar(threshold, pa.float32()))
    chosen = pc.fill_null(is_enough, True)
    lengths = np.bincount(rows[chosen.to_numpy(zero_copy_only=False)], minlength=len(table))
    offsets = pa.array([0, *np.cumsum(lengths).tolist()], pa.int32())
    field = SCHEMA.field("relations")
    values = pa.ListArray.from_arrays(offsets, relations.filter(chosen)).cast(field.type)
    return table.set_column(table.schema.get_field_index("relations"), field, values)


def _count_triplets(table: pa.Table, known: Counter[tuple[str, ...]]) -> None:
    """Count the relations that are certain enough to train on."""
    triplets = relation_rows(table, TRAINING_CONFIDENCE).group_by(list(_TRIPLET))
    for row in triplets.aggregate([([], "count_all")]).to_pylist():
        known[tuple(row[name] for name in _TRIPLET)] += row["count_all"]


def _add_numbers(table: pa.Table, numbers: dict[str, int]) -> None:
    """Add the numbers of the classes that occur."""
    _, objects = flat(table["objects"])
    names = ["category", "category_id"]
    classes = pa.table({name: pc.struct_field(objects, name) for name in names})
    for row in classes.group_by(names).aggregate([]).to_pylist():
        numbers[row["category"]] = row["category_id"]


def _without_errors(table: pa.Table) -> pa.Table:
    """Return a table without the errors of stages that run again."""
    errors: list[str | None] = []
    for error in table["error"].to_pylist():
        is_of_stage = error and error.partition(":")[0] in _ERRORS_OF
        errors.append(None if is_of_stage else error)
    statuses = ["error" if error else "ok" for error in errors]
    return replace_column(replace_column(table, "error", errors), "status", statuses)
