"""`sgpipe verify`: whether a run is what its manifest says, byte for byte and row for row, and what to do if not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError, existing_folder
from sgpipe.recipe import load_recipe
from sgpipe.records import NO_OBJECT, SCHEMA
from sgpipe.storage.database import quoted, scratch
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import open_shard
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils.console import count
from sgpipe.utils.hashing import file_sha256

Advance = Callable[[int, dict[str, int]], None]
_ROWS = 512  # checked together
_REPEATED = """
    with seen as (select filename, split, image_id, count(*) as times from read_parquet([{}], filename = true)
                  group by all),
         placed as (select *, row_number() over (partition by split, image_id order by filename) as place from seen)
    select filename, min(image_id), count(*) from placed where times > 1 or place > 1 group by filename"""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, which is named relative to the run."""

    file: str
    problem: str


@dataclass
class Verification:
    """What was checked, and the problems found.

    Attributes:
        at_work: a run is in progress; only what it has committed was checked.
        dropped: files that a repair moved away.
        repairable: whether a repair can remove what is damaged.
    """

    root: Path
    shards: int = 0
    images: int = 0
    at_work: bool = False
    problems: list[Problem] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    repaired: bool = False
    repairable: bool = True

    @property
    def ok(self) -> bool:
        return self.repaired or not self.problems

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "root": str(self.root), "ok": self.ok}


def verify(root: Path, *, repair: bool = False, advance: Advance | None = None) -> Verification:
    """Check every byte and row of a run, one shard in memory at a time.

    Of a run in progress only what it has committed is checked.

    Args:
        repair: remove bad shards from the manifest and move their files away; resuming the run regenerates them.
        advance: called with the number of images checked.

    Raises:
        UserError: it is not a run, its shards are in an object store, or it is to be repaired while in progress.
    """
    folder = RunFolder(root)
    if not (root / MANIFEST).exists():
        return _without_manifest(folder)
    with folder.lock() if repair else nullcontext():
        found = Verification(root, at_work=not repair and folder.is_locked)
        try:
            manifest, lines = Manifest.salvage(root)
        except UserError as error:
            found.problems.append(Problem(MANIFEST, f"{error}; it cannot be repaired"))
            found.repairable = False
            return found
        _check_place(manifest, repair)
        found.problems += [Problem(MANIFEST, f"line {number} has changed since it was written") for number in lines]
        bad = _check_shards(manifest, found, advance or (lambda images, counts: None))
        _check_leftovers(folder, manifest, found)
        further = list(_check_private(folder, found))
        if repair and found.problems:
            manifest.rewrite(bad)
            _set_aside(folder, manifest, found, further)
    return found


def _without_manifest(folder: RunFolder) -> Verification:
    """What a folder is that has no manifest. Raises UserError: no run."""
    root = folder.root
    existing_folder(root)
    if shards := len(folder.shard_files()):
        problem = Problem(
            MANIFEST,
            f"missing, but there {'is' if shards == 1 else 'are'} {count(shards, 'shard')}; it cannot be repaired",
        )
        return Verification(root, problems=[problem], repairable=False)
    if folder.is_locked:
        return Verification(root, at_work=True)
    if folder.private.is_dir():
        raise UserError(
            f"{root} holds no run: one was stopped before it wrote anything; start it again, or delete the folder"
        )
    raise UserError(f"{root} is not an sgpipe run: it has no {MANIFEST}")


def _check_place(manifest: Manifest, repair: bool) -> None:
    """Raises UserError: all shards are in an object store, or they are to be repaired and come from one."""
    store, root = manifest.run.get("store"), manifest.root
    if not store or not manifest.shards:
        return
    if repair:
        raise UserError(f"the shards of {root} come from {store}; fetch them again: sgpipe fetch {store} --out {root}")
    if not any((root / shard.file).exists() for shard in manifest.shards):
        raise UserError(f"the shards of {root} are in {store}; fetch them first: sgpipe fetch {store} --out {root}")


def _check_shards(manifest: Manifest, found: Verification, advance: Advance) -> list[ShardEntry]:
    """The bad shards; their problems are added to `found`."""
    faults: dict[str, list[str]] = {shard.file: [] for shard in manifest.shards}
    for shard, overlaps in _with_overlaps(manifest.shards):
        own = faults[shard.file]
        own += ["its rows overlap those of an earlier shard"] * overlaps
        own += _shard_faults(manifest.root, shard)
        advance(shard.rows, shard.counts)
    for file, fault in _repeated(manifest.root, [file for file, own in faults.items() if not own]):
        faults[file].append(fault)
    if found.at_work:  # the run may have replaced shards meanwhile
        listed = {shard.file for shard in Manifest.load(manifest.root).shards}
        faults = {file: own for file, own in faults.items() if file in listed}
    found.shards += len(faults)
    found.images += sum(shard.rows for shard in manifest.shards if shard.file in faults)
    found.problems += [Problem(file, fault) for file, own in faults.items() for fault in own]
    return [shard for shard in manifest.shards if faults.get(shard.file)]


