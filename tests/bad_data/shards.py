"""Damaged or edited shards and manifests, as readers and `sgpipe verify` handle them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.storage.verify import verify
from tests.bad_data.case import Outcome, cases
from tests.sgpipe.storage.test_shards import full_record
from tests.values import values_of

Damage = Callable[[bytes], bytes]
SHARD = shard_name("val", 0, 2)
ALL = "^rows 0 1 2 3 4 5$"
FIRST_TWO = "^rows 0 1 2 3$"


@cache
def run_files() -> dict[str, bytes]:
    """The files of a run of three shards, which is created only once: shards are synced to the
    disk.
    """
    with TemporaryDirectory() as folder, RunFolder(root := Path(folder)).lock():
        manifest = Manifest.create(root, {"name": "mine"})
        for start in (0, 2, 4):
            records = [full_record(start), full_record(start + 1)]
            manifest.commit(
                write_shard(root, shard_name("val", start, start + 2), "val", start, records, {})
            )
        names = (MANIFEST, *values_of(manifest.shards, "file"))
        return {name: (root / name).read_bytes() for name in names}


def damaged(file: str, damage: Damage) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, data in run_files().items():
            path = folder / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damage(data) if name == file else data)

    return make


def read(folder: Path, shard: Any) -> Outcome:
    """Every record of the run, as a reader gets them."""
    return Outcome(
        "accepted", "rows " + " ".join(values_of(iter_records(folder / "run"), "image_id"))
    )


def check(folder: Path, shard: Any) -> Outcome:
    """The problems that `sgpipe verify` finds; what a repair leaves is only what the manifest does
    not list.
    """
    root = folder / "run"
    verified = verify(root, repair=True)
    if not verified.problems:
        return read(folder, shard)
    text = "; ".join(f"{problem.file}: {problem.problem}" for problem in verified.problems)
    if verified.repaired:
        assert all("does not list" in problem.problem for problem in verify(root).problems)
    return Outcome("found", text)


def of_a_later_version(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    table = pq.read_table(pa.BufferReader(data))
    pq.write_table(table.replace_schema_metadata({"sgpipe.schema_version": "99"}), sink)
    return bytes(sink.getvalue().to_pybytes())


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    return lambda data: b"".join(change(data.splitlines(keepends=True)))


def checked(rest: bytes) -> bytes:
    """A line of the manifest with a valid checksum, which ends like this."""
    rest += b"\n"
    return b'{"crc32": "%08x", ' % zlib.crc32(rest) + rest


def says(**values: object) -> Damage:
    """The line of the second shard with other values and a valid checksum."""

    def change(all_lines: list[bytes]) -> list[bytes]:
        entry = json.loads(all_lines[2])
        del entry["crc32"]
        entry["shard"] |= values
        return [*all_lines[:2], checked(json.dumps(entry)[1:].encode()), *all_lines[3:]]

    return lines(change)


def cut(share: float) -> Damage:
    return lambda data: data[: int(len(data) * share)]


_SHARDS: tuple[tuple[Any, ...], ...] = (
    ("undamaged", lambda data: data, check, "accepted", ALL),
    *(
        (f"cut to {share:.1%} of its bytes", cut(share), process, kind)
        for share in (0, 0.001, 0.5, 0.999)
        for process, kind in ((read, "refused"), (check, "found"))
    ),
    ("a footer of 2 GB", lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", read, "refused"),
    ("of a later version", of_a_later_version, read, "refused"),
)  # fmt: skip

_MANIFESTS: tuple[tuple[Any, ...], ...] = (
    ("empty", lambda data: b"", read, "refused"),
    ("binary zeros", lambda data: bytes(len(data)), check, "refused"),
    ("cut short in its first line", cut(0.03), check, "refused"),
    ("cut short in its last line, as after a crash", lambda data: data[:-20], read, "accepted", FIRST_TWO),
    ("cut short in its last line", lambda data: data[:-20], check, "found"),
    ("cut between lines", lines(lambda every: every[:-1]), check, "found"),
    ("zeros after the end", lambda data: data + bytes(512), check, "accepted", ALL),
    ("half a line after the end", lambda data: data + b'{"crc32": "00', check, "accepted", ALL),
    ("reordered lines", lines(lambda every: [every[0], *every[:0:-1]]), check, "accepted", ALL),
    ("a missing line", lines(lambda every: [*every[:2], every[3]]), check, "found"),
    ("a missing first line", lines(lambda every: every[1:]), read, "refused"),
    ("an empty line", lines(lambda every: [*every[:2], b"\n", *every[2:]]), read, "refused"),
    ("Windows line endings", lambda data: data.replace(b"\n", b"\r\n", 1), read, "refused"),
    ("invalid JSON with a valid checksum", lambda data: data + checked(b"}{"), read, "refused"),
    ("a shard path outside the run", says(file="data/../../x.parquet"), read, "refused"),
    ("an absolute shard path", says(file="/etc/x.parquet"), read, "refused"),
    ("more rows than in the shard", says(stop=4000), check, "found"),
    ("a split that differs from the rows", says(split="train"), check, "found"),
    ("a shard listed for other rows", says(file=SHARD, start=1, stop=3), check, "found"),
)  # fmt: skip

CASES = [
    case
    for group, file, rows in (("shard", SHARD, _SHARDS), ("manifest", MANIFEST, _MANIFESTS))
    for name, damage, process, *expected in rows
    for case in cases(
        f"{group}, {process.__name__}", process, [(name, damaged(file, damage), *expected)]
    )
]
