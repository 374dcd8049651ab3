"""Whole runs with random miniature models."""

import io
import json
import random
import shutil
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sgpipe import Pipeline
from sgpipe.errors import UserError
from sgpipe.generation import run as generation
from sgpipe.generation.run import asked_rows, generate
from sgpipe.miniworld.dataset import IMAGES as DRAWN
from sgpipe.miniworld.dataset import render_dataset
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth, RunFolder, ground_truth_of
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.console import Progress
from tests.detections import make_coco
from tests.sgpipe.generation.coco_runs import FEW, HIGHER, IMAGES, captioned, recipe, split
from tests.sgpipe.generation.in_process import label, rows, without_ray
from tests.values import values_of
from tests.vlm_checkpoints import make_vlm

pytestmark = pytest.mark.usefixtures("engine_of_test")


@pytest.fixture(scope="module")
@without_ray()
def finished(coco, models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    label(recipe(coco, models), out)
    return out


def test_every_image_is_a_row_missing_ones_are_error_rows_and_the_counts_add_up(
    finished, coco, models
):
    records = rows(finished)
    summary, _ = label(recipe(coco, models), finished)  # nothing left to do
    listed = json.loads(coco.annotations.read_text())
    assert values_of(records, "image_id") == [str(image["id"]) for image in listed["images"]]
    assert summary.complete
    assert summary.counts["images"] == IMAGES
    assert summary.counts["boxes"] == len(listed["annotations"])
    assert summary.counts["captions"] == 2 * IMAGES
    assert summary.counts["relations"] == sum(len(record.relations) for record in records) > 0
    for record in records:
        pairs = {(pair.subject, pair.object): pair.predicates for pair in record.pairs}
        assert all(
            relation.predicate in pairs[relation.subject, relation.object]
            for relation in record.relations
        )
    failed = {record.image_id: record.error for record in records if not record.ok}
    assert set(failed) == {"4", "7"}
    assert "image file not found" in failed["4"]
    assert Manifest.load(finished).run["images"] == {"val": str(coco.images.resolve())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_rows_do_not_depend_on_units_or_the_engine(finished, coco, models, tmp_path, kind):
    """With more units than may be in progress at once."""
    settings = {"engine.unit_size": 1, "engine.kind": kind, "engine.cpus": 2}
    label(recipe(coco, models, **settings), tmp_path / "out")
    assert rows(tmp_path / "out") == rows(finished)


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize(("limit", "asked"), [(None, ""), (10, ", of which 10 were asked for")])
def test_a_finished_run_says_that_nothing_is_left_to_do(
    finished, coco, models, monkeypatch, limit, asked
):
    """Without an engine and without models."""
    monkeypatch.setattr(generation, "LocalEngine", None)
    monkeypatch.setattr(generation, "build_stages", None)
    before = contents(finished)
    summary, lines = label(recipe(coco, models, limit=limit), finished)
    assert summary.complete
    assert lines[-1] == f"nothing left to do: {finished} has {IMAGES} images{asked}"
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"tag.resources": {"cpus": 900}}, "lower tag.resources.cpus", marks=pytest.mark.slow
        ),
        ({"tag.tagger": "nowhere/at/all"}, "no such folder: nowhere/at/all"),
        ({"tag.tagger": "no-such-tagger"}, "neither a folder nor in the cache .*: no-such-tagger"),
        ({"pair.synonyms": "no.json"}, "no such file: no.json"),
        ({"source.ground_truth": "no"}, "no such folder: no"),
        ({"source.ground_truth": "."}, "is not an sgpipe run"),
        (
            {"source.splits": {"a-b": {"annotations": "a", "images": "b"}}},
            "source.splits.a-b: String should match",
        ),
    ],
)
def test_what_is_refused_changes_nothing_in_a_run(
    coco, models, finished, tmp_path, options, message
):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    next((out / "data").glob("*.parquet")).unlink()  # there is something to do
    before = contents(out)
    for place, why in ((out, None), (tmp_path / "new", message)):
        with pytest.raises(UserError, match=why):
            label(recipe(coco, models, **options), place)
    assert contents(out) == before


def test_a_missing_hub_model_is_told_before_annotations_are_read(coco, models, tmp_path):
    output = io.StringIO()
    with pytest.raises(UserError, match="neither a folder nor in the cache"):
        generate(
            recipe(coco, models, **{"tag.tagger": "no-such-tagger"}),
            tmp_path / "new",
            Progress(Console(file=output, width=1000)),
        )
    assert "reading the annotations" not in output.getvalue()
    assert not (tmp_path / "new").exists()