def _with_overlaps(shards: Sequence[ShardEntry]) -> Iterator[tuple[ShardEntry, bool]]:
    """Shards by split and position, and whether they overlap an earlier one of their split."""
    for _, members in groupby(shards, key=lambda shard: shard.split):
        at = 0
        for shard in members:
            yield shard, shard.start < at
            at = max(at, shard.stop)


def _shard_faults(root: Path, shard: ShardEntry) -> list[str]:
    path = root / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return [f"{count(size, 'byte')}, the manifest says {shard.bytes:,}: it is cut short, or another file"]
        if file_sha256(path) != shard.sha256:
            return ["its content has changed: the checksum differs from the manifest's"]
        return list(_content_faults(path, shard))
    except FileNotFoundError:
        return ["listed in the manifest but missing"]
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]
    except UserError as error:
        return [str(error)]


def _content_faults(path: Path, shard: ShardEntry) -> Iterator[str]:
    with open_shard(path, SCHEMA.names) as file:
        if wrong := [name for name in SCHEMA.names if not _fits(file.schema_arrow.field(name))]:
            yield f"column {wrong[0]!r} has the wrong type"
            return
        if file.metadata.num_rows != shard.rows:
            yield f"{count(file.metadata.num_rows, 'row')}, the manifest says {shard.rows:,}"
        counts: Counter[str] = Counter()
        kinds = set()
        for batch in file.iter_batches(_ROWS, columns=SCHEMA.names):
            table = pa.Table.from_batches([batch])
            counts.update(count_rows(table))
            for fault in row_faults(table, shard.split):
                if (kind := fault.partition(" (")[0]) not in kinds:
                    kinds.add(kind)
                    yield fault
    for name, number in shard.counts.items():
        if name in counts and counts[name] != number:
            yield f"{_counted(counts[name], name)}, the manifest says {number:,}"


def _counted(number: int, name: str) -> str:
    """A count of the manifest in words, such as "1 matched triplet"."""
    one = {"boxes": "box", "images_with_relations": "image with relations"}.get(name, name.removesuffix("s"))
    return count(number, one.replace("_", " "), name.replace("_", " "))


def _fits(column: pa.Field) -> bool:
    return bool(column.type.equals(SCHEMA.field(column.name).type))


