"""Runs that take stages over from a parent run."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgpipe.errors import UserError
from sgpipe.export.hugging_face import describe_origin
from sgpipe.generation import engine, resolve
from sgpipe.generation.engine import UnitReader, WorkUnit
from sgpipe.generation.identity import ParentReader, parent_recipe
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.records import Box, Caption, Pair, Record, Relation, Triplet, to_table
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFiles, RunFolder
from sgpipe.storage.shards import write_shard
from sgpipe.storage.source_index import write_index
from tests.detections import Files, make_coco
from tests.factories import make_blip
from tests.sgpipe.generation.coco_runs import FEW, HIGHER, captioned, recipe
from tests.sgpipe.generation.in_process import RAN, label, rows, without_ray
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("engine_of_test")

BOXES = [Box("dog", 1, (1, 1, 5, 5), origin="detector", score=0.5)]
CAPTION = [Caption("a dog")]
PAIR = [Pair(0, 0, ["near"])]
FAILED = {
    "source: no image": {}, "detect: no image": {}, "caption: no image": {"objects": BOXES},
    "worker: crashed before captions": {"objects": BOXES},
    "worker: crashed after captions": {"objects": BOXES, "captions": CAPTION},
    "tag: no image": {"objects": BOXES, "captions": CAPTION, "pairs": PAIR},
}  # fmt: skip


@pytest.fixture(scope="module")
@without_ray()
def finished_run(few, models, tmp_path_factory) -> Path:
    """A run with a captioner."""
    out = tmp_path_factory.mktemp("runs") / "made"
    label(captioned(few, models), out)
    return out


@pytest.fixture
def parent(finished_run, tmp_path_factory) -> Path:
    """A copy of it, which a test may damage."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("copy") / "run")


@pytest.fixture(scope="module")
@without_ray()
def scratch(few, models, tmp_path_factory) -> list[Record]:
    """The rows of a run with a higher threshold that has no parent."""
    out = tmp_path_factory.mktemp("runs") / "scratch"
    label(captioned(few, models, **HIGHER), out)
    return rows(out)


def test_only_the_tagger_runs_again_if_only_it_differs(parent, scratch, few, models, tmp_path):
    summary, lines = label(captioned(few, models, **HIGHER), tmp_path / "new", parent)
    assert (
        lines[0]
        == f"captions, triplets and pairs from {parent}; tag to run (tag.threshold: 0.01 then, 0.3"
        " now)"
    )
    assert RAN == ["tag"]
    assert rows(tmp_path / "new") == scratch
    assert sum(len(row.captions) for row in scratch) == 2 * (FEW - 1)
    [before, now] = (Manifest.load(out).run for out in (parent, tmp_path / "new"))
    assert now["identity"]["parent"] == before["fingerprint"] != now["fingerprint"]
    assert now["identity"]["caption"] == before["identity"]["caption"]
    assert summary.as_json()["parent"]["reused"] == ["captions", "triplets", "pairs"]
    assert f"columns are those of another run (`{before['fingerprint']}`)" in " ".join(
        describe_origin(now, False)[1]
    )