@given(
    lengths=st.dictionaries(st.sampled_from(("train", "val")), st.integers(0, 50), min_size=1),
    limit=st.none() | st.integers(1, 60),
    parts=st.integers(1, 12),
)
def test_parts_follow_each_other_and_are_together_what_one_run_labels(lengths, limit, parts):
    whole = asked_rows(lengths, limit, None)
    asked = [asked_rows(lengths, limit, f"{number}/{parts}") for number in range(1, parts + 1)]
    for name in lengths:
        rows_of_parts = [part[name] for part in asked]
        assert [row for rows in rows_of_parts for row in rows] == list(whole[name])
        sizes = {len(rows) for rows in rows_of_parts}
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.slow
def test_parts_have_the_rows_of_one_run_and_a_folder_has_one_part(finished, coco, models, tmp_path):
    parts = [tmp_path / f"part-{number}" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        summary, _ = label(recipe(coco, models, part=f"{number}/3"), part)
        assert summary.complete
        assert 0 < summary.planned < IMAGES
    labelled = [record for part in parts for record in iter_records(part)]
    whole = list(iter_records(finished))
    key = attrgetter("split", "image_id")
    assert sorted(labelled, key=key) == sorted(whole, key=key)
    assert {Manifest.load(part).run["fingerprint"] for part in parts} == {
        Manifest.load(finished).run["fingerprint"]
    }
    refused = f"{parts[0]} contains part 1/3 of the images, not part 2/3: pass --part 1/3"
    with pytest.raises(UserError, match=refused):
        label(recipe(coco, models, part="2/3"), parts[0])
    with pytest.raises(UserError, match="not all parts: pass --part 1/3"):
        label(recipe(coco, models), parts[0])
    with pytest.raises(UserError, match="contains all parts of the images, not part 2/3: omit"):
        label(recipe(coco, models, part="2/3"), finished)


@pytest.mark.slow
def test_a_limit_can_be_raised(finished, coco, models, tmp_path):
    out = tmp_path / "out"
    shards = set[str]()
    for limit, images in ((3, 3), (8, 8), (None, IMAGES)):
        assert label(recipe(coco, models, limit=limit), out)[0].counts["images"] == images
        before = shards
        shards = set(values_of(Manifest.load(out).shards, "sha256"))
        assert before < shards
    assert rows(out) == rows(finished)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["florence2", "qwen3_vl"])
def test_a_vision_language_captioner_goes_on_with_another_batch_size(few, models, family, tmp_path):
    model_settings = {
        "caption.captioner": make_vlm(tmp_path / "model", family),
        "caption.max_tokens": 12,
        "tag.method": "all",
    }
    for name, limit, size in (("whole", None, 8), ("out", 3, 1), ("out", None, 3)):
        label(
            captioned(
                few, models, **model_settings, **{"limit": limit, "caption.batch_size": size}
            ),
            tmp_path / name,
        )
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert len({caption.text for row in rows(tmp_path / "out") for caption in row.captions}) > FEW


def test_failed_rows_are_done_again_on_request(models, tmp_path):
    files = make_coco(tmp_path / "coco", images=9)
    hidden = [files.images / "0004.png", files.images / "0007.png"]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    run_recipe = recipe(files, models)
    out = tmp_path / "out"
    assert label(run_recipe, out)[0].counts["errors"] == 2
    before = rows(out)
    hidden[0].with_suffix(".hidden").rename(hidden[0])
    assert [
        label(run_recipe, out, retry_failed=retry)[0].counts["errors"] for retry in (False, True)
    ] == [2, 1]
    after = rows(out)
    assert [row for row, old in zip(after, before, strict=True) if old.ok] == [
        row for row in before if row.ok
    ]
    assert after[4].captions
    assert {f"data/{path.name}" for path in (out / "data").iterdir()} == set(
        values_of(Manifest.load(out).shards, "file")
    )


def test_another_recipe_is_refused_and_leaves_the_ground_truth_of_the_run_as_it_is(
    finished, coco, models
):
    folder = RunFolder(finished)
    folder.set_ground_truth(GroundTruth(finished))
    with pytest.raises(
        UserError, match=r"made with other settings.*\n  tag.threshold: 0.01 then, 0.3 now"
    ):
        label(recipe(coco, models, **HIGHER), finished)
    assert ground_truth_of(folder.root) == GroundTruth(finished)
    label(recipe(coco, models), finished)  # the same recipe, but no ground truth any more
    assert ground_truth_of(folder.root) is None


