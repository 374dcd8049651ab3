"""Shards in an object store: a server of moto's that speaks S3."""

import os
import random
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import StorePath
from sgpipe.generation import run as generation
from sgpipe.generation.work_units import UnitReader, UnitWriter, WorkUnit
from sgpipe.recipe import load_recipe
from sgpipe.records import Record, from_table, to_table
from sgpipe.stages.base import Usage
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.mirror import ManifestMirror, fetch
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.source_index import SourceIndex
from sgpipe.storage.verify import verify
from sgpipe.utils.console import Progress
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import SECONDS, Stub
from tests.integration.faults.stub import COPIES

IMAGES = 12


class Machine:
    """`sgpipe generate` with a store, whose workers label units of two images by themselves, without Ray."""

    def __init__(self, dataset: list[str], out: Path, store: StorePath | None) -> None:
        self.folder = RunFolder(out, store)
        options = {name.removeprefix("--"): Path(value) for name, value in pairwise(dataset) if name[:2] == "--"}
        split = {name: options[name] for name in ("images", "annotations", "captions")}
        settings = {"source.splits": {"val": split}, "caption.captioner": None, "tag.tagger": "none"}
        self.recipe = load_recipe("coco", settings | {"engine.store": store and store.uri})

    def work(self, units: int) -> Manifest:
        """Commit this number of units; raises KeyboardInterrupt if that is not all."""

        def run(todo, recipe, folder, manifest, progress, published) -> None:
            ranges = [(at, at + 2) for unit in todo for at in range(unit.start, unit.stop, 2)]
            for start, stop in ranges[:units]:
                manifest.commit(self.label(WorkUnit("val", start, stop)))
                published.copy_soon()
            if len(ranges) > units:
                raise KeyboardInterrupt

        plan = mock.patch.object(generation._Work, "plan", lambda recipe, indexes, roots, todo, progress, reuse: todo)
        with plan, mock.patch.object(generation, "_run", run), suppress(KeyboardInterrupt):
            generation.generate(self.recipe, self.folder.root, Progress(Console(quiet=True)))
        return Manifest.load(self.folder.root)

    def label(self, unit: WorkUnit) -> ShardEntry:
        reader = UnitReader(self.folder.storage, {"val": self.folder.index_name("val")})
        return UnitWriter(self.folder.storage)(unit, Stub()(reader(unit)), Usage())


@pytest.fixture
def dataset(tmp_path: Path) -> list[str]:
    return make_dataset(tmp_path / "data", IMAGES)


def labelled(machine: Machine) -> list[Record]:
    return from_table(to_table(Stub()(SourceIndex(machine.folder.index("val")).records(0, IMAGES))))


def ignore(images: int, counts: object) -> None: ...


