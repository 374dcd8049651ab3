"""Work units: consecutive images that become one shard, the unit of retry, resume and commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sgpipe.files.locations import Location, open_file
from sgpipe.records import Record, from_table
from sgpipe.stages.base import Usage
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import read_file, revision_of, shard_name, write_shard
from sgpipe.storage.source_index import read_records

_UNITS_PER_ACTOR = 4


@dataclass(frozen=True)
class WorkUnit:
    """Rows `start` to `stop` of a split.

    `replaces` names an earlier shard of these rows: one that was lost, or, with `errors_only`, one whose error rows
    (and only these) are processed again.
    """

    split: str
    start: int
    stop: int
    replaces: str | None = None
    errors_only: bool = False
    revision: int = 0

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class UnitReader:
    """Work unit → its records, from the source index of its split."""

    storage: Location
    indexes: dict[str, str]

    def __call__(self, unit: WorkUnit) -> list[Record]:
        records = self.read(unit)
        if not (unit.errors_only and unit.replaces):
            return records
        status = read_file(self.storage / unit.replaces, ["status"])["status"].to_pylist()
        return [record for record, state in zip(records, status, strict=True) if state == "error"]

    def read(self, unit: WorkUnit) -> list[Record]:
        """All records of a unit, as they are before the first stage."""
        name = self.indexes[unit.split]
        with open_file(self.storage / name) as index:
            return read_records(index, unit.start, unit.stop, name)


@dataclass(frozen=True)
class UnitWriter:
    """The finished records of a work unit → its shard."""

    storage: Location

    def __call__(self, unit: WorkUnit, records: list[Record], usage: Usage) -> ShardEntry:
        if unit.errors_only and unit.replaces:
            redone = iter(records)
            earlier = from_table(read_file(self.storage / unit.replaces))
            records = [record if record.ok else next(redone) for record in earlier]
        name = shard_name(unit.split, unit.start, unit.stop, unit.revision)
        seconds = {name: round(value, 3) for name, value in usage.seconds.items()}
        entry = write_shard(self.storage, name, unit.split, unit.start, records, seconds)
        return replace(entry, gpus=usage.gpus)


def plan_units(
    folder: RunFolder,
    manifest: Manifest,
    rows: Mapping[str, int],
    say: Callable[[str], None],
    *,
    retry_failed: bool = False,
) -> list[WorkUnit]:
    """What is left to do of the first `rows` of each split, as few and as long ranges as possible.

    That is: rows without a shard, shards whose files are missing or cut, and, with `retry_failed`, error rows.
    """
    units = [WorkUnit(split, *gap) for split, count in rows.items() for gap in manifest.missing(split, count)]
    lost = folder.lost(manifest)
    for shard in lost:
        say(f"{shard.file} is missing or damaged; regenerating it")
    units += [_again(shard) for shard in lost]
    if retry_failed:
        taken = {shard.file for shard in lost}
        units += [
            _again(shard, errors_only=True)
            for shard in manifest.shards
            if shard.counts.get("errors") and shard.start < rows.get(shard.split, 0) and shard.file not in taken
        ]
    return units


def cut_units(units: Sequence[WorkUnit], max_rows: int, actors: int) -> list[WorkUnit]:
    """Cut ranges into units of at most `max_rows` rows, small enough that all actors have work to the end."""
    new = [unit for unit in units if unit.replaces is None]
    rows = sum(unit.rows for unit in new)
    size = max(1, min(max_rows, -(-rows // (_UNITS_PER_ACTOR * actors))))
    return [unit for unit in units if unit.replaces is not None] + [
        WorkUnit(unit.split, at, min(at + size, unit.stop)) for unit in new for at in range(unit.start, unit.stop, size)
    ]


def _again(shard: ShardEntry, errors_only: bool = False) -> WorkUnit:
    revision = revision_of(shard.file) + 1
    return WorkUnit(shard.split, shard.start, shard.stop, shard.file, errors_only, revision)
