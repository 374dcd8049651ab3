"""`sgpipe verify`: whether a run is what its manifest says, byte for byte and row for row, and what to do if not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgpipe.errors import StoreError, UserError, existing_folder
from sgpipe.files.object_store import StorePath
from sgpipe.files.remote import ShardFileSystem, name_of, open_object, uri_of
from sgpipe.recipe import load_recipe
from sgpipe.records import SCHEMA
from sgpipe.storage.database import quoted, scratch
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.row_checks import count_rows, row_faults
from sgpipe.storage.run_folder import PRIVATE, RECIPE, RunFolder
from sgpipe.storage.shards import open_shard
from sgpipe.storage.source_index import SourceIndex, is_whole_index
from sgpipe.utils.console import count
from sgpipe.utils.hashing import file_sha256
from sgpipe.utils.locking import temporary_folder
from sgpipe.utils.prefetch import prefetch

Advance = Callable[[int, dict[str, int]], None]
_ROWS = 512  # checked together
_FETCHED = 8  # shards of a store at once
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
    def name(self) -> str:
        """The run, as messages name it."""
        return name_of(self.root)

    @property
    def ok(self) -> bool:
        return self.repaired or not self.problems

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "root": self.name, "ok": self.ok}


def verify(root: Path, *, repair: bool = False, advance: Advance | None = None) -> Verification:
    """Check every byte and row of a run in a folder or a store, a few shards in memory at a time.

    Of a run in progress only what it has committed is checked.

    Args:
        repair: remove bad shards from the manifest and move their files away; resuming the run regenerates them.
        advance: called with the number of images checked.

    Raises:
        UserError: it is not a run, its shards are in an object store that `root` does not name, or it is to be
            repaired in a store or while in progress.
        StoreError: the store cannot be reached.
    """
    if uri := uri_of(root):
        return _verify_stored(uri, repair, advance or _ignore)
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
        bad = _check_shards(manifest, found, advance or _ignore)
        _check_leftovers(folder, manifest, found)
        further = list(_check_private(folder, found))
        if repair and found.problems:
            manifest.rewrite(bad)
            _set_aside(folder, manifest, found, further)
    return found


def _ignore(images: int, counts: dict[str, int]) -> None: ...


def _verify_stored(uri: str, repair: bool, advance: Advance) -> Verification:
    """As `verify`, in a store."""
    store = StorePath(uri)
    if repair:
        raise UserError(
            f"--repair is for folders; delete what is damaged from {store.location}, and the command that wrote the "
            "run makes it again"
        )
    found = Verification(Path(uri), repairable=False)
    manifest, lines = Manifest.salvage(Path(uri))
    found.problems += [Problem(MANIFEST, f"line {number} has changed since it was written") for number in lines]
    _check_shards(manifest, found, advance)
    _check_leftovers(RunFolder(Path(uri), store), manifest, found)
    found.problems += _stored_problems(store)
    return found


def _stored_problems(files: StorePath) -> Iterator[Problem]:
    """What is damaged in a store apart from shards: the recipe and source indexes."""
    if (recipe := files.read(RECIPE)) is not None:
        with temporary_folder() as folder:
            (folder / RECIPE).write_bytes(recipe)
            try:
                load_recipe(str(folder / RECIPE))
            except UserError as error:
                yield Problem(RECIPE, str(error).replace(str(folder / RECIPE), RECIPE))
    for name in sorted(files.sizes(PRIVATE)):
        if name.startswith("index-") and name.endswith(".json"):
            index = f"{PRIVATE}/{name.removesuffix('.json')}.arrow"
            try:
                whole = is_whole_index(files.read(f"{PRIVATE}/{name}") or b"", files.open(index))
            except FileNotFoundError:
                whole = False
            if not whole:
                yield Problem(index, "the source index has changed")


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
        raise UserError(
            f"the shards of {root} are in {store}; name it instead: sgpipe verify {store}, or fetch them first: "
            f"sgpipe fetch {store} --out {root}"
        )


def _check_shards(manifest: Manifest, found: Verification, advance: Advance) -> list[ShardEntry]:
    """The bad shards; their problems are added to `found`."""
    faults: dict[str, list[str]] = {shard.file: [] for shard in manifest.shards}
    threads = _FETCHED if uri_of(manifest.root) else 1
    with prefetch(partial(_shard_faults, manifest.root), manifest.shards, threads, 2 * threads) as found_faults:
        for (shard, overlaps), further in zip(_with_overlaps(manifest.shards), found_faults, strict=True):
            own = faults[shard.file]
            own += ["its rows overlap those of an earlier shard"] * overlaps
            own += further
            advance(shard.rows, shard.counts)
    for file, fault in _repeated(manifest, [file for file, own in faults.items() if not own]):
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
        remote = open_object(path)
        content = None if remote is None else remote.read()
        size = path.stat().st_size if content is None else len(content)
        if size != shard.bytes:
            return [f"{count(size, 'byte')}, the manifest says {shard.bytes:,}: it is cut short, or another file"]
        digest = file_sha256(path) if content is None else hashlib.sha256(content).hexdigest()
        if digest != shard.sha256:
            return ["its content has changed: the checksum differs from the manifest's"]
        return list(_content_faults(path, shard, content and pa.BufferReader(content)))
    except FileNotFoundError:
        return ["listed in the manifest but missing"]
    except StoreError:
        raise
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]
    except UserError as error:
        return [str(error)]


def _content_faults(path: Path, shard: ShardEntry, content: pa.NativeFile | None) -> Iterator[str]:
    with open_shard(path, SCHEMA.names, content) as file:
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


def _repeated(manifest: Manifest, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Shards with images that occur twice in them, or also in an earlier shard."""
    names = {str(manifest.root / file): file for file in files}
    if not names:
        return
    with scratch() as connection:
        if uri := uri_of(manifest.root):
            sizes = {shard.file: shard.bytes for shard in manifest.shards if shard.file in files}
            connection.register_filesystem(remote := ShardFileSystem(uri, sizes))
            names = dict(zip(remote.names(), sizes, strict=True))
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
    recipe = folder.root / RECIPE
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