def test_objects_come_back_as_they_were_put(store: StorePath, tmp_path: Path) -> None:
    store.put("data/a", b"first")
    store.put("data/a", b"second")
    (tmp_path / "b").write_bytes(bytes(range(256)) * 50_000)
    store.put("data/b", tmp_path / "b")
    assert store.read("data/a") == b"second"
    assert store.sizes("data") == {"a": 6, "b": 12_800_000}
    store.get_file("data/b", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    store.delete("data/a")
    store.delete("data/a")
    assert store.read("data/a") is None
    assert store.sizes("nowhere") == {}


def test_a_run_in_a_store_is_fetched_as_it_was_made(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    machine = Machine(dataset, tmp_path / "out", store)
    manifest = machine.work(units=6)
    assert not any((tmp_path / "out" / "data").iterdir())
    fetch(store, tmp_path / "fetched", ignore)
    assert_whole(tmp_path / "fetched", labelled(machine))
    assert {f"data/{name}" for name in store.sizes("data")} == {shard.file for shard in manifest.shards}
    for name in ("README.md", "recipe.yaml", MANIFEST):
        assert (tmp_path / "fetched" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_what_is_there_is_not_fetched_again(
    store: StorePath, dataset: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(dataset, tmp_path / "out", store)
    shards = machine.work(units=6).shards
    fetch(store, tmp_path / "fetched", ignore)
    (tmp_path / "fetched" / shards[1].file).write_bytes(b"x" * shards[1].bytes)
    got: list[str] = []
    original = StorePath.get_file
    monkeypatch.setattr(StorePath, "get_file", lambda self, name, path: (got.append(name), original(self, name, path)))
    fetch(store, tmp_path / "fetched", ignore)
    assert got == [shards[1].file]
    assert_whole(tmp_path / "fetched", labelled(machine))


def test_another_machine_goes_on_from_the_store(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    first = Machine(dataset, tmp_path / "first", store)
    first.work(units=2)
    other = Machine(dataset, tmp_path / "other", store)
    assert len(other.work(units=2).shards) == 4
    assert len(first.work(units=9).shards) == 6
    fetch(store, tmp_path / "fetched", ignore)
    assert_whole(tmp_path / "fetched", labelled(first))


def test_a_manifest_that_was_not_copied_any_more_is_gone_on_from(
    store: StorePath, dataset: list[str], tmp_path: Path
) -> None:
    machine = Machine(dataset, tmp_path / "out", store)
    machine.work(units=2)
    before = store.read(MANIFEST)
    machine.work(units=2)
    store.put(MANIFEST, before)
    with (tmp_path / "out" / MANIFEST).open("ab") as file:
        file.write(b'{"crc32": "torn')
    assert len(machine.work(units=1).shards) == 5
    assert store.read(MANIFEST) == (tmp_path / "out" / MANIFEST).read_bytes()


def test_lost_and_unlisted_objects_are_noticed(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    machine = Machine(dataset, tmp_path / "out", store)
    manifest = machine.work(units=6)
    store.delete(manifest.shards[0].file)
    store.put(manifest.shards[1].file, b"cut")
    store.put("data/val-000000900-000000902.parquet", b"of a killed run")
    store.put("data/somebody.txt", b"else's")
    assert machine.folder.lost(manifest) == manifest.shards[:2]
    with pytest.raises(StoreError, match="is missing; resuming the run regenerates it"):
        fetch(store, tmp_path / "fetched", ignore)
    for shard in manifest.shards[:2]:
        machine.label(WorkUnit("val", shard.start, shard.stop))
    with machine.folder.lock():
        machine.folder.claim_store()
        machine.folder.sweep(manifest)
    assert store.sizes("data").keys() == {Path(shard.file).name for shard in manifest.shards} | {"somebody.txt"}
    fetch(store, tmp_path / "fetched", ignore)
    assert_whole(tmp_path / "fetched", labelled(machine))


def test_an_object_of_other_bytes_is_not_taken(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    shard = Machine(dataset, tmp_path / "out", store).work(units=1).shards[0]
    store.put(shard.file, b"x" * shard.bytes)
    with pytest.raises(StoreError, match="differs from the manifest"):
        fetch(store, tmp_path / "fetched", ignore)


def test_a_store_of_another_run_is_refused(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    Machine(dataset, tmp_path / "out", store).work(units=1)
    other = RunFolder(tmp_path / "other", store)
    with other.lock():
        Manifest.create(other.root, {"store": store.uri, "name": "another"})
        with pytest.raises(UserError, match="contain different runs"):
            ManifestMirror(other).reconciled().__enter__()
    with pytest.raises(UserError, match="contain different runs"):
        fetch(store, tmp_path / "other", ignore)
    with pytest.raises(UserError, match="is not an sgpipe run"):
        fetch(StorePath(f"{store.uri}/nothing"), tmp_path / "fetched", ignore)


@pytest.mark.parametrize("now", [None, "s3://elsewhere/labels"])
def test_shards_do_not_move_while_a_run_goes_on(store: StorePath, dataset: list[str], tmp_path: Path, now) -> None:
    Machine(dataset, tmp_path / "out", store).work(units=1)
    with pytest.raises(UserError, match=f"are in {store.uri}; resume with --store {store.uri}"):
        ManifestMirror(RunFolder(tmp_path / "out", now and StorePath(now))).reconciled().__enter__()


def test_commands_that_need_shards_say_where_they_are(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    Machine(dataset, tmp_path / "out", store).work(units=1)
    for command in ("stats", "verify"):
        said = CliRunner().invoke(app, [command, str(tmp_path / "out")])
        assert said.exit_code == 2
        assert f"sgpipe fetch {store.uri} --out {tmp_path / 'out'}" in said.stderr
    assert CliRunner().invoke(app, ["fetch", store.uri, "--out", str(tmp_path / "out")]).exit_code == 0
    said = CliRunner().invoke(app, ["verify", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output


def test_a_first_attempt_without_shards_binds_nothing(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    Machine(dataset, tmp_path / "out", None).work(units=0)
    machine = Machine(dataset, tmp_path / "out", store)
    machine.work(units=2)
    assert len(machine.work(units=1).shards) == 3


def test_the_store_of_another_recipe_leaves_the_folder_as_it_was(
    store: StorePath, dataset: list[str], tmp_path: Path
) -> None:
    Machine(dataset, tmp_path / "out", store).work(units=1)
    other = Machine(dataset, tmp_path / "other", store)
    other.recipe = other.recipe.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match=f"{store.uri} was made with other settings; choose another --store"):
        other.work(units=1)
    assert not (tmp_path / "other" / MANIFEST).exists()
    elsewhere = Machine(dataset, tmp_path / "other", StorePath(f"{store.uri}-too"))
    assert len(elsewhere.work(units=1).shards) == 1


def test_a_damaged_copy_is_fetched_again_and_not_repaired(store: StorePath, dataset: list[str], tmp_path: Path) -> None:
    machine = Machine(dataset, tmp_path / "out", store)
    shard = machine.work(units=6).shards[0]
    fetch(store, tmp_path / "fetched", ignore)
    (tmp_path / "fetched" / shard.file).write_bytes(b"x")
    with pytest.raises(UserError, match=f"fetch them again: sgpipe fetch {store.uri}"):
        verify(tmp_path / "fetched", repair=True)
    fetch(store, tmp_path / "fetched", ignore)
    assert_whole(tmp_path / "fetched", labelled(machine))


def test_a_run_killed_after_its_last_commit_is_whole_in_the_store(
    store: StorePath, dataset: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(dataset, tmp_path / "out", store)
    with monkeypatch.context() as killed:
        killed.setattr(ManifestMirror, "__exit__", lambda *_: None)
        machine.work(units=6)
    fetch(store, tmp_path / "before", ignore)
    assert (tmp_path / "before" / "recipe.yaml").exists()
    machine.work(units=6)
    fetch(store, tmp_path / "fetched", ignore)
    assert_whole(tmp_path / "fetched", labelled(machine))


def test_keys_do_not_get_into_a_run(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["fetch", "s3://KEY:SECRET@bucket/x", "--out", str(tmp_path / "out")])
    assert said.exit_code == 2
    assert "SECRET" not in said.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("uri", ["s3://", "file:///tmp/x", "nonsense://bucket/x", "bucket", "s3://bucket:x:y/z"])
def test_what_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="object store") as caught:
        StorePath(uri).read("a")
    assert "\n" not in str(caught.value)


def test_a_store_that_is_not_there_is_told_in_one_line(store: StorePath) -> None:
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x: ") as caught:
        StorePath("s3://no-such-bucket/x").put("a", b"")
    assert "\n" not in str(caught.value)


def test_a_store_is_no_folder(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["generate", "--out", "s3://bucket/labels"])
    assert said.exit_code == 2
    assert "--out" in said.stderr


@pytest.mark.parametrize("point", ["mid write", "mid upload"])
def test_a_worker_killed_while_writing_leaves_nothing_behind(
    store: StorePath, server: str, tmp_path: Path, point: str
) -> None:
    """Neither in the folder for temporary files, nor in the store: what is uploaded in parts stays there invisibly."""
    (place := tmp_path / "temporary").mkdir()
    (charge := tmp_path / "charge").touch()
    code = (
        "import os, sys; from sgpipe.files import object_store; from sgpipe.records import Record\n"
        "from sgpipe.storage.shards import write_shard\n"
        "if sys.argv[2] == 'mid upload':\n    object_store.obstore.put = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "write_shard(object_store.StorePath(sys.argv[1]), 'data/val-000000000-000000001.parquet', 'val', 0,"
        " [Record('1', 'COCO', 'val', '1.png', 8, 8)], {})\n"
    )
    environment = {**os.environ, "TMPDIR": str(place), "SGPIPE_FAULT": f"{point}:{charge}"}
    killed = subprocess.run([sys.executable, "-c", code, store.uri, point], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not any(place.iterdir())
    bucket = store.uri.split("/")[2]
    assert "<Upload>" not in urllib.request.urlopen(f"{server}/{bucket}?uploads").read().decode()
    assert store.sizes("data") == {}


@pytest.mark.slow
def test_a_killed_run_goes_on_from_another_machine(store: StorePath, tmp_path: Path) -> None:
    """Three machines are killed, each after some copies of the manifest; each begins with what is in the store."""
    dataset = make_dataset(tmp_path / "data", 40)
    options = ("--set", "engine.unit_size=1", "--set", "engine.cpus=2", "--store", store.uri)
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    rng, there = random.Random(0), 0
    for number in range(3):
        run = Run(dataset, tmp_path / f"out{number}", options, {SECONDS: "0.2", COPIES: "0.1", **keys})
        run.start()
        assert run.wait_for(lambda before=there, run=run: run.committed > before + rng.randint(4, 9)), run.said
        run.process.kill()
        run.process.join()
        before, there = there, len(Manifest.load(Path(store.uri)).shards)
        assert run.committed - 4 <= there <= run.committed
        assert there > before
        assert any(name.startswith("manifest-") for name in store.sizes(".sgpipe"))
    again = Run(dataset, tmp_path / "again", options, keys)
    again.start()
    assert again.wait() == 0, again.said
    assert store.sizes(".sgpipe").keys() == {"index-val.arrow", "index-val.json"}
    assert store.read(MANIFEST) == (again.out / MANIFEST).read_bytes()
    whole = Run(dataset, tmp_path / "whole")
    whole.start()
    assert whole.wait() == 0, whole.said
    fetch(store, tmp_path / "fetched", ignore)
    assert_whole(tmp_path / "fetched", rows(whole.out))