def _repeated(root: Path, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Shards with images that occur twice in them, or also in an earlier shard."""
    names = {str(root / file): file for file in files}
    if not names:
        return
    with scratch() as connection:
        rows = connection.execute(_REPEATED.format(", ".join(map(quoted, names)))).fetchall()
    for name, first, images in sorted(rows):
        yield names[name], f"{count(images, 'image')} already in the run, such as {first!r}"


def _check_leftovers(folder: RunFolder, manifest: Manifest, found: Verification) -> None:
    if not found.at_work:
        found.problems += [Problem(file, "the manifest does not list it") for file in folder.unlisted(manifest)]
    reason = "not a shard of this run, but programs that read data/*.parquet read it"
    found.problems += [Problem(file, reason) for file in folder.strangers()]


def _check_private(folder: RunFolder, found: Verification) -> Iterator[Path]:
    """What is damaged apart from shards: the recipe, source indexes, the ground truth."""
    recipe = folder.root / "recipe.yaml"
    if recipe.exists():
        try:
            load_recipe(str(recipe))
        except UserError as error:
            found.problems.append(Problem(recipe.name, str(error)))
            yield recipe
    for meta in sorted(folder.private.glob("index-*.json")):
        path = meta.with_suffix(".arrow")
        try:
            whole = SourceIndex(path).is_whole()
        except (UserError, OSError):
            whole = False
        if not whole:
            found.problems.append(Problem(str(path.relative_to(folder.root)), "the source index has changed"))
            yield meta
    yield from _check_ground_truth(folder, found)


def _check_ground_truth(folder: RunFolder, found: Verification) -> Iterator[Path]:
    """The folder with the ground truth, if that is part of the run and damaged: the next run regenerates it."""
    truth, private = folder.ground_truth, folder.private.absolute()
    if truth is None or not truth.relations.is_relative_to(private):
        return
    checked = [verify(part) for part in (truth.relations, truth.required) if part]
    for part in checked:
        place = part.root.relative_to(folder.root.absolute())
        found.problems += [Problem(str(place / each.file), each.problem) for each in part.problems]
    if any(part.problems for part in checked):
        yield private / truth.relations.relative_to(private).parts[0]


def _set_aside(folder: RunFolder, manifest: Manifest, found: Verification, further: Sequence[Path]) -> None:
    shards = [folder.root / file for file in (*folder.unlisted(manifest), *folder.strangers())]
    for path in (*shards, *further):
        folder.set_aside(path)
        found.dropped.append(str(path.relative_to(folder.root)))
    found.repaired = True


_POINTERS = (
    ("pairs", "subject", "objects"),
    ("pairs", "object", "objects"),
    ("relations", "subject", "objects"),
    ("relations", "object", "objects"),
    ("triplets", "caption", "captions"),
)
_NESTED = ("objects", "captions", "triplets", "pairs", "relations")
_MAY_BE_NULL = {"subject_category", "object_category", "confidence"}
_TOLERANCE = 0.01  # pixels


def row_faults(table: pa.Table, split: str) -> Iterator[str]:
    """What is wrong in rows of `SCHEMA` of a split: one line for each kind of fault.

    References (`objects` of relations, pairs and captions, `captions` of triplets), boxes, confidences, missing
    values, and error rows without a reason.
    """
    table = table.combine_chunks()
    for what, rows in _faults(table, split):
        if len(rows := np.unique(rows)):
            first = table["image_id"][int(rows[0])].as_py()
            yield f"{what} (image {first!r}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''})"


def count_rows(table: pa.Table) -> dict[str, int]:
    """As `storage.shards.count`, of a table."""
    triplets = _flat(table["triplets"])[1]
    matched = pc.and_(*(pc.is_valid(pc.struct_field(triplets, f"{end}_category")) for end in ("subject", "object")))
    totals = {name: len(_flat(table[name])[1]) for name in _NESTED}
    return {
        "images": table.num_rows,
        "errors": int(np.sum(_text(table["status"]) != "ok")),
        "boxes": totals["objects"],
        "captions": totals["captions"],
        "triplets": totals["triplets"],
        "matched_triplets": pc.sum(matched).as_py() or 0,
        "pairs": totals["pairs"],
        "relations": totals["relations"],
        "images_with_relations": int(np.sum(_lengths(table["relations"]) > 0)),
    }


def _faults(table: pa.Table, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds of faults and the rows that have them."""
    yield f"not of split {split!r}", np.flatnonzero(_text(table["split"]) != split)
    yield from _status(table)
    for name in _NESTED:
        rows, items = _flat(table[name])
        for number, child in enumerate(SCHEMA.field(name).type.value_type):
            if child.name not in _MAY_BE_NULL:
                nulls = pc.is_null(pc.struct_field(items, [number])).to_numpy(zero_copy_only=False)
                yield f"{name} without {child.name}", rows[nulls]
    for name, end, target in _POINTERS:
        rows, items = _flat(table[name])
        places = pc.fill_null(pc.struct_field(items, end), 0).to_numpy(zero_copy_only=False)
        yield f"{end} of {name} points to none of the {target}", rows[_outside(places, rows, table[target])]
    rows, items = _flat(table["captions"])
    inner, boxes = _flat(pc.struct_field(items, "boxes"))
    places = pc.fill_null(boxes, -1).to_numpy(zero_copy_only=False)
    yield "boxes of captions point to none of the objects", rows[inner][_outside(places, rows[inner], table["objects"])]
    rows, items = _flat(table["relations"])
    confidence = pc.fill_null(pc.struct_field(items, "confidence"), 1.0).to_numpy(zero_copy_only=False)
    yield "confidence is not from 0 to 1", rows[~((confidence >= 0) & (confidence <= 1))]
    yield from _boxes(table)


def _status(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    status, reason = _text(table["status"]), _text(pc.fill_null(table["error"], ""))
    failed = status == "error"
    yield "status is neither ok nor error", np.flatnonzero(~failed & (status != "ok"))
    yield "error row without a reason", np.flatnonzero(failed & (reason == ""))
    yield "error row with relations", np.flatnonzero(failed & (_lengths(table["relations"]) > 0))
    yield "error reason in a row with status ok", np.flatnonzero((status == "ok") & (reason != ""))


def _boxes(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    rows, items = _flat(table["objects"])
    boxes = pc.struct_field(items, "bbox")
    whole = _lengths(boxes) == 4
    yield "bbox is not four numbers", rows[~whole]
    values = pc.list_flatten(boxes.filter(pa.array(whole)))
    xywh = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False).reshape(-1, 4)
    rows, names = rows[whole], _text(pc.struct_field(items, "category"))[whole]
    sides = np.column_stack([table[side].to_numpy() for side in ("width", "height")])[rows].astype(float)
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.any(xywh[:, :2] + xywh[:, 2:] > sides + _TOLERANCE, axis=1)
        inside = np.all(xywh[:, :2] >= 0, axis=1) & np.all(xywh[:, 2:] > 0, axis=1) & ~far
    nothing = (names == NO_OBJECT) & ~np.any(xywh, axis=1)
    unfit = ~np.isfinite(xywh).all(axis=1) | ~(inside | nothing)
    yield "bbox is not inside its image", rows[unfit]


def _outside(places: np.ndarray, rows: np.ndarray, target: pa.ChunkedArray) -> np.ndarray:
    """Which of the places are none in the list that `target` has in their row."""
    return (places < 0) | (places >= _lengths(target)[rows])


def _flat(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The row of every item of a column of lists, and the items."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.list_parent_indices(array).to_numpy(zero_copy_only=False), pc.list_flatten(array)


def _lengths(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def _text(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
