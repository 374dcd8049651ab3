"""A run is verified byte for byte and row for row, and repaired by leaving out what is bad."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.records import Box, Caption, Pair, Record, Relation
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import iter_records, shard_name, write_shard
from sgpipe.storage.verify import verify
from sgpipe.utils.hashing import file_sha256
from tests.sgpipe.storage.test_shards import full_record

Harm = Callable[[Path], object]
FIRST, SECOND = "data/val-000000000-000000003.parquet", "data/val-000000003-000000005.parquet"


def commit(root: Path, start: int, records: list[Record], manifest: Manifest | None = None) -> ShardEntry:
    manifest = manifest or Manifest.load(root)
    stop = start + len(records)
    entry = write_shard(root, shard_name("val", start, stop), "val", start, records, {"tag": 0.5})
    manifest.commit(entry)
    return entry


@pytest.fixture
def run(tmp_path) -> Path:
    root = tmp_path / "run"
    with RunFolder(root).lock():
        manifest = Manifest.create(root, {"name": "mine"})
        failed = full_record(4)
        failed.relations = []
        failed.fail("load", "image file not found")
        commit(root, 0, [full_record(i) for i in range(3)], manifest)
        commit(root, 3, [full_record(3), failed], manifest)
    return root


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def problems(root: Path) -> list[tuple[str, str]]:
    return [(found.file, found.problem) for found in verify(root).problems]


def test_a_whole_run_is_one_line(run):
    found = verify(run)
    assert (found.ok, found.shards, found.images, found.problems) == (True, 2, 5, [])
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{run}: 5 images in 2 shards, no problems found"]


@pytest.mark.parametrize(
    ("harm", "file", "problem"),
    [
        (lambda root: (root / FIRST).unlink(), FIRST, "missing"),
        (lambda root: (root / FIRST).write_bytes((root / FIRST).read_bytes()[:-5]), FIRST, "truncated"),
        (lambda root: flip(root / SECOND, 100), SECOND, "checksum"),
        (lambda root: shutil.copy(root / FIRST, root / shard_name("val", 5, 8)), shard_name("val", 5, 8), "not list"),
        (lambda root: flip(root / MANIFEST, -40), MANIFEST, "line 3 has changed"),
        (lambda root: commit(root, 5, [full_record(1)]), shard_name("val", 5, 6), "1 image already in the run"),
        (lambda root: commit(root, 5, [full_record(7)] * 2), shard_name("val", 5, 7), "1 image already in the run"),
    ],
)
def test_what_is_off_is_listed(run, harm: Harm, file, problem):
    harm(run)
    [found] = [each for each in problems(run) if each[0] == file]
    assert problem in found[1]
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert result.exit_code == 1
    assert any(line.startswith(f"{file}: ") for line in result.stdout.splitlines())


def with_columns(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the first shard and tell the manifest its new checksum."""
    entry = Manifest.load(root).shards[0]
    path = root / entry.file
    pq.write_table(change(pq.read_table(path)), path)
    claim(root, entry)


def claim(root: Path, entry: ShardEntry, **values: object) -> None:
    path = root / entry.file
    entry = replace(entry, sha256=file_sha256(path), bytes=path.stat().st_size, **values)
    Manifest.load(root).commit(entry)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda table: table.set_column(4, "width", table["width"].cast(pa.int64())),
            "column 'width' has the wrong type",
        ),
        (lambda table: table.slice(1), "2 rows, the manifest says 3"),
    ],
)
def test_tables_of_another_kind_are_found(run, change, problem):
    with_columns(run, change)
    assert any(problem in text for file, text in problems(run) if file == FIRST)


def test_counts_are_compared(run):
    entry = Manifest.load(run).shards[0]
    claim(run, entry, counts={**entry.counts, "relations": 7, "problem.malformed": 3})
    assert problems(run) == [(FIRST, "relations: 6, the manifest says 7")]


def spoilt(**values: object) -> Record:
    return replace(full_record(7), **values)


def boxes(*bbox: float) -> list[Box]:
    return [Box("dog", 1, tuple(bbox)), Box("cat", 2, (0.0, 0.0, 5.0, 5.0))]