def test_runs_on_a_machine_with_gpus_are_resumed_and_taken_over(
    parent, few, models, tmp_path, monkeypatch
):
    """The GPU is pretended: the stages compute on the CPU, which they are not told."""
    lent: list[set[str]] = []
    monkeypatch.setattr(
        resolve, "share_gpus", lambda plan, stages, engine: (lent.append(set(stages)), plan)[1]
    )
    monkeypatch.setattr(engine, "usable_gpus", lambda: 1)
    out = tmp_path / "out"
    label(captioned(few, models), out)
    identity = Manifest.load(out).run["identity"]
    assert (identity["caption"]["dtype"], identity["tag"]["dtype"]) == (
        "auto on a GPU",
        "auto on a GPU",
    )
    assert lent[-1] == {"caption", "tag"}
    _, lines = label(load_recipe(out / "recipe.yaml"), out)
    assert any(line.startswith("nothing left to do") for line in lines)
    RAN.clear()
    label(captioned(few, models, **{"tag.threshold": 0.02}), tmp_path / "child", out)
    assert RAN == ["tag"]
    assert lent[-1] == {"tag"}
    label(captioned(few, models, **{"tag.threshold": 0.02}), tmp_path / "of a CPU", parent)
    assert Manifest.load(tmp_path / "of a CPU").run["identity"]["tag"]["dtype"] == "auto on a CPU"
    assert lent[-1] == set()
    monkeypatch.setattr(engine, "usable_gpus", lambda: 0)
    with pytest.raises(
        UserError, match=r"caption\.dtype: 'auto on a GPU' then, 'auto on a CPU' now"
    ):
        label(captioned(few, models), out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"pair.candidates": "image"}, ["pair", "tag"]),
        # The attributes of boxes come from the parser.
        ({"pair.candidates": "image", "pair.match": "substring"}, ["parse", "pair", "tag"]),
        ({"pair.loose": False, "parse.attributes": False}, ["parse", "pair", "tag"]),
        (HIGHER, ["tag"]),
    ],
)
@without_ray()
def test_stages_after_the_first_that_differs_run_and_rows_are_those_of_a_run_without_a_parent(
    few, models, tmp_path, changes, stages
):
    captions = tmp_path / "captions.json"
    texts = ["a small dog and a red bike", "two wet dogs near two old bikes", "two tall people"]
    listed = [{"image_id": image, "caption": text} for image in range(FEW) for text in texts]
    captions.write_text(json.dumps({"annotations": listed}))
    files = replace(few, captions=captions)
    label(recipe(files, models), tmp_path / "parent")
    RAN.clear()
    label(recipe(files, models, **changes), tmp_path / "new", tmp_path / "parent")
    assert stages == RAN
    label(recipe(files, models, **changes), tmp_path / "scratch")
    assert rows(tmp_path / "new") == rows(tmp_path / "scratch")
    assert (rows(tmp_path / "new") == rows(tmp_path / "parent")) == (changes == HIGHER)
    differing = {
        attribute.name
        for row in rows(tmp_path / "new")
        for box in row.objects
        for attribute in box.attributes
    }
    assert differing == (
        set() if "parse.attributes" in changes else {"small", "red", "two", "wet", "old", "tall"}
    )


def test_the_captioner_need_not_exist_any_more(parent, scratch, few, models, tmp_path):
    gone = tmp_path / "captioner"
    named = yaml.safe_load((parent / "recipe.yaml").read_text())
    named["caption"]["captioner"] = str(gone)
    (parent / "recipe.yaml").write_text(yaml.safe_dump(named))
    label(parent_recipe(str(parent), HIGHER), tmp_path / "new", parent)
    assert RAN == ["tag"]
    assert rows(tmp_path / "new") == scratch
    with pytest.raises(
        UserError, match=r"nothing of .* can be reused.*caption\.samples: 2 then, 1 now"
    ):
        label(parent_recipe(str(parent), {"caption.samples": 1}), tmp_path / "other", parent)
    make_blip(gone, seed=1)
    with pytest.raises(
        UserError, match=r"nothing of .* can be reused.*caption\.captioner: 'sha256:"
    ):
        label(parent_recipe(str(parent), HIGHER), tmp_path / "other", parent)


def test_a_stopped_run_goes_on_also_with_other_units(parent, scratch, few, models, tmp_path):
    label(captioned(few, models, limit=3, **HIGHER), tmp_path / "new", parent)
    label(captioned(few, models, **HIGHER, **{"engine.unit_size": 5}), tmp_path / "new", parent)
    assert rows(tmp_path / "new") == scratch
    with pytest.raises(
        UserError, match=r"made with other settings.*\n  parent: '\w+' then, None now"
    ):
        label(captioned(few, models, **HIGHER), tmp_path / "new")
    label(captioned(few, models, **HIGHER, limit=2), tmp_path / "other")
    with pytest.raises(UserError, match=r"made with other settings.*\n  parent: None then"):
        label(captioned(few, models, **HIGHER), tmp_path / "other", parent)


