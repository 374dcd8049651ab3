"""Whole runs with a random miniature tagger; the slow tests with worker processes."""

import io
import json
import random
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sgpipe import Pipeline
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.generation import run as generation_run
from sgpipe.generation.run import Summary, generate
from sgpipe.miniworld.dataset import IMAGES as DRAWN
from sgpipe.miniworld.dataset import render_dataset
from sgpipe.recipe import load_recipe
from sgpipe.records import Record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth, RunFolder, ground_truth_of
from sgpipe.storage.shards import iter_records
from sgpipe.storage.verify import verify
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, CATEGORIES, Files, make_coco
from tests.factories import make_blip, untrained_tagger
from tests.sgpipe.generation.in_process import without_ray

IMAGES = 40
QUIET = Progress(Console(quiet=True))
SMALL = {"tag.short_side": 224, "tag.long_side": 320, "tag.threshold": 0.01}


@pytest.fixture(autouse=True)
def engine(request):
    """Worker processes for the slow tests. The others run in this process."""
    with nullcontext() if request.node.get_closest_marker("slow") else without_ray():
        yield


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tagger"
    untrained_tagger(folder, [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Files:
    return make_coco(tmp_path_factory.mktemp("coco"), images=IMAGES, missing=(4, 7))


def split(files: Files) -> dict[str, Path]:
    return {"annotations": files.annotations, "images": files.images, "captions": files.captions}


def run(files: Files, tagger: Path, out: Path, retry_failed: bool = False, progress=QUIET, **options) -> Summary:
    overrides = {"source.splits": {"val": split(files)}, "caption.captioner": None, "tag.tagger": str(tagger), **SMALL}
    overrides |= {key.replace("__", "."): value for key, value in options.items()}
    return generate(load_recipe("coco", overrides), out, progress, retry_failed=retry_failed)


def rows(out: Path) -> list[Record]:
    return list(iter_records(out))


@pytest.fixture(scope="module")
def finished(coco, tagger, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    with without_ray():
        run(coco, tagger, out)
    return out


def test_every_image_is_a_row_missing_ones_are_error_rows_and_the_counts_add_up(finished, coco, tagger):
    records = rows(finished)
    summary = run(coco, tagger, finished)  # nothing left to do
    listed = json.loads(coco.annotations.read_text())
    assert [record.image_id for record in records] == [str(image["id"]) for image in listed["images"]]
    assert summary.complete
    assert summary.counts["images"] == IMAGES
    assert summary.counts["boxes"] == len(listed["annotations"])
    assert summary.counts["captions"] == 2 * IMAGES
    assert summary.counts["relations"] == sum(len(record.relations) for record in records) > 0
    for record in records:
        pairs = {(pair.subject, pair.object): pair.predicates for pair in record.pairs}
        assert all(relation.predicate in pairs[relation.subject, relation.object] for relation in record.relations)
    failed = {record.image_id: record.error for record in records if not record.ok}
    assert set(failed) == {"4", "7"}
    assert "image file not found" in failed["4"]
    assert Manifest.load(finished).run["images"] == {"val": str(coco.images.resolve())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_rows_do_not_depend_on_units_or_the_engine(finished, coco, tagger, tmp_path, kind):
    """With more units than may be in progress at once."""
    run(coco, tagger, tmp_path / "out", engine__unit_size=1, engine__kind=kind, engine__cpus=2)
    assert rows(tmp_path / "out") == rows(finished)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize(("limit", "asked"), [(None, ""), (10, ", of which 10 were asked for")])
def test_a_finished_run_says_that_nothing_is_left_to_do(finished, coco, tagger, monkeypatch, limit, asked):
    """Without an engine and without models."""
    monkeypatch.setattr(generation_run, "LocalEngine", None)
    monkeypatch.setattr(generation_run, "build_stages", None)
    before = contents(finished)
    text = io.StringIO()
    progress = Progress(Console(file=text, width=300))
    assert run(coco, tagger, finished, False, progress, **({"limit": limit} if limit else {})).complete
    assert text.getvalue().splitlines()[-1] == f"nothing left to do: {finished} has {IMAGES} images{asked}"
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"tag__resources": {"cpus": 900}}, "lower tag.resources.cpus", marks=pytest.mark.slow),
        ({"tag__tagger": "nowhere/at/all"}, "no such folder: nowhere/at/all"),
        ({"tag__tagger": "no-such-tagger"}, "neither a folder nor in the cache .*: no-such-tagger"),
        ({"pair__synonyms": "no.json"}, "no such file: no.json"),
        ({"source__ground_truth": "no"}, "no such folder: no"),
    ],
)
def test_what_is_refused_changes_nothing_in_a_run(coco, tagger, finished, tmp_path, options, message):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    next((out / "data").glob("*.parquet")).unlink()  # there is something to do
    before = contents(out)
    with pytest.raises(UserError):
        run(coco, tagger, out, **options)
    assert contents(out) == before
    with pytest.raises(UserError, match=message):
        run(coco, tagger, tmp_path / "new", **options)


