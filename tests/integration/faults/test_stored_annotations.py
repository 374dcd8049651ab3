"""Annotations and captions in an object store: a server of moto's that speaks S3."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sgpipe.calibration import scoring_of_recipe
from sgpipe.cli.main import app
from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import content_id
from sgpipe.files.object_store import StorePath
from sgpipe.files.roots import FolderRoot
from sgpipe.recipe import Recipe, SourceConfig, load_recipe, with_model_folders
from sgpipe.records import Record
from sgpipe.sources.opening import open_source
from sgpipe.storage.manifest import Manifest
from tests.factories import make_calibration
from tests.integration.faults.conftest import Faults, sgpipe, upload
from tests.sgpipe.generation.in_process import without_ray

INSTANCES = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 60} for n in range(50)],
    "annotations": [{"image_id": n, "category_id": 1, "bbox": [n, 2, 10, 20]} for n in range(50)],
    "categories": [{"id": 1, "name": "dog"}],
}
CAPTIONS = {"annotations": [{"image_id": n, "caption": f"dog number {n}"} for n in range(50)]}


def recipe(annotations: str, captions: str, folder: Path) -> Recipe:
    split = {"annotations": annotations, "captions": captions, "images": folder}
    return load_recipe("coco", {"source.splits": {"val": split}, "source.root": "coco"})


def records(source: SourceConfig, path: Path) -> tuple[list[Record], dict[str, Any]]:
    index = open_source(source, "val", path)
    return index.records(0, len(index)), index.meta


@pytest.fixture
def stored(store: StorePath) -> StorePath:
    store.put("a.json", json.dumps(INSTANCES).encode())
    store.put("a.json.gz", gzip.compress(json.dumps(INSTANCES).encode()))
    store.put("c.json.gz", gzip.compress(json.dumps(CAPTIONS).encode()))
    return store


def test_records_are_those_of_local_files_and_are_read_once(stored, tmp_path, monkeypatch, faults: Faults):
    local = tmp_path / "a.json", tmp_path / "c.json"
    for path, value in zip(local, (INSTANCES, CAPTIONS), strict=True):
        path.write_text(json.dumps(value))
    expected, meta = records(recipe(*map(str, local), tmp_path).source, tmp_path / "local.arrow")
    loaded = recipe(f"{stored.uri}/a.json.gz", f"{stored.uri}/c.json.gz", tmp_path)
    found, also = records(loaded.source, tmp_path / "stored.arrow")
    assert found == expected
    assert [caption.text for caption in found[7].captions] == ["dog number 7"]
    hashes = ("annotations_sha256", "captions_sha256")
    plain = records(
        recipe(f"{stored.uri}/a.json", f"{stored.uri}/c.json.gz", tmp_path).source, tmp_path / "plain.arrow"
    )
    assert {name: also[name] for name in hashes} == {name: meta[name] for name in hashes}
    assert plain[1]["annotations_sha256"] == meta["annotations_sha256"]
    faults.requests.clear()
    assert records(loaded.source, tmp_path / "stored.arrow")[0] == expected
    assert {method for method, path in faults.requests if path.endswith(".gz")} == {"HEAD"}
    stored.put("a.json.gz", gzip.compress(json.dumps({**INSTANCES, "images": INSTANCES["images"][:9]}).encode()))
    assert len(records(loaded.source, tmp_path / "stored.arrow")[0]) == 9


def test_a_root_may_be_a_store(stored, tmp_path, monkeypatch):
    given: list[Recipe] = []

    def generate(loaded: Recipe, *_: Any, **__: Any) -> None:
        given.append(loaded)
        raise UserError("enough")

    monkeypatch.setattr("sgpipe.generation.run.generate", generate)
    stored.put("coco/annotations/val.json.gz", gzip.compress(json.dumps(INSTANCES).encode()))
    splits = "source.splits={val: {annotations: annotations/val.json.gz, images: val}}"
    words = ["generate", "coco", "--root", f"{stored.uri}/coco", "--set", splits, "--tagger", "MINIWORLD"]
    assert "enough" in CliRunner().invoke(app, words).stderr
    source = given[0].source
    assert source.images("val") == f"{stored.uri}/coco/val"
    assert len(open_source(source, "val", tmp_path / "i.arrow", images=FolderRoot(tmp_path))) == 50
    assert source.model_dump(mode="json")["root"] == f"{stored.uri}/coco"
    assert SourceConfig.model_validate(source.model_dump(mode="json")) == source


def test_what_goes_wrong_with_the_store_is_said(stored, tmp_path, faults: Faults):
    source = recipe(f"{stored.uri}/a.json", f"{stored.uri}/c.json.gz", tmp_path).source
    with pytest.raises(UserError, match=r"NoSuchBucket|no such file"):
        content_id("s3://no-such-bucket-here/a.json")
    faults.fault = lambda method, path: "403 AccessDenied" if method == "GET" and path.endswith("a.json") else None
    with pytest.raises(StoreError, match="AccessDenied"):
        records(source, tmp_path / "index.arrow")


def test_calibration_ground_truth_and_synonyms_may_be_in_a_store(store: StorePath, tmp_path: Path) -> None:
    drawn, truth = tmp_path / "drawn", tmp_path / "truth"
    sgpipe("miniworld", "--count", 6, "--out", drawn)
    annotations = "--annotations", drawn / "scene_graphs.json"
    sgpipe("import", "vg", *annotations, "--images", drawn / "images", "--out", truth)
    words = tmp_path / "synonyms.json"
    words.write_text(json.dumps({"person": ["man", "woman", "person"]}))
    sizes = {"tag.short_side": 96, "tag.long_side": 160}
    recipe = load_recipe("coco", {"tag.tagger": "MINIWORLD", **sizes})
    scoring = scoring_of_recipe(with_model_folders(recipe).tag, recipe.pair)
    calibration = make_calibration(tmp_path / "calibration.json", scoring, offset=0.1)
    for file in (words, calibration):
        store.put(file.name, file.read_bytes())
    upload(truth, store)

    def label(out: str, place: str | Path, truth: str | Path, code: int = 0) -> str:
        """Label the images with the tagger and the captions that come with them."""
        files = ["--images", drawn / "images", "--annotations", drawn / "instances.json"]
        files += ["--captions", drawn / "captions.json", "--calibration", f"{place}/{calibration.name}"]
        values = {**sizes, "tag.threshold": 0.2, "pair.synonyms": f"{place}/{words.name}"}
        settings = [option for name, value in values.items() for option in ("--set", f"{name}={value}")]
        models = ["--tagger", "MINIWORLD", "--truth", truth, "--split", "val"]
        with without_ray():
            return sgpipe("generate", "coco", *files, *settings, *models, "--out", tmp_path / out, "--json", code=code)

    expected, found = json.loads(label("local", tmp_path, truth)), json.loads(label("stored", store.uri, store.uri))
    assert found["quality"] == expected["quality"] is not None
    assert found["counts"]["relations"] == expected["counts"]["relations"] > 0
    runs = [Manifest.load(tmp_path / name).run for name in ("local", "stored")]
    assert runs[0]["identity"]["tag"]["calibration"] == runs[1]["identity"]["tag"]["calibration"]
    assert runs[0]["identity"]["pair"]["synonyms"] == runs[1]["identity"]["pair"]["synonyms"] is not None
    assert json.loads(sgpipe("stats", tmp_path / "stored", "--json"))["ground_truth"]
    store.put(words.name, json.dumps({"person": ["man"]}).encode())
    assert "pair.synonyms" in label("stored", store.uri, store.uri, code=2)
