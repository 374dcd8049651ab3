"""Shards and manifests that were cut or edited, as `sgpipe verify` and all readers find them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import iter_records, read_file, shard_name, write_shard
from sgpipe.storage.verify import verify
from tests.bad_data.case import Case, Kind, Outcome, outcome
from tests.sgpipe.storage.test_shards import full_record

Harm = Callable[[bytes], bytes]
SHARD = shard_name("val", 0, 2)


def run(folder: Path) -> Path:
    with RunFolder(folder / "run").lock():
        manifest = Manifest.create(folder / "run", {"name": "mine"})
        for start in (0, 2, 4):
            records = [full_record(start), full_record(start + 1)]
            name = shard_name("val", start, start + 2)
            manifest.commit(write_shard(folder / "run", name, "val", start, records, {}))
    return folder / "run"


def harmed(file: str, harm: Harm) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = run(folder) / file
        path.write_bytes(harm(path.read_bytes()))

    return make


def read(folder: Path, made: Any) -> Outcome:
    """Every record of the run, by whatever reads it."""
    return _rows(list(iter_records(folder / "run")))


def read_shard(folder: Path, made: Any) -> Outcome:
    read_file(folder / "run" / SHARD)
    return read(folder, made)


def check(folder: Path, made: Any) -> Outcome:
    """What `sgpipe verify` says; what it finds it can repair, unless it says so."""
    root = folder / "run"
    found = verify(root, repair=True)
    if not found.problems:
        return _rows(list(iter_records(root)))
    text = "; ".join(f"{problem.file}: {problem.problem}" for problem in found.problems)
    assert verify(root).ok if found.repaired else "cannot be repaired" in text
    return Outcome("found", text)


def _rows(records: list[Record]) -> Outcome:
    text = "rows " + " ".join(record.image_id for record in records)
    return outcome(records, {}) if not all(record.ok for record in records) else Outcome("accepted", text)


def without_column(data: bytes) -> bytes:
    return table(lambda whole: whole.drop_columns(["objects"]))(data)


def table(change: Callable[[pa.Table], pa.Table]) -> Harm:
    def harm(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(change(pq.read_table(pa.BufferReader(data))), sink)
        return bytes(sink.getvalue().to_pybytes())

    return harm


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Harm:
    return lambda data: b"".join(change(data.splitlines(keepends=True)))


def sealed(entry: Any) -> bytes:
    """A line with the right checksum, whatever it says."""
    return checked(json.dumps(entry)[1:].encode())


def checked(rest: bytes) -> bytes:
    rest += b"\n"
    return b'{"crc32": "%08x", ' % zlib.crc32(rest) + rest


def says(**values: Any) -> Harm:
    """The second shard's line with other values and the right checksum."""

    def change(all_lines: list[bytes]) -> list[bytes]:
        entry = json.loads(all_lines[2])
        del entry["crc32"]
        entry["shard"] |= values
        return [*all_lines[:2], sealed(entry), *all_lines[3:]]

    return lines(change)


def edited(old: bytes, new: bytes) -> Harm:
    return lambda data: data.replace(old, new, 1)


def cut(share: float) -> Harm:
    return lambda data: data[: int(len(data) * share)]


def flipped(share: float) -> Harm:
    def harm(data: bytes) -> bytes:
        at = int(len(data) * share)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return harm


ALL, FIRST_TWO = "^rows 0 1 2 3 4 5$", "^rows 0 1 2 3$"