def test_a_limit_can_be_raised(finished, coco, tagger, tmp_path):
    out = tmp_path / "out"
    assert run(coco, tagger, out, limit=3).counts["images"] == 3
    assert run(coco, tagger, out, limit=8).counts["images"] == 8
    first = [shard.sha256 for shard in Manifest.load(out).shards]
    assert run(coco, tagger, out).counts["images"] == IMAGES
    assert set(first) < {shard.sha256 for shard in Manifest.load(out).shards}
    assert rows(out) == rows(finished)


def test_failed_rows_are_done_again_on_request(coco, tagger, tmp_path):
    files = make_coco(tmp_path / "coco", images=9)
    hidden = [files.images / "0004.png", files.images / "0007.png"]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    out = tmp_path / "out"
    assert run(files, tagger, out).counts["errors"] == 2
    before = rows(out)
    hidden[0].with_suffix(".hidden").rename(hidden[0])
    assert run(files, tagger, out).counts["errors"] == 2
    assert run(files, tagger, out, retry_failed=True).counts["errors"] == 1
    after = rows(out)
    assert [row for row, old in zip(after, before, strict=True) if old.ok] == [row for row in before if row.ok]
    assert after[4].captions
    assert {f"data/{path.name}" for path in (out / "data").iterdir()} == {
        each.file for each in Manifest.load(out).shards
    }


def test_another_recipe_is_refused_and_leaves_the_ground_truth_of_the_run_as_it_is(finished, coco, tagger):
    folder = RunFolder(finished)
    folder.set_ground_truth(GroundTruth(finished))
    with pytest.raises(UserError, match=r"made with other settings.*\n  tag.threshold: 0.01 then, 0.3 now"):
        run(coco, tagger, finished, tag__threshold=0.3)
    assert ground_truth_of(folder.root) == GroundTruth(finished)
    run(coco, tagger, finished)  # the same recipe, but no ground truth any more
    assert ground_truth_of(folder.root) is None


def test_a_longer_annotation_file_is_another_run_and_merging_is_advised(finished, coco, tagger, tmp_path):
    listed = json.loads(coco.annotations.read_text())
    longer = tmp_path / "longer.json"
    longer.write_text(json.dumps(listed | {"images": [*listed["images"], {**listed["images"][0], "id": 99}]}))
    with pytest.raises(UserError, match=r"annotations: a file of SHA-256 \w{8}… then.*\n.*sgpipe merge"):
        run(replace(coco, annotations=longer), tagger, finished)


def test_shards_without_a_manifest_are_left_alone(finished, coco, tagger, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "manifest.jsonl").unlink()
    before = contents(out)
    with pytest.raises(UserError, match="contains shards but no manifest"):
        run(coco, tagger, out)
    assert contents(out) == before


