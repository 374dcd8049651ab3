"""Runs, models and annotations in an object store: commands and readers find in them what they find
in a folder.
"""

import gzip
import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.calibration import load_calibration
from sgpipe.errors import StoreError, UserError
from sgpipe.files import locations
from sgpipe.files.locations import content_id
from sgpipe.files.stores import StorePath
from sgpipe.generation.identity import identity
from sgpipe.recipe import SourceConfig, load_recipe
from sgpipe.records import Record
from sgpipe.sources.opening import open_source
from sgpipe.sources.vocabulary import load_synonyms
from sgpipe.storage.index import Index, read_embedded, read_record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import Run, iter_records
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.storage.verify import verify
from sgpipe.training.data.scan import scan_training
from sgpipe.training.data.stream import StepStream
from sgpipe.training.initial_model import make_initial_model
from sgpipe.training.recipe import ShardsConfig
from sgpipe.utils.console import Progress
from sgpipe.view.search import Filters, search
from tests.factories import make_calibration
from tests.integration.faults.conftest import Faults, sgpipe, upload
from tests.sgpipe.stats.runs import make_shards, scene
from tests.sgpipe.training import trainings
from tests.sgpipe.training.data.runs import data, make_records, make_run, plain_record
from tests.values import values_of

QUIET = Progress(Console(quiet=True))

