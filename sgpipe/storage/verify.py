"""`sgpipe verify`: whether a run is what its manifest says, byte for byte and row for row."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from threading import Semaphore

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location, location
from sgpipe.files.stores import StorePath
from sgpipe.records import SCHEMA
from sgpipe.storage.datasets import DatasetFiles, is_dataset
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shard_file import ShardFile
from sgpipe.storage.shards import count_rows, open_checked, open_shard, row_faults
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import prefetch
from sgpipe.utils.processes import usable_cpus

Advance = Callable[[int, dict[str, int]], None]
_ROWS = 512  # checked together
_AT_ONCE = 8  # shards; of a folder no more than CPUs
_BYTES_AT_ONCE = 256 << 20  # of copies of shards in a store, but for the last one


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, which is named relative to the run."""

    file: str
    problem: str


@dataclass
class Verification:
    """What was checked, and the problems found.

    `at_work`: a run is in progress, and only its commits were checked. `repairs`: what a repair
    did, in words.
    """

    root: Location
    shards: int = 0
    images: int = 0
    at_work: bool = False
    problems: list[Problem] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)

    @property
    def repaired(self) -> bool:
        """Whether nothing damaged is left that a reader would get."""
        return bool(self.repairs)

    @property
    def ok(self) -> bool:
        return self.repaired or not self.problems

    def as_json(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**asdict(self), "root": str(self.root), "repaired": self.repaired, "ok": self.ok}


def verify(
    root: str | Location, *, repair: bool = False, advance: Advance | None = None
) -> Verification:
    """Check every byte and row of the shards of a run, a few in memory at a time.

    Args:
        root: of the run, or a dataset of runs.
        repair: of a run: remove bad shards from the manifest; the command that wrote the run then makes them
            again. If nothing else is wrong, delete shards that the manifest does not list.
        advance: gets the rows of each shard.

    Raises:
        UserError: there is no run, or it cannot be repaired here.
    """
    root = location(root)
    if is_dataset(root):
        if repair:
            raise UserError(f"--repair is for single runs: repair those of {root} one by one")
        return _check_dataset(root, advance)
    if not repair:
        return _check_run(root, advance, earlier_images=set()).verification
    if isinstance(root, StorePath):
        raise UserError(
            f"--repair is for folders; delete what is damaged from {root}, and resume the run"
        )
    # refuses what is not a run before `lock` makes a folder of it
    Manifest.load(root, salvage=True)
    folder = RunFolder(root)
    with folder.lock():
        checked = _check_run(root, advance, earlier_images=set(), repair=True)
        return replace(checked.verification, repairs=_repair(folder, checked))


@dataclass(frozen=True)
class _CheckedRun:
    """What was checked of a run.

    Attributes:
        damaged: the shards with faults.
        unlisted: shards that the manifest does not list.
    """

    manifest: Manifest
    damaged: Sequence[ShardEntry]
    unlisted: Sequence[str]
    verification: Verification


def _check_dataset(place: Location, advance: Advance | None) -> Verification:
    """Check each run of a dataset, and that no image is in two."""
    dataset = Verification(place)
    images: set[int] = set()
    for member in DatasetFiles(place).members:
        verification = _check_run(member.files.place, advance, earlier_images=images).verification
        dataset.shards += verification.shards
        dataset.images += verification.images
        dataset.at_work |= verification.at_work
        for problem in verification.problems:
            named = replace(problem, file=f"{member.name}/{problem.file}")
            dataset.problems.append(named)
    return dataset


def _check_run(
    root: Location,
    advance: Advance | None,
    *,
    earlier_images: set[int],
    repair: bool = False,
) -> _CheckedRun:
    """Check a run, which only a repair has locked.

    Args:
        earlier_images: numbers of those that no shard may have, to which its own are added.
    """
    folder = None if isinstance(root, StorePath) else RunFolder(root)
    at_work = folder is not None and not repair and folder.is_locked
    manifest = Manifest.load(root, salvage=True)
    _refuse_shards_elsewhere(root, manifest, repair)
    faults = _check_shards(root, manifest, advance, earlier_images)
    # a run at work may have replaced some
    listed = {shard.file for shard in Manifest.load(root, salvage=True).shards}
    shards = [shard for shard in manifest.shards if shard.file in listed]
    unlisted = [] if folder is None or at_work else folder.unlisted(manifest)
    verification = Verification(
        root,
        shards=len(shards),
        images=sum(shard.rows for shard in shards),
        at_work=at_work,
        problems=_problems(manifest, shards, faults, unlisted),
    )
    damaged = [shard for shard in shards if faults[shard.file]]
    return _CheckedRun(manifest, damaged, unlisted, verification)


