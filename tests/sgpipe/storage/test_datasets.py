"""Several runs as one: commands say of the parts of a run what they say of the whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.generation.merging import merge_runs
from sgpipe.records import Record
from sgpipe.storage.datasets import is_dataset, load_manifest, runs_of
from sgpipe.storage.index import Index
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.verify import verify
from sgpipe.training.data.scan import scan
from sgpipe.training.recipe import ShardsConfig
from tests.memory_store import Memory
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.training.data.runs import make_records, make_run

PARTS = 3
HEADER = {"fingerprint": "drawn", "identity": {"drawn": 1}, "name": "drawn"}


@pytest.fixture
def single_run(tmp_path: Path) -> Path:
    records = [*make_records(31), *make_records(14, seed=1, split="val")]
    make_run(tmp_path / "whole", records, images=tmp_path / "images", run=HEADER)
    return tmp_path / "whole"


@pytest.fixture
def parts(single_run: Path) -> str:
    """The pattern of the parts of a run, as `generate --part` makes them."""
    folder = single_run.with_name("labels")
    for number in range(1, PARTS + 1):
        write_part(single_run, folder / f"part-{number}", number)
    return f"{folder}/part-*"


def write_part(single_run: Path, out: Path, number: int) -> None:
    """Write a run with the shards of a part of each split."""
    source = Manifest.load(single_run)
    (out / "data").mkdir(parents=True)
    manifest = Manifest.create(out, {**source.run, "part": f"{number}/{PARTS}"})
    for split in ("train", "val"):
        shards = [shard for shard in source.shards if shard.split == split]
        first = len(shards) * (number - 1) // PARTS
        last = len(shards) * number // PARTS
        for shard in shards[first:last]:
            shutil.copy(single_run / shard.file, out / shard.file)
            manifest.commit(shard)


def output_of(command: str) -> Any:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_a_dataset_has_the_rows_of_the_whole_run_in_its_order(single_run: Path, parts: str) -> None:
    assert list(iter_records(parts)) == list(iter_records(single_run))
    dataset = load_manifest(parts)
    places = [(shard.split, shard.start, shard.stop) for shard in dataset.shards]
    assert places == [
        (shard.split, shard.start, shard.stop) for shard in Manifest.load(single_run).shards
    ]
    assert dataset.notes == []


@pytest.mark.parametrize(
    "command",
    ["stats RUN --json", "verify RUN --json", "eval labels --pred RUN --truth WHOLE --json"],
)
def test_commands_say_the_same(single_run: Path, parts: str, command: str) -> None:
    command = command.replace("WHOLE", str(single_run))
    of_whole = output_of(command.replace("RUN", str(single_run)))
    of_parts = output_of(command.replace("RUN", parts))
    places = ("root", "run", "pred", "inputs", "shards", "fingerprint", "settings")
    assert without(of_parts, *places) == without(of_whole, *places)


@pytest.mark.parametrize("form", ["coco-rel", "hf", "rlipv2"])
def test_exports_have_the_same_files(
    single_run: Path, parts: str, form: str, tmp_path: Path
) -> None:
    exported = {}
    for run in (str(single_run), parts):
        out = tmp_path / f"out-{len(exported)}"
        output_of(f"export {run} --to {form} --out {out} --json")
        files = sorted(path for path in out.rglob("*.json*") if path.is_file())
        exported[run] = {path.relative_to(out): path.read_bytes() for path in files}
    assert exported[parts] == exported[str(single_run)]


def test_training_sees_the_same(single_run: Path, parts: str) -> None:
    of_parts = scan([ShardsConfig(shards=Path(parts))], threshold=0.1)
    of_whole = scan([ShardsConfig(shards=single_run)], threshold=0.1)
    assert of_parts.objects == of_whole.objects
    assert of_parts.relations == of_whole.relations
    groups = [(group.group, group.rows, group.usable) for group in of_parts.row_groups]
    assert groups == [(group.group, group.rows, group.usable) for group in of_whole.row_groups]


def test_merging_takes_the_runs_that_a_pattern_matches(
    single_run: Path, parts: str, tmp_path: Path
) -> None:
    merged = merge_runs([parts], tmp_path / "merged", QUIET)
    assert sum(shard.rows for shard in merged.shards) == 45


def test_an_index_is_made_again_when_a_part_has_more(single_run: Path, parts: str) -> None:
    shutil.rmtree(single_run.with_name("labels") / "part-3")
    index = Index(parts, QUIET)
    assert index.problems == [f"{parts}: there is no run of part 3/3"]
    assert index.newer() is None
    write_part(single_run, single_run.with_name("labels") / "part-3", 3)
    newer = index.newer()
    assert newer is not None
    assert (newer.images, newer.problems) == (45, [])


def test_parts_are_sorted_by_number_and_a_file_has_its_own_order(tmp_path: Path) -> None:
    for name in ("part-10", "part-9", "other"):
        make_run(tmp_path / name, make_records(3), images=tmp_path / "images")
    (tmp_path / "part-8").mkdir()  # not a run yet
    assert [run.name for run in runs_of(f"{tmp_path}/part-*")] == ["part-9", "part-10"]
    dataset = tmp_path / "all.yaml"
    dataset.write_text("runs:\n- other\n- part-*\n")
    assert is_dataset(dataset)
    assert [run.name for run in runs_of(dataset)] == ["other", "part-9", "part-10"]


def test_runs_of_other_sources_follow_each_other(tmp_path: Path) -> None:
    records: list[list[Record]] = [make_records(7), make_records(4, seed=1)]
    for number, rows in enumerate(records):
        make_run(tmp_path / f"run-{number}", rows, run={"fingerprint": f"run {number}"})
    dataset = load_manifest(f"{tmp_path}/run-*")
    assert [(shard.start, shard.stop) for shard in dataset.shards] == [(0, 5), (5, 7), (7, 11)]
    with pytest.raises(UserError, match=r"the images of train are in .*run-0.* and .*run-1"):
        dataset.image_root("train")
    assert len(dataset.image_root("train", tmp_path / "run-0" / "images").location) > 0
    assert [record.image_id for record in iter_records(f"{tmp_path}/run-*")] == [
        record.image_id for record in records[0] + records[1]
    ]


def test_what_is_no_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run-1", make_records(7), run={"fingerprint": "same"})
    make_run(tmp_path / "run-2", make_records(7)[:3], run={"fingerprint": "same"})
    lists = {"objects": ["dog"], "relations": ["on"]}
    make_run(tmp_path / "closed", make_records(3, 1), run={"fingerprint": "c", "labels": lists})
    refused = {
        "runs:\n- run-1\n- run-2": "run-1 and run-2 both have images 0 to 3 of train",
        "runs:\n- run-1\n- ./run-1": "names .*run-1 twice",
        "runs:\n- run-1\n- closed": "other lists of classes or predicates",
        "runs:\n- run-1\n- none": "no such folder: .*none",
        "runs:\n- run-9*": "run-9. matches no run",
        "runs: []": "all.yaml: .*runs",
        "run: run-1": "all.yaml: .*run",
        "runs: [": "all.yaml is not YAML",
        "": "all.yaml is empty",
    }
    dataset = tmp_path / "all.yaml"
    for text, message in refused.items():
        dataset.write_text(text)
        with pytest.raises(UserError, match=message):
            load_manifest(dataset)


def test_verify_names_the_run_of_a_problem_and_images_that_two_runs_have(tmp_path: Path) -> None:
    records = make_records(7)
    for number, rows in enumerate([records[:4], records[3:]]):
        make_run(tmp_path / f"run-{number}", rows, run={"fingerprint": f"run {number}"})
    problems = verify(f"{tmp_path}/run-*").problems
    assert [(problem.file, problem.problem) for problem in problems] == [
        ("run-1/data/train-000000000-000000004.parquet", "1 image already in the run")
    ]
    [shard] = (tmp_path / "run-0" / "data").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "truncated" in verify(f"{tmp_path}/run-*").problems[0].problem
    with pytest.raises(UserError, match=r"repair those of .* one by one"):
        verify(f"{tmp_path}/run-*", repair=True)


def test_a_pattern_of_a_store_is_of_its_folders() -> None:
    store = Memory()
    for name in ("part-2/manifest.jsonl", "part-10/manifest.jsonl", "part-3/x", "other/x"):
        (store / name).put(b"")
    runs = runs_of(store / "part-*")
    assert [run.name for run in runs] == ["part-2", "part-10"]
    with pytest.raises(UserError, match="only be in the last part"):
        runs_of(store / "*" / "part-*")