_SHARDS: tuple[tuple[str, Harm, Callable[[Path, Any], Outcome], Kind, str], ...] = (
    ("as it should be", lambda data: data, check, "accepted", ALL),
    *(
        (f"cut to {share:.1%} of its bytes", cut(share), look, kind, pattern)
        for share in (0, 0.001, 0.25, 0.5, 0.75, 0.999)
        for look, kind, pattern in ((read, "refused", "cannot be read"), (check, "found", "it is cut"))
    ),
    *((f"a byte flipped at {share:.1%}", flipped(share), check, "found", "checksum") for share in (0, 0.3, 0.6, 0.999)),
    ("longer than it was", lambda data: data + b"x", check, "found", "it is cut short, or another file"),
    ("zeros of the same length", lambda data: bytes(len(data)), check, "found", "checksum"),
    ("a footer of 2 GB", lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", read, "refused", "cannot be read"),
    ("without a column", without_column, read_shard, "refused", "objects|no column"),
    ("of a later version", table(lambda whole: whole.replace_schema_metadata({"sgpipe.schema_version": "2"})), read,
     "refused", "schema version 2, this sgpipe reads version 1"),
)  # fmt: skip

_MANIFESTS: tuple[tuple[str, Harm, Callable[[Path, Any], Outcome], Kind, str], ...] = (
    ("empty", lambda data: b"", read, "refused", "is damaged"),
    ("binary zeros", lambda data: bytes(len(data)), check, "found", "cannot be repaired"),
    ("cut in its first line", cut(0.03), check, "found", "cannot be repaired"),
    ("cut within its last line: as a crash leaves it", lambda data: data[:-20], read, "accepted", FIRST_TWO),
    ("cut within its last line", lambda data: data[:-20], check, "found", "the manifest does not list it$"),
    ("cut between lines", lines(lambda every: every[:-1]), check, "found", "the manifest does not list it$"),
    ("zeros after its end", lambda data: data + bytes(512), check, "accepted", ALL),
    ("half a line after its end", lambda data: data + b'{"crc32": "00', check, "accepted", ALL),
    ("a line twice", lines(lambda every: [*every, every[-1]]), check, "accepted", ALL),
    ("lines in another order", lines(lambda every: [every[0], *every[:0:-1]]), check, "accepted", ALL),
    ("a line in the middle gone", lines(lambda every: [*every[:2], every[3]]), check, "found", "does not list it$"),
    ("its first line gone", lines(lambda every: every[1:]), read, "refused", "its first line has changed"),
    ("an empty line", lines(lambda every: [*every[:2], b"\n", *every[2:]]), read, "refused", "damaged .line 3"),
    ("a number edited", edited(b'"relations": 4', b'"relations": 9'), read, "refused", "damaged .line 2"),
    ("a number edited", edited(b'"relations": 4', b'"relations": 9'), check, "found", "line 2 has changed"),
    ("line ends of Windows", edited(b"\n", b"\r\n"), read, "refused", "its first line has changed"),
    ("a text editor's mark", lambda data: b"\xef\xbb\xbf" + data, read, "refused", "is damaged"),
    ("two lines joined", lines(lambda every: [every[0], every[1].strip(), *every[2:]]), read, "refused", "line 2"),
    ("no JSON under the right checksum", lambda data: data + checked(b"}{"), read, "refused", "line 5"),
    ("a shard outside the run", says(file="data/../../x.parquet"), read, "refused", "damaged .line 3"),
    ("an absolute shard", says(file="/etc/x.parquet"), read, "refused", "damaged .line 3"),
    ("a size in words", says(bytes="many"), read, "refused", "damaged .line 3"),
    ("a negative start", says(start=-2), read, "refused", "damaged .line 3"),
    ("a shard without rows", says(stop=2), read, "refused", "damaged .line 3"),
    ("a list for counts", says(counts=[1]), read, "refused", "damaged .line 3"),
    ("a number for the split", says(split=1), read, "refused", "damaged .line 3"),
    ("more rows than the shard has", says(stop=4000), check, "found", "2 rows, the manifest says 3,998"),
    ("another split than the rows'", says(split="train"), check, "found", "not of split 'train'"),
    ("a shard listed as another's rows", says(file=SHARD, start=1, stop=3), check, "found", "rows overlap those of an earlier shard"),
    ("a list for the run", lines(lambda every: [sealed({"run": [1]}), *every[1:]]), read, "refused", "its first line"),
    ("of a later version", lines(lambda every: [sealed({"run": {"schema_version": 2}}), *every[1:]]), read, "refused",
     "schema version 2, this sgpipe reads version 1"),
)  # fmt: skip


def _cases(group: str, file: str, rows: tuple[Any, ...]) -> list[Case]:
    verified = {check: f"{group}, verified", read: group, read_shard: group}
    return [Case(verified[look], what, harmed(file, harm), look, kind, text) for what, harm, look, kind, text in rows]


CASES = [*_cases("shard", SHARD, _SHARDS), *_cases("manifest", MANIFEST, _MANIFESTS)]
