"""Runs that take captions and more from another run."""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.export.card import describe_origin
from sgpipe.generation import engine
from sgpipe.generation import run as generation
from sgpipe.generation.engine import UnitReader, WorkUnit
from sgpipe.generation.parent import ParentReader, parent_recipe
from sgpipe.generation.run import generate
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.records import Box, Caption, Pair, Record, Relation, Triplet, to_table
from sgpipe.storage.manifest import Manifest, Summary
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import iter_records, write_shard
from sgpipe.storage.source_index import write_index
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, CATEGORIES, Files, make_coco
from tests.factories import make_blip, untrained_tagger
from tests.sgpipe.generation.in_process import RAN

pytestmark = pytest.mark.usefixtures("in_this_process")
IMAGES = 6
SMALL = {"tag.short_side": 48, "tag.long_side": 64, "tag.threshold": 0.01, "engine.unit_size": 2}


@pytest.fixture
def ran() -> list[str]:
    """The names of the stages that ran since."""
    RAN.clear()
    return RAN


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    untrained_tagger(folder / "tagger", [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    make_blip(folder / "captioner")
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Files:
    return make_coco(tmp_path_factory.mktemp("coco"), images=IMAGES, missing=(4,))


def recipe(files: Files, models: Path, **changes: object) -> Recipe:
    """Captions of a file."""
    splits = {"val": {"annotations": files.annotations, "images": files.images, "captions": files.captions}}
    settings = {"source.splits": splits, "caption.captioner": None, "tag.tagger": str(models / "tagger"), **SMALL}
    return load_recipe("coco", settings | changes)


def captioned(files: Files, models: Path, **changes: object) -> Recipe:
    return recipe(files, models, **{"caption.captioner": str(models / "captioner"), "caption.samples": 2, **changes})


def run(made: Recipe, out: Path, parent: Path | None = None, retry_failed: bool = False) -> tuple[Summary, list[str]]:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=1000))
    summary = generate(made, out, progress, parent=parent, retry_failed=retry_failed)
    return summary, text.getvalue().splitlines()


def rows(out: Path) -> list[Record]:
    return list(iter_records(out))


@pytest.fixture(scope="module")
def made(coco, models, tmp_path_factory) -> Path:
    """A run with a captioner."""
    out = tmp_path_factory.mktemp("runs") / "made"
    run(captioned(coco, models), out)
    return out


@pytest.fixture
def parent(made, tmp_path_factory, ran) -> Path:
    """A copy of it, which a test may damage."""
    return shutil.copytree(made, tmp_path_factory.mktemp("copy") / "run")


HIGHER = {"tag.threshold": 0.3}


@pytest.fixture(scope="module")
def scratch(coco, models, tmp_path_factory) -> list[Record]:
    """The rows of a run with a higher threshold that has no parent."""
    out = tmp_path_factory.mktemp("runs") / "scratch"
    run(captioned(coco, models, **HIGHER), out)
    return rows(out)


def test_only_the_tagger_runs_again_if_only_it_differs(parent, scratch, coco, models, ran, tmp_path):
    summary, said = run(captioned(coco, models, **HIGHER), tmp_path / "new", parent)
    assert said[0] == f"captions, triplets and pairs from {parent}; tag to run (tag.threshold: 0.01 then, 0.3 now)"
    assert ran == ["tag"]
    assert rows(tmp_path / "new") == scratch
    assert sum(len(row.captions) for row in scratch) == 2 * (IMAGES - 1)
    [before, now] = (Manifest.load(out).run for out in (parent, tmp_path / "new"))
    assert now["identity"]["parent"] == before["fingerprint"] != now["fingerprint"]
    assert now["identity"]["caption"] == before["identity"]["caption"]
    assert summary.as_json()["parent"]["reused"] == ["captions", "triplets", "pairs"]
    assert f"columns are those of another run (`{before['fingerprint']}`)" in " ".join(describe_origin(now, False)[1])


