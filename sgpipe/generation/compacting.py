"""`sgpipe compact`: a finished run in large shards.

A large shard is written, then committed by a line of the manifest that names the shards whose rows
it has; these are deleted last. So the run is whole at each moment, and a compaction that stopped is
resumed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pyarrow as pa
import yaml

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.files.stores import StorePath
from sgpipe.generation.run import asked_rows
from sgpipe.sources.extended_run import open_parent
from sgpipe.storage.header import GpuUse
from sgpipe.storage.manifest import CompactedShard, Manifest, ShardEntry, WriterClaim
from sgpipe.storage.mirror import ManifestMirror
from sgpipe.storage.run_folder import RECIPE, RunFiles, RunFolder
from sgpipe.storage.shards import ShardLayout, read_checked, revision_of, shard_name, write_copy
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.console import Progress, count

_MOST_ROWS = 65_536
_MOST_BYTES = 256 << 20
# of a row group
_GROUP_ROWS = 4096
_GROUP_BYTES = 16 << 20


@dataclass(frozen=True)
class Compaction:
    """How large a run was and is.

    Attributes:
        root: of the run.
        written: how many large shards this call wrote.
    """

    root: Location
    written: int
    shards_before: int
    shards_after: int
    bytes_before: int
    bytes_after: int

    def as_json(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**asdict(self), "root": str(self.root)}


def compact_run(place: str | Location, progress: Progress) -> Compaction:
    """Rewrite the shards of a run as large ones; an earlier call that stopped is resumed.

    Shards that have been compacted stay as they are.

    Raises:
        UserError: there is no run, it is incomplete or being written, or a shard is damaged.
        TakenOverError: another run has claimed the store.
    """
    files = open_parent(place)
    _refuse_unfinished(files)
    with _run_folder(files) as folder, folder.lock():
        mirror = ManifestMirror(folder)
        with mirror.reconciled():
            manifest = Manifest.load(folder.root)
            if folder.claim:
                folder.claim.refuse_live_writer()
        if folder.claim and folder.claim.note:
            progress.say(f"NOTE: {folder.claim.note}")
        before = manifest.shards
        with mirror.copied():
            mirror.copy()  # before `sweep` deletes what an older one lists
            folder.sweep(manifest)
            written = _compact_shards(folder, manifest, mirror, progress)
        folder.sweep(manifest)
    after = manifest.shards
    return Compaction(files.place, written, len(before), len(after), _size(before), _size(after))


@contextmanager
def _run_folder(files: RunFiles) -> Iterator[RunFolder]:
    """Yield the folder of a run; of one that is only in a store, a temporary one."""
    store = files.storage if isinstance(files.storage, StorePath) else None
    with temporary_folder() as temporary:
        folder = RunFolder(files.folder or temporary / "run", store)
        folder.claim = WriterClaim(store, compacts=True) if store else None
        yield folder


def _refuse_unfinished(files: RunFiles) -> None:
    """Raise UserError if a run of `sgpipe generate` lacks rows that it was asked for, also the last
    ones.
    """
    run = files.manifest.run
    asked = asked_rows(run.get("source_splits", {}), _limit(files), run.get("part"))
    images = 0
    for split, rows in asked.items():
        missing = files.manifest.missing(split, rows)
        images += sum(stop - start for start, stop in missing)
    if images:
        raise UserError(
            f"{files.root} lacks {count(images, 'image')}: finish it first with the command that"
            " started it"
        )


def _limit(files: RunFiles) -> int | None:
    """Return to how many images the recipe of a run limits it; None: to all, or it has no recipe."""
    path = files.place / RECIPE
    content: bytes | None = None
    if isinstance(path, StorePath):
        content = path.read()
    elif path.exists():
        content = path.read_bytes()
    recipe = yaml.safe_load(content or b"{}")
    return recipe.get("limit")


def _compact_shards(
    folder: RunFolder, manifest: Manifest, mirror: ManifestMirror, progress: Progress
) -> int:
    """Write and commit the large shards, one in memory at a time; return how many."""
    groups = list(_groups(manifest.shards))
    images = sum(shard.rows for group in groups for shard in group)
    with progress.images(images, "compacting") as advance:
        for group in groups:
            tables = [read_checked(folder.storage, shard, (), folder.location) for shard in group]
            entry = _large_entry(group)
            shard = write_copy(
                folder.storage,
                entry,
                pa.concat_tables(tables),
                entry.counts,
                folder.claim,
                _layout(group),
            )
            manifest.commit(shard)
            mirror.copy_soon()
            advance(shard.rows, shard.counts)
    return len(groups)


def _groups(shards: Sequence[ShardEntry]) -> Iterator[list[ShardEntry]]:
    """Yield the shards of each large one: neighbours that have not been compacted."""
    group: list[ShardEntry] = []
    for shard in shards:
        if group and not _fits(group, shard):
            yield group
            group = []
        if not shard.compacted:
            group.append(shard)
    if group:
        yield group


def _fits(group: Sequence[ShardEntry], shard: ShardEntry) -> bool:
    """Return whether a large shard of a group has room for a further shard, which follows it."""
    follows = (shard.split, shard.start) == (group[-1].split, group[-1].stop)
    rows = shard.stop - group[0].start
    return (
        follows
        and not shard.compacted
        and rows <= _MOST_ROWS
        and _size([*group, shard]) <= _MOST_BYTES
    )


def _large_entry(group: Sequence[ShardEntry]) -> ShardEntry:
    """Return the entry of the large shard of a group, without size and checksum."""
    split = group[0].split
    start = group[0].start
    stop = group[-1].stop
    counts = Counter[str]()
    seconds = Counter[str]()
    gpus: dict[str, GpuUse] = {}
    for shard in group:
        counts.update(shard.counts)
        seconds.update(shard.seconds)
        gpus |= shard.gpus
    # the name differs from that of a single small one
    revision = 1 + max(revision_of(shard.file) for shard in group)
    return ShardEntry(
        split,
        start,
        stop,
        shard_name(split, start, stop, revision),
        sha256="",
        bytes=0,
        counts=dict(counts),
        seconds=dict(seconds),
        gpus=gpus,
        compacted=[
            CompactedShard(shard.start, shard.stop, shard.file, shard.sha256) for shard in group
        ],
    )


def _layout(group: Sequence[ShardEntry]) -> ShardLayout:
    """Return row groups that a reader holds in memory, also with images."""
    rows = sum(shard.rows for shard in group)
    rows_of_size = max(1, _GROUP_BYTES * rows // _size(group))
    return ShardLayout(min(_GROUP_ROWS, rows_of_size), page_index=True)


def _size(shards: Sequence[ShardEntry]) -> int:
    """Return how many bytes shards take."""
    return sum(shard.bytes for shard in shards)