def _problems(
    manifest: Manifest,
    shards: Sequence[ShardEntry],
    faults: Mapping[str, Sequence[str]],
    unlisted: Sequence[str],
) -> list[Problem]:
    """List what is wrong with the manifest, its shards, and files that it does not list."""
    problems = [
        Problem(MANIFEST, f"line {number} has changed since it was written")
        for number in manifest.damaged
    ]
    for shard in shards:
        problems += [Problem(shard.file, fault) for fault in faults[shard.file]]
    advice = "the manifest does not list it: the next run deletes it"
    return problems + [Problem(file, advice) for file in unlisted]


def _refuse_shards_elsewhere(root: Location, manifest: Manifest, repair: bool) -> None:
    """Refuse a folder whose shards are in a store.

    Raises:
        UserError: they are.
    """
    store = manifest.run.get("store")
    if not store or not isinstance(root, Path) or not manifest.shards:
        return
    fetch = f"sgpipe fetch {store} --out {root}"
    if repair:
        raise UserError(f"the shards of {root} come from {store}; fetch them again: {fetch}")
    if not any((root / shard.file).exists() for shard in manifest.shards):
        raise UserError(
            f"the shards of {root} are in {store}; name it instead, or fetch them: {fetch}"
        )


def _check_shards(
    root: Location, manifest: Manifest, advance: Advance | None, earlier: set[int]
) -> dict[str, list[str]]:
    """Return the faults of each shard, by its file; add the numbers of its images to `earlier`."""
    cpus = usable_cpus()
    is_stored = isinstance(root, StorePath)
    threads = _AT_ONCE if is_stored else min(_AT_ONCE, cpus)
    check = partial(_check_shard, root, decoding=Semaphore(cpus))
    faults: dict[str, list[str]] = {}
    with prefetch(
        check,
        manifest.shards,
        threads,
        2 * threads,
        size_of=attrgetter("bytes"),
        size_limit=_BYTES_AT_ONCE if is_stored else None,
    ) as results:
        for shard, (shard_faults, images) in zip(manifest.shards, results, strict=True):
            repeated = len(images) - len({*images} - earlier)  # in this shard, or in an earlier one
            if repeated and not shard_faults:
                shard_faults = [f"{count(repeated, 'image')} already in the run"]
            earlier.update(images)
            faults[shard.file] = shard_faults
            if advance:
                advance(shard.rows, shard.counts)
    return faults


def _repair(folder: RunFolder, checked: _CheckedRun) -> list[str]:
    """Drop what is damaged; return what was done, in words."""
    manifest = checked.manifest
    damaged = checked.damaged
    if damaged or manifest.damaged:
        # of an import: which rows there were is no longer known
        if damaged and manifest.run.get("finished"):
            manifest.run["finished"] = False
        manifest.rewrite(damaged)
        counts = [(len(manifest.damaged), "damaged line"), (len(damaged), "damaged shard")]
        dropped = " and ".join(count(number, noun) for number, noun in counts if number)
        advice = "run the command that wrote it again to regenerate what is missing"
        return [f"dropped {dropped} from the manifest; {advice}"]
    if checked.unlisted:
        folder.sweep(manifest)
        deleted = count(len(checked.unlisted), "shard")
        return [f"deleted {deleted} that the manifest does not list"]
    return []


def _check_shard(
    root: Location, shard: ShardEntry, decoding: Semaphore
) -> tuple[list[str], list[int]]:
    """Return the faults of a shard, and, if it has none, a number for each of its images.

    Args:
        decoding: limits how many shards have decoded rows in memory.
    """
    try:
        content = open_checked(root, shard)
        with decoding, open_shard(root / shard.file, SCHEMA.names, content) as file:
            for column in SCHEMA:
                if not file.schema_arrow.field(column.name).type.equals(column.type):
                    return [f"column {column.name!r} has the wrong type"], []
            return _check_rows(file, shard)
    except StoreError:
        raise
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"], []
    except UserError as error:
        return [str(error)], []


def _check_rows(file: ShardFile, shard: ShardEntry) -> tuple[list[str], list[int]]:
    """Return the faults of the rows, the first of each kind, and as `_check_shard`."""
    faults: dict[str, str] = {}
    counts = Counter[str]()
    images: list[int] = []
    rows = file.metadata.num_rows
    if rows != shard.rows:
        faults["rows"] = f"{count(rows, 'row')}, the manifest says {shard.rows:,}"
    for table in file.iter_batches(_ROWS, columns=SCHEMA.names):
        counts.update(count_rows(table))
        for fault in row_faults(table, shard.split):
            kind = fault.partition(" (")[0]
            faults.setdefault(kind, fault)
        images += [hash((shard.split, image)) for image in table["image_id"].to_pylist()]
    for name, number in shard.counts.items():
        if name in counts and counts[name] != number:
            faults[name] = f"{name}: {counts[name]:,}, the manifest says {number:,}"
    return list(faults.values()), [] if faults else images