def test_runs_on_a_machine_with_gpus_are_resumed_and_taken_over(parent, coco, models, ran, tmp_path, monkeypatch):
    """The GPU is pretended: the stages compute on the CPU, which they are not told."""
    lent: list[set[str]] = []
    monkeypatch.setattr(generation, "share_gpus", lambda recipe, stages: (lent.append(set(stages)), recipe)[1])
    monkeypatch.setattr(engine, "usable_gpus", lambda: 1)
    out = tmp_path / "out"
    run(captioned(coco, models), out)
    there = Manifest.load(out).run["identity"]
    assert (there["caption"]["dtype"], there["tag"]["dtype"]) == ("auto on a GPU", "auto on a GPU")
    assert lent[-1] == {"caption", "tag"}
    _, lines = run(load_recipe(out / "recipe.yaml"), out)
    assert any(line.startswith("nothing left to do") for line in lines)
    ran.clear()
    run(captioned(coco, models, **{"tag.threshold": 0.02}), tmp_path / "child", out)
    assert ran == ["tag"]
    assert lent[-1] == {"tag"}
    run(captioned(coco, models, **{"tag.threshold": 0.02}), tmp_path / "of a CPU", parent)
    assert Manifest.load(tmp_path / "of a CPU").run["identity"]["tag"]["dtype"] == "auto on a CPU"
    assert lent[-1] == set()
    monkeypatch.setattr(engine, "usable_gpus", lambda: 0)
    with pytest.raises(UserError, match=r"caption\.dtype: 'auto on a GPU' then, 'auto on a CPU' now"):
        run(captioned(coco, models), out)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"pair.candidates": "image"}, ["pair", "tag"]),
        (
            {"pair.candidates": "image", "pair.match": "substring"},
            ["parse", "pair", "tag"],
        ),  # whose attributes are whose
        ({"pair.loose": False, "parse.attributes": False}, ["parse", "pair", "tag"]),
        (HIGHER, ["tag"]),
    ],
)
def test_stages_after_the_first_that_differs_run_and_rows_are_those_of_a_run_without_a_parent(
    coco, models, ran, tmp_path, changes, stages
):
    captions = tmp_path / "captions.json"
    texts = ["a small dog and a red bike", "two wet dogs near two old bikes", "two tall people"]
    listed = [{"image_id": image, "caption": text} for image in range(IMAGES) for text in texts]
    captions.write_text(json.dumps({"annotations": listed}))
    files = replace(coco, captions=captions)
    run(recipe(files, models), tmp_path / "parent")
    ran.clear()
    run(recipe(files, models, **changes), tmp_path / "new", tmp_path / "parent")
    assert ran == stages
    run(recipe(files, models, **changes), tmp_path / "scratch")
    assert rows(tmp_path / "new") == rows(tmp_path / "scratch")
    assert (rows(tmp_path / "new") == rows(tmp_path / "parent")) == (changes == HIGHER)
    found = {each.name for row in rows(tmp_path / "new") for box in row.objects for each in box.attributes}
    assert found == (set() if "parse.attributes" in changes else {"small", "red", "two", "wet", "old", "tall"})


def test_the_captioner_need_not_exist_any_more(parent, scratch, coco, models, ran, tmp_path):
    gone = tmp_path / "captioner"
    named = yaml.safe_load((parent / "recipe.yaml").read_text())
    named["caption"]["captioner"] = str(gone)
    (parent / "recipe.yaml").write_text(yaml.safe_dump(named))
    run(parent_recipe(str(parent), HIGHER), tmp_path / "new", parent)
    assert ran == ["tag"]
    assert rows(tmp_path / "new") == scratch
    with pytest.raises(UserError, match=r"nothing of .* can be reused.*caption\.samples: 2 then, 1 now"):
        run(parent_recipe(str(parent), {"caption.samples": 1}), tmp_path / "other", parent)
    make_blip(gone, seed=1)
    with pytest.raises(UserError, match=r"nothing of .* can be reused.*caption\.captioner: 'sha256:"):
        run(parent_recipe(str(parent), HIGHER), tmp_path / "other", parent)