TRIPLET = full_record(0).triplets[0]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (spoilt(relations=[Relation(2, 0, "on")]), "subject of relations points to none of the objects"),
        (spoilt(relations=[Relation(0, -1, "on")]), "object of relations points to none of the objects"),
        (spoilt(relations=[Relation(0, 1, None)]), "relations without predicate"),
        (spoilt(relations=[Relation(0, 1, "on", float("nan"))]), "confidence is not from 0 to 1"),
        (spoilt(relations=[Relation(0, 1, "on", 1.5)]), "confidence is not from 0 to 1"),
        (spoilt(relations=[Relation(0, 1, "on", 0.5, "tagger+zzz")]), "origin of relations is unknown"),
        (
            spoilt(objects=[replace(box, origin="zzz") for box in full_record(0).objects]),
            "origin of objects is unknown",
        ),
        (spoilt(pairs=[Pair(0, 7, ["on"])]), "object of pairs points to none of the objects"),
        (spoilt(pairs=[Pair(0, 1, None)]), "pairs without predicates"),
        (spoilt(captions=[Caption("a", "pair", [0, 2])]), "boxes of captions point to none of the objects"),
        (spoilt(triplets=[replace(TRIPLET, caption=1)]), "caption of triplets points to none of the captions"),
        (spoilt(captions=[]), "caption of triplets points to none of the captions"),
        (spoilt(objects=boxes(0, 0, 1)), "bbox is not four numbers"),
        (spoilt(objects=boxes(0, 0, float("nan"), 1)), "bbox is not inside its image"),
        (spoilt(objects=boxes(0, 0, float("inf"), 1)), "bbox is not inside its image"),
        (spoilt(objects=boxes(630, 0, 11, 1)), "bbox is not inside its image"),
        (spoilt(objects=boxes(0, 0, 0, 0)), "bbox is not inside its image"),
        (spoilt(status="failed"), "status is neither ok nor error"),
        (spoilt(status="error", relations=[]), "error row without a reason"),
        (spoilt(status="error", error="x"), "error row with relations"),
        (spoilt(error="x"), "error reason in a row with status ok"),
        (spoilt(split="train"), "not of split 'val'"),
    ],
)
def test_faults_within_rows_are_found(run, record, problem):
    commit(run, 5, [full_record(6), record])
    assert problems(run) == [(shard_name("val", 5, 7), f"{problem} (image '7')")]


def test_what_may_be_is_no_fault(run):
    nothing = [Box("dog", 1, (0.0, 0.0, 640.005, 480.0)), Box("missing objects", -1, (0.0, 0.0, 0.0, 0.0))]
    bare = Record("8", "coco", "val", "8.jpg", 0, 0)
    bare.fail("source", "no size")
    sparse = [bare, Record("9", "coco", "val", "9.jpg", 5, 5), spoilt(objects=nothing, relations=[Relation(0, 1, "x")])]
    commit(run, 5, sparse)
    assert not problems(run)
    with_columns(run, lambda table: table.append_column("image", pa.nulls(3, pa.string())))
    assert not problems(run)


def test_a_repaired_run_is_right_and_knows_what_is_missing(run):
    flip(run / FIRST, 50)
    result = CliRunner().invoke(app, ["verify", str(run), "--repair", "--json"])
    told = json.loads(result.stdout)
    assert (result.exit_code, told["ok"], told["repaired"]) == (0, True, True)
    assert problems(run) == [(FIRST, "the manifest does not list it: the next run deletes it")]
    manifest = Manifest.load(run)
    assert manifest.missing("val", 5) == [(0, 3)]
    assert [record.image_id for record in iter_records(run)] == ["3", "4"]
    commit(run, 0, [full_record(i) for i in range(3)], manifest)
    assert [record.image_id for record in iter_records(run)] == ["0", "1", "2", "3", "4"]


def test_a_manifest_with_a_bad_line_is_repaired(run):
    lines = (run / MANIFEST).read_bytes().splitlines(keepends=True)
    (run / MANIFEST).write_bytes(lines[0] + b"edited\n" + lines[2] + b'{"torn')
    with pytest.raises(UserError, match=r"damaged \(line 2 .* --repair"):
        Manifest.load(run)
    assert verify(run, repair=True).repaired
    assert [shard.start for shard in Manifest.load(run).shards] == [3]
    assert problems(run) == [(FIRST, "the manifest does not list it: the next run deletes it")]


def test_a_run_at_work_is_not_repaired(run):
    script = (
        "import sys; from pathlib import Path; from sgpipe.storage.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock():\n print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"locked\n"
    found = verify(run)
    assert found.at_work
    assert found.ok
    with pytest.raises(UserError, match=f"process {other.pid}"):
        verify(run, repair=True)
    other.kill()
    other.communicate()
