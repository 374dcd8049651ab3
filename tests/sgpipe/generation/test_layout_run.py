"""Runs by the layout model: without captions or with them, without a tagger or with an own model,
on both engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.recipe import Recipe, load_recipe, resolved
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.hashing import model_sha256
from tests.detections import Files, make_coco
from tests.factories import make_tagger
from tests.sgpipe.generation.in_process import label, rows, without_ray
from tests.values import values_of

WAYS: list[dict[str, Any]] = [
    {"pair.candidates": "layout", "captions": False},
    {"pair.candidates": "captions"},
    {"pair.candidates": "image"},
    {"pair.candidates": "captions+layout"},
]


@pytest.fixture(autouse=True)
def engine_of_test(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if request.node.get_closest_marker("slow") else without_ray():
        yield


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_coco(tmp_path_factory.mktemp("coco"), images=12, missing=(4,))


def recipe(files: Files, *, captions: bool = True, **changes: object) -> Recipe:
    split = {"annotations": files.annotations, "images": files.images}
    splits = {"val": {**split, "captions": files.captions} if captions else split}
    return load_recipe("coco", {"source.splits": splits, "caption.captioner": None, **changes})


@pytest.mark.parametrize("changes", WAYS)
def test_a_recipe_without_a_tagger_labels_by_layout_and_says_how_good_it_is(
    coco: Files, tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, lines = label(recipe(coco, **changes, **{"tag.threshold": 0.0}), tmp_path / "out")
    records = rows(tmp_path / "out")
    assert {one.origin for record in records for one in record.relations} == {"layout"}
    assert [record.image_id for record in records if not record.ok] == ["4"]
    [note] = [line for line in lines if "layout model" in line]
    assert "a precision of" in note
    assert "--tagger" in note
    identity = Manifest.load(tmp_path / "out").run["identity"]
    assert identity["tag"]["method"] == "layout"
    assert identity["tag"]["tagger"].startswith("sha256:")


@pytest.mark.slow
@pytest.mark.parametrize("candidates", ["layout", "image"])
def test_rows_do_not_depend_on_units_or_the_engine(
    coco: Files, tmp_path: Path, candidates: str
) -> None:
    for kind, size in (("local", 512), ("local", 1), ("ray", 5)):
        settings = {
            "pair.candidates": candidates,
            "engine.kind": kind,
            "engine.unit_size": size,
            "engine.cpus": 2,
        }
        label(recipe(coco, **settings, **{"tag.threshold": 0.0}), tmp_path / f"{kind}{size}")
    first = rows(tmp_path / "local512")
    assert any(values_of(first, "relations"))
    assert rows(tmp_path / "local1") == first
    assert rows(tmp_path / "ray5") == first


def test_an_own_model_is_known_by_its_folder_and_counts_by_its_content(
    coco: Files, tmp_path: Path
) -> None:
    LayoutModel.load().save(tmp_path / "own")
    model_settings = {"tag.tagger": str(tmp_path / "own"), "pair.candidates": "captions+layout"}
    assert resolved(recipe(coco, **model_settings)).pair.model == str(tmp_path / "own")
    label(recipe(coco, **model_settings), tmp_path / "out")
    identity = Manifest.load(tmp_path / "out").run["identity"]
    assert (
        identity["tag"]["tagger"]
        == identity["pair"]["model"]
        == model_sha256(str(tmp_path / "own"))
    )
    config = json.loads((tmp_path / "own/config.json").read_text())
    (tmp_path / "own/config.json").write_text(json.dumps(config | {"note": "other"}))
    with pytest.raises(UserError, match=r"tag\.tagger"):
        label(recipe(coco, **model_settings), tmp_path / "out")


def test_a_recipe_that_names_an_r_tagger_takes_it(coco: Files, tmp_path: Path) -> None:
    make_tagger(tmp_path / "tagger", ["person", "dog"])
    named = resolved(recipe(coco, **{"tag.tagger": str(tmp_path / "tagger")}))
    assert named.tag.method == "rtagger"
    assert resolved(recipe(coco)).tag.method == "layout"
    assert load_recipe("miniworld").tag.method == "rtagger"


def test_images_need_not_be_opened(
    coco: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pair.candidates": "layout", "captions": False, "source.open_images": False}
    monkeypatch.setattr(
        ImageRoot, "open", lambda *_: pytest.fail("an image was opened"), raising=False
    )
    label(recipe(coco, **settings), tmp_path / "out")
    assert all(values_of(rows(tmp_path / "out"), "ok"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "cannot be read"),
        ("config.json", b'{"version": 99, "subject_classes": []}', "version 99"),
        ("model.safetensors", b"cut short", "cannot be read"),
        ("model.safetensors", None, "cannot be read"),
        ("evidence.json", b"[]", "evidence.json"),
    ],
)
def test_a_damaged_model_is_one_line_before_anything_runs(
    coco: Files, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    LayoutModel.load().save(tmp_path / "own")
    (tmp_path / "own" / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / "own" / file).write_bytes(content)
    settings = {"tag.method": "layout", "tag.tagger": str(tmp_path / "own")}
    with pytest.raises(UserError, match=message) as caught:
        label(recipe(coco, **settings), tmp_path / "out")
    assert "\n" not in str(caught.value)