INSTANCES = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 60} for n in range(50)],
    "annotations": [{"image_id": n, "category_id": 1, "bbox": [n, 2, 10, 20]} for n in range(50)],
    "categories": [{"id": 1, "name": "dog"}],
}
CAPTIONS = {"annotations": [{"image_id": n, "caption": f"dog number {n}"} for n in range(50)]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SGPIPE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


def below(store: StorePath, name: str) -> StorePath:
    return StorePath(f"{store.uri}/{name}")


@pytest.fixture
def folder(tmp_path: Path, store: StorePath) -> Path:
    """A folder with a run and its ground truth, which are also in the store."""
    predicted = [scene(str(n), [(0, "on", 1, 0.2 + n / 200)]) for n in range(120)]
    true = [scene(str(n), [(0, "on" if n % 7 < n / 20 else "under", 1)]) for n in range(120)]
    for name, records in (("run", predicted), ("truth", true)):
        upload(make_shards(tmp_path / name, records, rows=50), below(store, name))
    return tmp_path


def test_commands_print_and_write_the_same(
    folder: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_WHOLE", 0)  # read in ranges
    commands = [
        "stats PLACE/run --json", "verify PLACE/run", "calibrate PLACE/run --truth PLACE/truth --json --out OUT",
        "eval labels --pred PLACE/run --truth PLACE/truth --json", "eval boxes PLACE/run --truth PLACE/truth --json",
        *(f"export PLACE/run --to {form} --out OUT-{form}" for form in ("hf", "coco-rel")),
    ]  # fmt: skip
    for command in commands:
        outputs = []
        for place, out in ((folder, "local"), (store.uri, "stored")):
            output = sgpipe(
                *command.replace("PLACE", str(place)).replace("OUT", str(folder / out)).split()
            )
            outputs.append(output.replace(str(place), "").replace("\n", ""))
        assert outputs[0] == outputs[1] or "export" in command, command
    for path in (
        path for form in folder.glob("local-*") for path in form.rglob("*") if path.is_file()
    ):
        assert Path(str(path).replace("local-", "stored-")).read_bytes() == path.read_bytes()
    assert list(iter_records(f"{store.uri}/run")) == list(iter_records(folder / "run"))
    assert Run(f"{store.uri}/run").to_pandas().equals(Run(folder / "run").to_pandas())


def test_runs_in_a_store_are_one_dataset(tmp_path: Path, store: StorePath) -> None:
    records = [scene(str(n), [(0, "on", 1, 0.2 + n / 200)]) for n in range(100)]
    for number, start in enumerate((0, 60)):
        rows = records[start : start + 60]
        run = make_shards(tmp_path / f"part-{number}", rows, rows=20, fingerprint=f"run {number}")
        upload(run, below(store, f"labels/part-{number}"))
    outputs = []
    for place, out in ((tmp_path, "local"), (below(store, "labels"), "stored")):
        dataset = f"{place}/part-*"
        assert values_of(iter_records(dataset), "image_id") == values_of(records, "image_id")
        sgpipe("verify", dataset)
        sgpipe("export", dataset, "--to", "coco-rel", "--out", tmp_path / out)
        sheet = sgpipe("stats", dataset, "--json")
        outputs.append(sheet.replace(str(place), "").replace("\n", ""))
    assert outputs[0] == outputs[1]


def test_of_large_shards_only_what_is_needed_is_read(
    tmp_path: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(
        tmp_path / "run",
        [plain_record(name, width=1024, height=1024) for name in "abcd"],
        rows=2,
        embedded=True,
    )
    upload(tmp_path / "run", store)
    lengths: list[int] = []
    read_range = StorePath.read_range

    def counted(self: StorePath, start: int, length: int, *rest: str | None) -> bytes:
        lengths.append(length)
        return read_range(self, start, length, *rest)

    monkeypatch.setattr(locations, "_WHOLE", 0)
    monkeypatch.setattr(StorePath, "read_range", counted)
    sgpipe("export", store.uri, "--to", "coco-rel", "--out", tmp_path / "export")
    assert 0 < sum(lengths) < 1 << 20


def test_damage_in_a_store_is_found_and_named(folder: Path, store: StorePath) -> None:
    place = below(store, "run")
    shards = values_of(Manifest.load(folder / "run").shards, "file")
    content = (place / shards[1]).read() or b""
    (place / shards[0]).unlink()
    (place / shards[1]).put(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    (place / shards[2]).put(content[:50])
    assert set(values_of(verify(place).problems, "file")) == set(shards)
    sgpipe("verify", place.uri, code=1)
    assert shards[0] in sgpipe(
        "export", place.uri, "--to", "coco", "--out", folder / "out", code=2
    ).replace("\n", "")
    with pytest.raises(UserError):
        verify(place, repair=True)
    for command in ("stats", "verify"):
        assert f"{store.uri}/nothing" in sgpipe(command, f"{store.uri}/nothing", code=2).replace(
            "\n", " "
        )


def test_a_store_that_fails_during_a_query_is_one_line(
    folder: Path, store: StorePath, faults: Faults
) -> None:
    faults.fault = lambda method, path: (
        "403 AccessDenied" if "labels/run/data/" in path and method == "GET" else None
    )
    assert "AccessDenied" in sgpipe("stats", f"{store.uri}/run", code=1)


def test_the_viewer_indexes_and_reads_a_run_that_grows(
    tmp_path: Path, store: StorePath, faults: Faults
) -> None:
    root = tmp_path / "run"
    make_run(root, list(map(plain_record, "abcd")), rows=2, embedded=True)
    upload(root, store)

    def images(index: Index) -> set[str]:
        return set(values_of(search(index, Filters())[0], "image_id"))

    index = Index(store.uri, QUIET)
    local = Index(root, QUIET)
    assert images(index) == set("abcd")
    assert read_record(index, "train", "c") == read_record(local, "train", "c")
    assert read_embedded(index, "train", "c") == read_embedded(local, "train", "c") is not None
    Manifest.load(root).commit(
        write_shard(root, shard_name("train", 4, 5), "train", 4, [plain_record("e")], {})
    )
    upload(root, store)
    faults.requests.clear()
    newer = index.newer()
    assert newer is not None
    assert images(newer) == set("abcde")
    read = {
        Path(path).name for method, path in faults.requests if method == "GET" and "data/" in path
    }
    assert read == {Path(shard_name("train", 4, 5)).name}  # what is known is not downloaded again
    assert read_embedded(newer, "train", "c") == read_embedded(local, "train", "c")
    (store / shard_name("train", 0, 2)).unlink()
    left = newer.newer()
    assert left is not None
    assert (images(left), len(left.problems)) == (set("cde"), 1)


def test_steps_of_a_training_are_those_of_the_folder(tmp_path: Path, store: StorePath) -> None:
    make_run(tmp_path / "run", make_records(40), rows=3, embedded=True)
    upload(tmp_path / "run", store)

    def steps(place: Path | str, epoch: int, step: int) -> list[object]:
        settings = data(ShardsConfig(shards=place), val=(), limit=11, limit_seed=3)
        stream = StepStream(scan_training(settings), settings, batch=2, seed=7, max_relations=5)
        with closing(stream.steps(epoch, step)) as stream_steps:
            return [
                [
                    (item.image.image_id, item.graph, item.embedded)
                    for part in step
                    for item in part.items
                ]
                for step in islice(stream_steps, 7)
            ]

    for epoch, step in ((0, 0), (0, 3), (2, 4)):
        assert steps(store.uri, epoch, step) == steps(tmp_path / "run", epoch, step)


def test_a_network_predicts_what_it_does_in_a_folder(tmp_path: Path, store: StorePath) -> None:
    root = trainings.make_run(tmp_path)
    upload(root, below(store, "run"))
    make_initial_model(
        trainings.recipe(root, "pretrain").model,
        ["person", "dog"],
        0,
        tmp_path / "network",
        (48, 64),
    )
    for file in (tmp_path / "network").iterdir():
        (store / f"network/{file.name}").put(file)
    predictions = []
    for folder in (str(tmp_path), store.uri):
        model = [f"{folder}/network", "--data", f"{folder}/run", "--device", "cpu"]
        out = tmp_path / f"{len(predictions)}.json"
        sgpipe("predict", *model, "--out", out, "--form", "vg")
        predictions.append(out.read_bytes())
    assert predictions[0] == predictions[1]


def zipped(value: Any) -> bytes:
    return gzip.compress(json.dumps(value).encode())


def source(place: Path | str, annotations: str, captions: str, images: Path) -> SourceConfig:
    split = {"annotations": annotations, "captions": captions, "images": images}
    return load_recipe("coco", {"source.splits": {"val": split}, "source.root": str(place)}).source


def records(source: SourceConfig, path: Path) -> tuple[list[Record], dict[str, Any]]:
    index = open_source(source, "val", path)
    return index.records(0, len(index)), index.meta


def test_records_are_those_of_local_files_and_are_read_once(
    store: StorePath, tmp_path: Path, faults: Faults
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "c.json").write_text(json.dumps(CAPTIONS))
    for name, content in {"a.json.gz": INSTANCES, "c.json.gz": CAPTIONS}.items():
        (store / name).put(zipped(content))
    expected, meta = records(
        source(tmp_path, "a.json", "c.json", tmp_path), tmp_path / "local.arrow"
    )
    stored = source(store.uri, "a.json.gz", "c.json.gz", tmp_path)
    stored_records, also = records(stored, tmp_path / "stored.arrow")
    assert stored_records == expected
    assert values_of(stored_records[7].captions, "text") == ["dog number 7"]
    hashes = ("annotations_sha256", "captions_sha256")
    assert {name: also[name] for name in hashes} == {name: meta[name] for name in hashes}
    faults.requests.clear()
    assert records(stored, tmp_path / "stored.arrow")[0] == expected
    assert {method for method, path in faults.requests if path.endswith(".gz")} == {"HEAD"}
    (store / "a.json.gz").put(zipped({**INSTANCES, "images": INSTANCES["images"][:9]}))
    assert len(records(stored, tmp_path / "stored.arrow")[0]) == 9
    with pytest.raises(UserError, match=r"NoSuchBucket|no such file"):
        content_id("s3://no-such-bucket-here/a.json")
    faults.fault = lambda method, path: (
        "403 AccessDenied" if method == "GET" and path.endswith("a.json.gz") else None
    )
    with pytest.raises(StoreError, match="AccessDenied"):
        records(stored, tmp_path / "another.arrow")


def test_calibrations_and_synonyms_in_a_store_are_part_of_the_identity(
    store: StorePath, tmp_path: Path
) -> None:
    make_calibration(tmp_path / "calibration.json", {}, offset=0.1)
    (tmp_path / "synonyms.json").write_text(json.dumps({"person": ["man", "woman", "person"]}))
    for file in tmp_path.iterdir():
        (store / file.name).put(file.read_bytes())

    def read(place: Path | str) -> tuple[object, ...]:
        calibration = f"{place}/calibration.json"
        synonyms = f"{place}/synonyms.json"
        recipe = load_recipe("coco", {"tag.calibration": calibration, "pair.synonyms": synonyms})
        stages = identity(recipe).stages
        return load_calibration(calibration), load_synonyms(synonyms), stages["tag"], stages["pair"]

    before = read(store.uri)
    assert before == read(tmp_path)
    (store / "synonyms.json").put(json.dumps({"person": ["man"]}).encode())
    after = read(store.uri)
    assert (after[2] == before[2], after[3] == before[3]) == (True, False)