def test_a_moved_run_keeps_its_images(few, models, tmp_path, monkeypatch):
    folder = tmp_path / "at"
    shutil.copytree(few.images.parent, folder)
    monkeypatch.chdir(folder)
    files = Files(Path("images"), folder / few.annotations.name, folder / few.captions.name)
    label(captioned(files, models), tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent").rename(tmp_path / "moved")
    label(parent_recipe("moved", HIGHER), tmp_path / "new", "moved")
    assert rows(tmp_path / "new")[0].ok
    assert Manifest.load(tmp_path / "new").image_roots.locations == {"val": str(folder / "images")}


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        ("", {}, "nothing differs from {run}"),
        (
            "",
            {"seed": 1},
            "nothing of {run} can be reused, as its first stage differs (seed: 0 then, 1 now)",
        ),
        (
            "annotations",
            {},
            "{run} has other images or annotations (source.val.annotations: content of SHA-256 ",
        ),
        (
            "",
            {"source.format": "objects365"},
            "other images or annotations (format: 'coco' then, 'objects365' now)",
        ),
        ("shorter", {}, "{run} lacks 2 of 6 images: finish it first"),
        ("locked", {}, "another process is writing into {run}"),
        ("lost", {}, "data/val-000000004-000000006.parquet of {run} is missing or damaged"),
        ("scored", {}, "expected a run of `sgpipe generate`, this is a scored copy of a run"),
        ("itself", {}, "is the run that --from names"),
    ],
)
def test_what_cannot_be_taken_over_is_one_line_and_leaves_no_trace(
    parent, few, models, tmp_path, monkeypatch, damage, changes, message
):
    files = few
    out = tmp_path / "new"
    manifest = Manifest.load(parent)
    if damage == "annotations":
        other = json.loads(few.annotations.read_text())
        other["annotations"][0]["bbox"][0] += 1
        files = replace(few, annotations=tmp_path / few.annotations.name)
        files.annotations.write_text(json.dumps(other))
    elif damage == "shorter":
        manifest.rewrite(manifest.shards[-1:])
    elif damage == "lost":  # the last one: nothing is written before it would be read
        (parent / manifest.shards[-1].file).unlink()
    elif damage == "locked":
        monkeypatch.setattr(RunFolder, "is_locked", True)
    elif damage == "scored":
        manifest.run["identity"] = {"scored": "x"}
        manifest.rewrite()
    out = parent if damage == "itself" else out
    changed = captioned(
        files, models, **(HIGHER if damage or "source" in str(changes) else {}), **changes
    )
    with pytest.raises(UserError) as caught:
        label(changed, out, parent)
    assert message.format(run=parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out == parent or not out.exists()


def test_a_shard_whose_bytes_changed_is_named_and_the_rest_kept(parent, few, models, tmp_path):
    shard = parent / "data" / "val-000000002-000000004.parquet"
    data_bytes = shard.read_bytes()
    shard.write_bytes(data_bytes[:99] + bytes([data_bytes[99] ^ 1]) + data_bytes[100:])
    with pytest.raises(UserError, match=rf"^data/{shard.name} of {parent} is missing or damaged"):
        label(captioned(few, models, **HIGHER), tmp_path / "new", parent)
    assert len(Manifest.load(tmp_path / "new").shards) == 1
    shard.write_bytes(data_bytes)
    assert label(captioned(few, models, **HIGHER), tmp_path / "new", parent)[0].complete


def taken_over(
    folder: Path, finished_rows: Sequence[Record], reused: Sequence[str], start: int = 0
) -> list[Record]:
    """What is taken of the rows of a parent where these stages are reused."""
    source = [Record(row.image_id, "folder", "all", row.file_name, 9, 9) for row in finished_rows]
    write_index(folder / "index.arrow", [to_table(source)], dict)
    shard = write_shard(
        folder, "data/all-000000000-000000009.parquet", "all", 0, list(finished_rows), {}
    )
    reader = UnitReader(folder, {"all": "index.arrow"}, {})
    Manifest.create(folder, {}).commit(shard)
    sections = Recipe().stages
    reused_sections = {name: sections[name] for name in reused}
    parent = ParentReader(**vars(reader), files=RunFiles(folder), reused=reused_sections)
    return parent(WorkUnit("all", start, len(finished_rows)))


def failed(rows: Mapping[str, dict[str, Any]], **columns: object) -> list[Record]:
    """Error rows: what each says, and what stages had found until then."""
    return [
        Record(
            str(n),
            "folder",
            "all",
            f"{n}.png",
            9,
            9,
            status="error",
            error=error,
            **filled,
            **columns,
        )
        for n, (error, filled) in enumerate(rows.items())
    ]


@pytest.mark.parametrize(("reused", "first_kept"), [(("detect",), 2), (("detect", "caption"), 4)])
def test_errors_of_stages_that_run_again_are_tried_again(tmp_path, reused, first_kept):
    count = len(FAILED) + 1
    fine = Record(
        str(count - 1), "folder", "all", f"{count - 1}.png", 9, 9, **FAILED["tag: no image"]
    )
    fine.left_out = {"boxes": 5, "regions": 6, "pairs": 7}
    fine.relations = [Relation(0, 0, "near", 0.5)]
    taken = taken_over(tmp_path, [*failed(FAILED), fine], reused, start=1)
    assert values_of(taken, "error") == [
        *list(FAILED)[1:first_kept],
        *[None] * (count - first_kept),
    ]
    assert taken[-1].objects == BOXES
    assert taken[-1].captions == (CAPTION if "caption" in reused else [])
    assert taken[-1].pairs == taken[-1].relations == []
    assert taken[-1].left_out == (
        {"boxes": 5, "regions": 6} if "caption" in reused else {"boxes": 5}
    )


@pytest.mark.parametrize("with_words", [False, True])
def test_boxes_of_words_are_taken_over_with_their_stage_alone(tmp_path, with_words):
    word = Box("cone", 2**30, (2, 2, 3, 3), origin="grounded", score=0.5, phrase="cone")
    rows = {
        "ground: no image": {"objects": BOXES}, "worker: crashed before or without words": {"objects": BOXES},
        "worker: crashed after words": {"objects": [*BOXES, word]}, "tag: no image": {"objects": [*BOXES, word]},
    }  # fmt: skip
    finished_rows = failed(
        rows, captions=CAPTION, triplets=[Triplet("dog", "near", "cone", "dog", "cone", "near", 0)]
    )
    finished_rows[-1].left_out = {"words": 3, "grounded": 4, "pairs": 7}
    taken = taken_over(
        tmp_path, finished_rows, ("detect", "caption", "parse", "ground")[: 3 + with_words]
    )
    first_kept = 2 if with_words else 0
    assert values_of(taken, "error") == [
        *list(rows)[:first_kept],
        *[None] * (len(rows) - first_kept),
    ]
    assert values_of(taken[2:], "objects") == [[*BOXES, word] if with_words else BOXES] * 2
    assert taken[-1].left_out == ({"words": 3, "grounded": 4} if with_words else {})


def test_retrying_takes_what_the_parent_has_made_good_since(models, tmp_path):
    files = make_coco(tmp_path / "coco", images=3, missing=(1,))
    new = tmp_path / "new"
    parent = tmp_path / "parent"

    def errors(**more: bool) -> int:
        return label(recipe(files, models, **HIGHER), new, parent, **more)[0].counts["errors"]

    label(recipe(files, models), parent)
    assert errors() == 1
    shutil.copy(files.images / "0000.png", files.images / "0001.png")
    assert errors(retry_failed=True) == 1  # the parent has no captions of it yet
    label(recipe(files, models), parent, retry_failed=True)
    assert errors(retry_failed=True) == 0
    assert values_of(rows(new), "triplets") == values_of(rows(parent), "triplets")