def test_a_stopped_run_goes_on_also_with_other_units(parent, scratch, coco, models, tmp_path):
    run(captioned(coco, models, limit=3, **HIGHER), tmp_path / "new", parent)
    run(captioned(coco, models, **HIGHER, **{"engine.unit_size": 5}), tmp_path / "new", parent)
    assert rows(tmp_path / "new") == scratch
    with pytest.raises(UserError, match=r"made with other settings.*\n  parent: '\w+' then, None now"):
        run(captioned(coco, models, **HIGHER), tmp_path / "new")
    run(captioned(coco, models, **HIGHER, limit=2), tmp_path / "other")
    with pytest.raises(UserError, match=r"made with other settings.*\n  parent: None then"):
        run(captioned(coco, models, **HIGHER), tmp_path / "other", parent)


def test_a_moved_run_keeps_its_images_and_files(coco, models, tmp_path, monkeypatch):
    folder = tmp_path / "at"
    shutil.copytree(coco.images.parent, folder)
    monkeypatch.chdir(folder)
    files = Files(Path("images"), Path(coco.annotations.name), Path(coco.captions.name))
    run(captioned(files, models), tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent").rename(tmp_path / "moved")
    run(parent_recipe("moved", HIGHER), tmp_path / "new", "moved")
    assert rows(tmp_path / "new")[0].ok
    assert Manifest.load(tmp_path / "new").image_roots.locations == {"val": str(folder / "images")}


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        ("", {}, "nothing differs from {run}"),
        ("", {"seed": 1}, "nothing of {run} can be reused, as its first stage differs (seed: 0 then, 1 now)"),
        ("annotations", {}, "{run} has other images or annotations (source.val.annotations: a file of SHA-256 "),
        ("", {"source.format": "objects365"}, "other images or annotations (format: 'coco' then, 'objects365' now)"),
        ("shorter", {}, "{run} lacks 2 of 6 images: finish it first"),
        ("locked", {}, "another process is writing into {run}"),
        ("scored", {}, "expected a run of `sgpipe generate`, this is a scored copy of a run"),
        ("itself", {}, "is the run that --from names"),
    ],
)
def test_what_cannot_be_taken_over_is_one_line_and_leaves_no_trace(
    parent, coco, models, tmp_path, monkeypatch, damage, changes, message
):
    files, out = coco, tmp_path / "new"
    manifest = Manifest.load(parent)
    if damage == "annotations":
        other = json.loads(coco.annotations.read_text())
        other["annotations"][0]["bbox"][0] += 1
        files = replace(coco, annotations=tmp_path / coco.annotations.name)
        files.annotations.write_text(json.dumps(other))
    elif damage == "shorter":
        manifest.rewrite(manifest.shards[-1:])
    elif damage == "locked":
        monkeypatch.setattr(RunFolder, "is_locked", True)
    elif damage == "scored":
        manifest.run["identity"] = {"scored": "x"}
        manifest.rewrite()
    out = parent if damage == "itself" else out
    given = captioned(files, models, **(HIGHER if damage or "source" in str(changes) else {}), **changes)
    with pytest.raises(UserError) as caught:
        run(given, out, parent)
    assert message.format(run=parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_whose_bytes_changed_is_named_and_the_rest_kept(parent, coco, models, tmp_path):
    shard = parent / "data" / "val-000000002-000000004.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(UserError, match=rf"^data/{shard.name} of {parent} is missing or damaged"):
        run(captioned(coco, models, **HIGHER), tmp_path / "new", parent)
    assert len(Manifest.load(tmp_path / "new").shards) == 1
    shard.write_bytes(whole)
    summary, _ = run(captioned(coco, models, **HIGHER), tmp_path / "new", parent)
    assert summary.complete


def taken_over(folder: Path, made: Sequence[Record], reused: Sequence[str], start: int = 0) -> list[Record]:
    """What is taken of the rows of a parent where these stages are reused."""
    source = [Record(row.image_id, "folder", "all", row.file_name, 9, 9) for row in made]
    write_index(folder / "index.arrow", [to_table(source)], dict)
    shard = write_shard(folder, "data/all-000000000-000000009.parquet", "all", 0, list(made), {})
    reader = UnitReader(folder, {"all": "index.arrow"})
    parent = ParentReader(reader.storage, reader.indexes, str(folder), reader.storage, (shard,), tuple(reused))
    return parent(WorkUnit("all", start, len(made)))


def failed(rows: Mapping[str, dict[str, Any]], **columns: object) -> list[Record]:
    """Error rows: what each says, and what stages had found until then."""
    return [
        Record(str(n), "folder", "all", f"{n}.png", 9, 9, status="error", error=error, **found, **columns)
        for n, (error, found) in enumerate(rows.items())
    ]


BOXES = [Box("dog", 1, (1, 1, 5, 5), origin="detector", score=0.5)]
CAPTION, PAIR = [Caption("a dog")], [Pair(0, 0, ["near"])]
FAILED = {
    "source: no image": {},
    "detect: no image": {},
    "caption: no image": {"objects": BOXES},
    "worker: crashed before captions": {"objects": BOXES},
    "worker: crashed after captions": {"objects": BOXES, "captions": CAPTION},
    "tag: no image": {"objects": BOXES, "captions": CAPTION, "pairs": PAIR},
}


@pytest.mark.parametrize(("reused", "kept"), [(("detect",), 2), (("detect", "caption"), 4)])
def test_errors_of_stages_that_run_again_are_tried_again(tmp_path, reused, kept):
    count = len(FAILED) + 1
    fine = Record(str(count - 1), "folder", "all", f"{count - 1}.png", 9, 9, **FAILED["tag: no image"])
    fine.left_out = {"boxes": 5, "regions": 6, "pairs": 7}
    fine.relations = [Relation(0, 0, "near", 0.5)]
    taken = taken_over(tmp_path, [*failed(FAILED), fine], reused, start=1)
    assert [row.error for row in taken] == [*list(FAILED)[1:kept], *[None] * (count - kept)]
    assert taken[-1].objects == BOXES
    assert taken[-1].captions == (CAPTION if "caption" in reused else [])
    assert taken[-1].pairs == taken[-1].relations == []
    assert taken[-1].left_out == ({"boxes": 5, "regions": 6} if "caption" in reused else {"boxes": 5})


@pytest.mark.parametrize("with_words", [False, True])
def test_boxes_of_words_are_taken_over_with_their_stage_alone(tmp_path, with_words):
    word = Box("cone", 2**30, (2, 2, 3, 3), origin="grounded", score=0.5, phrase="cone")
    rows = {
        "ground: no image": {"objects": BOXES},
        "worker: crashed before or without words": {"objects": BOXES},
        "worker: crashed after words": {"objects": [*BOXES, word]},
        "tag: no image": {"objects": [*BOXES, word]},
    }
    made = failed(rows, captions=CAPTION, triplets=[Triplet("dog", "near", "cone", "dog", "cone", "near", 0)])
    made[-1].left_out = {"words": 3, "grounded": 4, "pairs": 7}
    taken = taken_over(tmp_path, made, ("detect", "caption", "parse", *(["ground"] if with_words else [])))
    kept = 2 if with_words else 0
    assert [row.error for row in taken] == [*list(rows)[:kept], *[None] * (len(rows) - kept)]
    assert [row.objects for row in taken[2:]] == [[*BOXES, word] if with_words else BOXES] * 2
    assert taken[-1].left_out == ({"words": 3, "grounded": 4} if with_words else {})


def test_retrying_takes_what_the_parent_has_made_good_since(models, tmp_path):
    files = make_coco(tmp_path / "coco", images=3, missing=(1,))
    made, other = recipe(files, models), recipe(files, models, **HIGHER)
    run(made, tmp_path / "parent")
    assert run(other, tmp_path / "new", tmp_path / "parent")[0].counts["errors"] == 1
    shutil.copy(files.images / "0000.png", files.images / "0001.png")
    summary, _ = run(other, tmp_path / "new", tmp_path / "parent", retry_failed=True)
    assert summary.counts["errors"] == 1  # the parent has no captions of it yet
    run(made, tmp_path / "parent", retry_failed=True)
    summary, _ = run(other, tmp_path / "new", tmp_path / "parent", retry_failed=True)
    assert summary.counts["errors"] == 0
    assert [row.triplets for row in rows(tmp_path / "new")] == [row.triplets for row in rows(tmp_path / "parent")]
