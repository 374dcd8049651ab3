"""Runs in a store that are read in place, by commands and in Python: as those in a folder."""

import json
from contextlib import closing
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import StoreError, UserError
from sgpipe.files import remote
from sgpipe.files.object_store import ObjectInfo, StorePath
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.shards import iter_records
from sgpipe.storage.verify import verify
from sgpipe.training.data import stream as data_rows
from sgpipe.training.data.scan import UsableRowGroup, scan_training
from sgpipe.training.data.stream import StepStream, iter_epoch, one_pass, shuffled_epoch
from sgpipe.training.recipe import ShardsConfig
from tests.integration.faults.test_view_store import upload
from tests.sgpipe.training.data.runs import data, make_records, make_run, plain_record

IMAGES = "abcdefg"


@pytest.fixture
def root(tmp_path: Path, store: StorePath) -> Path:
    """A run, which is also in the store."""
    make_run(tmp_path / "run", [plain_record(name) for name in IMAGES], rows=2)
    upload(tmp_path / "run", store)
    return tmp_path / "run"


@pytest.fixture(params=["small", "large"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are read whole, or by ranges."""
    monkeypatch.setattr(remote, "_WHOLE", {"small": 1 << 20, "large": 0}[request.param])


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_stats_are_those_of_the_folder(root: Path, store: StorePath, sizes: None) -> None:
    expected, found = (json.loads(run("stats", place, "--json")) for place in (root, store.uri))
    assert found == expected
    assert "No problems found" in run("stats", store.uri, "--compare", store.uri)


@pytest.mark.parametrize("form", ["hf", "coco", "label-studio"])
def test_exports_are_those_of_the_folder(root: Path, store: StorePath, tmp_path: Path, form: str, sizes: None) -> None:
    for place, out in ((root, "local"), (store.uri, "stored")):
        run("export", place, "--to", form, "--out", tmp_path / out)
    files = [path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (tmp_path / "local" / file).read_bytes() == (tmp_path / "stored" / file).read_bytes()


def test_records_are_those_of_the_folder(root: Path, store: StorePath, sizes: None) -> None:
    assert list(iter_records(store.uri)) == list(iter_records(root))


def test_of_large_shards_only_what_is_asked_for_is_read(
    tmp_path: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [plain_record(name, width=1024, height=1024) for name in "abcd"]
    make_run(tmp_path / "run", records, rows=2, embedded=True)
    upload(tmp_path / "run", store)
    lengths: list[int] = []
    read_range = StorePath.read_range

    def counted(self: StorePath, name: str, start: int, length: int, *rest: str | None) -> bytes:
        lengths.append(length)
        return read_range(self, name, start, length, *rest)

    monkeypatch.setattr(remote, "_WHOLE", 0)
    monkeypatch.setattr(StorePath, "read_range", counted)
    assert run("stats", store.uri) == run("stats", tmp_path / "run")
    smallest = min(shard.bytes for shard in Manifest.load(tmp_path / "run").shards)
    assert 0 < max(lengths) <= 1 << 20 < 6 << 20 < smallest
    lengths.clear()
    run("export", store.uri, "--to", "coco-rel", "--out", tmp_path / "export")
    assert 0 < sum(lengths) < 1 << 20


class TestTraining:
    """`sgpipe train --data s3://…`."""

    def steps(self, place: Path | str, epoch: int, step: int, number: int) -> list[object]:
        settings = data(ShardsConfig(shards=Path(place)), val=(), limit=11, limit_seed=3)
        stream = StepStream(scan_training(settings), settings, batch=2, seed=7, most_relations=5)
        with closing(stream.steps(epoch, step)) as steps:
            found = list(islice(steps, number))
        return [(step.index, [(item.image_id, item.graph, item.embedded) for item in step.items]) for step in found]

    @pytest.fixture
    def trained(self, tmp_path: Path, store: StorePath) -> Path:
        make_run(tmp_path / "run", make_records(40), rows=3, embedded=True)
        upload(tmp_path / "run", store)
        return tmp_path / "run"

    def test_steps_are_those_of_the_folder_from_any_step_on(self, trained: Path, store: StorePath, sizes: None) -> None:
        for epoch, step in ((0, 0), (0, 3), (2, 4)):
            assert self.steps(store.uri, epoch, step, 7) == self.steps(trained, epoch, step, 7)

    def test_only_the_next_window_is_read_ahead(
        self, trained: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = scan_training(data(ShardsConfig(shards=Path(store.uri)), val=()))
        read: list[UsableRowGroup] = []
        original = data_rows._read

        def counted(group: UsableRowGroup) -> pa.Table:
            read.append(group)
            return original(group)

        monkeypatch.setattr(data_rows, "_read", counted)
        epoch = shuffled_epoch(found, 3, 0, 0)
        with closing(iter_epoch(found, epoch)) as rows:
            next(rows)
            assert 3 <= len(read) <= 6
        assert len(read) <= 6

    def test_shards_beyond_a_limit_are_not_fetched(
        self, tmp_path: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_run(tmp_path / "run", [plain_record(str(number)) for number in range(60)], rows=1)
        upload(tmp_path / "run", store)
        fetched: list[str] = []
        head = StorePath.head

        def counted(self: StorePath, name: str = "") -> ObjectInfo | None:
            fetched.append(name)
            return head(self, name)

        monkeypatch.setattr(StorePath, "head", counted)
        assert scan_training(data(ShardsConfig(shards=Path(store.uri)), val=(), limit=2)).rows == 2
        assert 2 <= len(fetched) < 30

    def test_the_recipe_of_a_training_names_the_store(self, store: StorePath) -> None:
        config = ShardsConfig.model_validate({"shards": store.uri})
        assert config.model_dump(mode="json")["shards"] == store.uri
        assert ShardsConfig.model_validate(config.model_dump(mode="json")) == config

    def test_a_store_that_fails_ends_the_training_resumably(
        self, trained: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = scan_training(data(ShardsConfig(shards=Path(store.uri)), val=()))

        def failing(*_: object) -> bytes:
            raise StoreError("s3://bucket: SlowDown: reduce your rate")

        monkeypatch.setattr(StorePath, "read_range", failing)
        with pytest.raises(StoreError, match="SlowDown"):
            list(iter_epoch(found, one_pass(found)))


class TestVerify:
    def test_a_whole_run(self, root: Path, store: StorePath) -> None:
        said = run("verify", store.uri)
        assert said == f"{store.uri}: 7 images in 4 shards, no problems found\n"

    def test_damage_is_found(self, root: Path, store: StorePath) -> None:
        shards = [shard.file for shard in Manifest.load(root).shards]
        content = store.read(shards[1]) or b""
        store.delete(shards[0])
        store.put(shards[1], content[:100] + bytes([content[100] ^ 1]) + content[101:])
        store.put(shards[2], content[:50])
        found = verify(Path(store.uri))
        problems = {problem.file: problem.problem for problem in found.problems}
        assert problems.pop(shards[0]) == "listed in the manifest but missing"
        assert "its content has changed" in problems.pop(shards[1])
        assert "truncated" in problems.pop(shards[2])
        assert not problems
        done = CliRunner().invoke(app, ["verify", store.uri])
        assert done.exit_code == 1

    def test_repeated_images_are_found(self, tmp_path: Path, store: StorePath) -> None:
        make_run(tmp_path / "run", [plain_record(name) for name in "abca"], rows=2)
        upload(tmp_path / "run", store)
        [problem] = verify(Path(store.uri)).problems
        assert problem.problem == "1 image already in the run"

    def test_nothing_is_repaired(self, root: Path, store: StorePath) -> None:
        with pytest.raises(UserError, match="delete what is damaged"):
            verify(Path(store.uri), repair=True)


def test_a_store_without_a_run_is_refused(store: StorePath) -> None:
    for command in ("stats", "verify"):
        done = CliRunner().invoke(app, [command, f"{store.uri}/nothing"])
        assert done.exit_code == 2
        assert f"{store.uri}/nothing is not an sgpipe run: it has no {MANIFEST}" in done.stderr.replace("\n", " ")


def test_a_shard_that_is_missing(root: Path, store: StorePath) -> None:
    store.delete(file := Manifest.load(root).shards[0].file)
    done = CliRunner().invoke(app, ["stats", store.uri])
    assert done.exit_code == 2
    assert f"shard {store.uri}/{file} is listed in the manifest but missing" in done.stderr.replace("\n", "")


def test_a_store_that_fails_is_told_in_one_line(root: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of a query, where the error passes through DuckDB."""
    read_range, reads = StorePath.read_range, iter(range(99))

    def failing(self: StorePath, name: str, *rest: object) -> bytes:
        if "data/" in f"{self}/{name}" and next(reads) >= 5:
            raise StoreError("s3://bucket: SlowDown: reduce your rate")
        return read_range(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(StorePath, "read_range", failing)
    done = CliRunner().invoke(app, ["stats", store.uri])
    assert done.exit_code == 1
    assert "s3://bucket: SlowDown: reduce your rate" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("location", "uri", "name"),
    [
        ("s3://b/run", "s3://b/run", "s3://b/run"),
        (Path("s3://b/run"), "s3://b/run", "s3://b/run"),
        (
            Path("s3://b/run?endpoint_override=http://localhost:9"),
            "s3://b/run?endpoint_override=http://localhost:9",
            "s3://b/run",
        ),
        (Path("s3://b/run?x=1") / "data/a.parquet", "s3://b/run?x=1/data/a.parquet", "s3://b/run/data/a.parquet"),
        (Path("runs/a"), None, "runs/a"),
        (Path("s3/run"), None, "s3/run"),
    ],
)
def test_locations(location: Path | str, uri: str | None, name: str) -> None:
    assert remote.uri_of(location) == uri
    assert remote.name_of(location) == name