@pytest.mark.slow
def test_two_splits_fill_one_folder(coco, tagger, tmp_path):
    import datasets

    other = make_coco(tmp_path / "other", images=5, seed=3)
    splits = {"train": split(other), "val": split(coco)}
    options = {"caption.captioner": None, "tag.tagger": str(tagger), "source.splits": splits, **SMALL}
    out = tmp_path / "out"
    for limit, expected in ((3, {"train": 3}), (8, {"train": 5, "val": 3})):
        generate(load_recipe("coco", {**options, "limit": limit}), out, QUIET)
        loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        assert {name: part.num_rows for name, part in loaded.items()} == expected
    assert [record.split for record in rows(out)] == ["train"] * 5 + ["val"] * 3


ORDERED = {"tag.short_side": 48, "tag.long_side": 64, "tag.threshold": 0.01, "tag.group_size": 3, "pair.max_pairs": 10}


def labels(files: Files, folder: Path, **settings: object) -> dict[str, Any]:
    """By image: the captions, and the relations between boxes as they are."""
    tagger = {"tag.tagger": str(folder.parent / "tagger")}
    made = load_recipe("coco", {"source.splits": {"val": split(files)}, **tagger, **ORDERED, **settings})
    generate(made, folder, QUIET)
    found = {}
    for record in rows(folder):
        boxes = [f"{box.category} {box.bbox}" for box in record.objects]
        relations = [(boxes[r.subject], r.predicate, boxes[r.object], r.confidence) for r in record.relations]
        captions = [(caption.text, [boxes[index] for index in caption.boxes]) for caption in record.captions]
        found[record.image_id] = (sorted(relations), sorted(captions), record.left_out)
    return found


@pytest.mark.parametrize("captioner", [False, True])
def test_shuffled_annotations_give_the_same_labels(tmp_path: Path, captioner: bool) -> None:
    untrained_tagger(tmp_path / "tagger", [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    settings: dict[str, object] = {"caption.captioner": None}
    if captioner:
        make_blip(tmp_path / "captioner")
        settings = {"caption.captioner": str(tmp_path / "captioner"), "caption.samples": 1}
        settings |= {"caption.scopes": ["image", "box"], "caption.max_crops": 3}
    files = make_coco(tmp_path / "coco", images=5)
    expected = labels(files, tmp_path / "first", **settings)
    assert any(relations for relations, _, _ in expected.values()) or captioner
    for file in (files.annotations, files.captions):
        content = json.loads(Path(file).read_text())
        for name in {"annotations", "images", "categories"} & content.keys():
            random.Random(0).shuffle(content[name])
        Path(file).write_text(json.dumps(content))
    assert labels(files, tmp_path / "shuffled", **settings) == expected


def test_the_saved_recipe_of_the_miniworld_runs_again(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    generate(load_recipe("miniworld", {"source.miniworld.images": 2, "caption.samples": 2}), first, QUIET)
    before = rows(first)
    generate(load_recipe(first / "recipe.yaml"), first, QUIET)
    first.rename(moved)
    generate(load_recipe(moved / "recipe.yaml"), tmp_path / "again", QUIET)
    assert rows(moved) == rows(tmp_path / "again") == before
    other = load_recipe(moved / "recipe.yaml", {"source.splits.val.images": str(tmp_path)})
    with pytest.raises(UserError, match="generates its own images"):
        generate(other, tmp_path / "other", QUIET)


@pytest.mark.slow
def test_a_folder_is_labelled_as_its_images_one_by_one(tmp_path):
    render_dataset(tmp_path / "drawn", 8, seed=3)
    images, out = tmp_path / "drawn" / DRAWN, tmp_path / "out"
    words = f"generate miniworld --images {images} --set source.format=folder --out {out}"
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0, result.output
    found = list(iter_records(out))
    assert verify(out).ok
    for record, graph in zip(found, Pipeline().label(sorted(images.iterdir())), strict=True):
        assert record.image_id == graph.record.image_id
        assert record.objects == graph.objects
        assert record.captions == graph.captions
        assert record.relations == graph.record.relations
    assert sum(len(record.objects) for record in found) > 8