def test_a_longer_annotation_file_is_another_run_and_merging_is_advised(
    finished, coco, models, tmp_path
):
    listed = json.loads(coco.annotations.read_text())
    longer = tmp_path / "longer.json"
    longer.write_text(
        json.dumps(listed | {"images": [*listed["images"], {**listed["images"][0], "id": 99}]})
    )
    with pytest.raises(
        UserError, match=r"annotations: content of SHA-256 \w{8}… then.*\n.*sgpipe merge"
    ):
        label(recipe(replace(coco, annotations=longer), models), finished)
    assert Manifest.load(finished).run["source_images"] == IMAGES  # what a dataset card says


def test_shards_without_a_manifest_are_left_alone(finished, coco, models, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "manifest.jsonl").unlink()
    before = contents(out / "data")
    with pytest.raises(UserError, match="contains shards but no manifest"):
        label(recipe(coco, models), out)
    assert contents(out / "data") == before


@pytest.mark.slow
def test_two_splits_fill_one_folder(coco, models, tmp_path):
    import datasets

    other = make_coco(tmp_path / "other", images=5, seed=3)
    splits = {"train": split(other), "val": split(coco)}
    out = tmp_path / "out"
    for limit, expected in ((3, {"train": 3}), (8, {"train": 5, "val": 3})):
        label(recipe(coco, models, **{"source.splits": splits, "limit": limit}), out)
        loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        assert {name: part.num_rows for name, part in loaded.items()} == expected
    assert values_of(rows(out), "split") == ["train"] * 5 + ["val"] * 3


def labels(run_recipe: Recipe, folder: Path) -> dict[str, Any]:
    """By image: the captions, and the relations between boxes as they are."""
    label(run_recipe, folder)
    labels_of_images = {}
    for record in rows(folder):
        boxes = [f"{box.category} {box.bbox}" for box in record.objects]
        relations = [
            (boxes[r.subject], r.predicate, boxes[r.object], r.confidence) for r in record.relations
        ]
        captions = [
            (caption.text, [boxes[index] for index in caption.boxes]) for caption in record.captions
        ]
        labels_of_images[record.image_id] = (sorted(relations), sorted(captions), record.left_out)
    return labels_of_images


@pytest.mark.slow
@pytest.mark.parametrize("captioner", [False, True])
def test_shuffled_annotations_give_the_same_labels(
    models: Path, tmp_path: Path, captioner: bool
) -> None:
    files = make_coco(tmp_path / "coco", images=5)
    settings: dict[str, object] = {"tag.group_size": 3, "pair.max_pairs": 10}
    if captioner:
        settings |= {
            "caption.samples": 1,
            "caption.scopes": ["image", "box"],
            "caption.max_crops": 3,
        }
    run_recipe = (captioned if captioner else recipe)(files, models, **settings)
    expected = labels(run_recipe, tmp_path / "first")
    assert any(relations for relations, _, _ in expected.values()) or captioner
    for file in (files.annotations, files.captions):
        content = json.loads(Path(file).read_text())
        for name in {"annotations", "images", "categories"} & content.keys():
            random.Random(0).shuffle(content[name])
        Path(file).write_text(json.dumps(content))
    assert labels(run_recipe, tmp_path / "shuffled") == expected


def test_the_saved_recipe_of_the_miniworld_runs_again(tmp_path):
    first = tmp_path / "first"
    moved = tmp_path / "moved"
    label(load_recipe("miniworld", {"source.miniworld.images": 2, "caption.samples": 2}), first)
    before = rows(first)
    label(load_recipe(first / "recipe.yaml"), first)
    first.rename(moved)
    label(load_recipe(moved / "recipe.yaml"), tmp_path / "again")
    assert rows(moved) == rows(tmp_path / "again") == before
    other = load_recipe(moved / "recipe.yaml", {"source.splits.val.images": str(tmp_path)})
    with pytest.raises(UserError, match="generates its own images"):
        label(other, tmp_path / "other")


@pytest.mark.slow
def test_a_folder_is_labelled_as_its_images_one_by_one(tmp_path):
    render_dataset(tmp_path / "drawn", 8, seed=3)
    images = tmp_path / "drawn" / DRAWN
    source = {"source.format": "folder", "source.splits": {"all": {"images": images}}}
    label(load_recipe("miniworld", source), tmp_path / "out")
    labelled = values_of(rows(tmp_path / "out"), "image_id", "objects", "captions", "relations")
    one_by_one = values_of(Pipeline().label(sorted(images.iterdir())), "record")
    assert labelled == values_of(one_by_one, "image_id", "objects", "captions", "relations")
    assert sum(len(objects) for _, objects, _, _ in labelled) > 8
