"""Annotations, captions, calibrations and synonyms in an object store: a server of moto's that speaks S3."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sgpipe.calibration import load_calibration
from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import content_id
from sgpipe.files.object_store import StorePath
from sgpipe.generation.identity import identity
from sgpipe.recipe import SourceConfig, load_recipe
from sgpipe.records import Record
from sgpipe.sources.opening import open_source
from sgpipe.sources.vocabulary import load_synonyms
from tests.factories import make_calibration
from tests.integration.faults.conftest import Faults

INSTANCES = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 60} for n in range(50)],
    "annotations": [{"image_id": n, "category_id": 1, "bbox": [n, 2, 10, 20]} for n in range(50)],
    "categories": [{"id": 1, "name": "dog"}],
}
CAPTIONS = {"annotations": [{"image_id": n, "caption": f"dog number {n}"} for n in range(50)]}


def zipped(value: Any) -> bytes:
    return gzip.compress(json.dumps(value).encode())


def source(place: Path | str, annotations: str, captions: str, images: Path) -> SourceConfig:
    split = {"annotations": annotations, "captions": captions, "images": images}
    return load_recipe("coco", {"source.splits": {"val": split}, "source.root": str(place)}).source


def records(source: SourceConfig, path: Path) -> tuple[list[Record], dict[str, Any]]:
    index = open_source(source, "val", path)
    return index.records(0, len(index)), index.meta


def test_records_are_those_of_local_files_and_are_read_once(store: StorePath, tmp_path: Path, faults: Faults) -> None:
    (tmp_path / "a.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "c.json").write_text(json.dumps(CAPTIONS))
    for name, content in {"a.json.gz": INSTANCES, "c.json.gz": CAPTIONS}.items():
        store.put(name, zipped(content))
    expected, meta = records(source(tmp_path, "a.json", "c.json", tmp_path), tmp_path / "local.arrow")
    stored = source(store.uri, "a.json.gz", "c.json.gz", tmp_path)
    found, also = records(stored, tmp_path / "stored.arrow")
    assert found == expected
    assert [caption.text for caption in found[7].captions] == ["dog number 7"]
    hashes = ("annotations_sha256", "captions_sha256")
    assert {name: also[name] for name in hashes} == {name: meta[name] for name in hashes}
    faults.requests.clear()
    assert records(stored, tmp_path / "stored.arrow")[0] == expected
    assert {method for method, path in faults.requests if path.endswith(".gz")} == {"HEAD"}
    store.put("a.json.gz", zipped({**INSTANCES, "images": INSTANCES["images"][:9]}))
    assert len(records(stored, tmp_path / "stored.arrow")[0]) == 9
    with pytest.raises(UserError, match=r"NoSuchBucket|no such file"):
        content_id("s3://no-such-bucket-here/a.json")
    faults.fault = lambda method, path: "403 AccessDenied" if method == "GET" and path.endswith("a.json.gz") else None
    with pytest.raises(StoreError, match="AccessDenied"):
        records(stored, tmp_path / "another.arrow")


def test_calibrations_and_synonyms_in_a_store_are_part_of_the_identity(store: StorePath, tmp_path: Path) -> None:
    make_calibration(tmp_path / "calibration.json", {}, offset=0.1)
    (tmp_path / "synonyms.json").write_text(json.dumps({"person": ["man", "woman", "person"]}))
    for file in tmp_path.iterdir():
        store.put(file.name, file.read_bytes())

    def read(place: Path | str) -> tuple[object, ...]:
        calibration, synonyms = f"{place}/calibration.json", f"{place}/synonyms.json"
        parts = identity(load_recipe("coco", {"tag.calibration": calibration, "pair.synonyms": synonyms}), {})
        return load_calibration(calibration), load_synonyms(synonyms), parts["tag"], parts["pair"]

    before = read(store.uri)
    assert before == read(tmp_path)
    store.put("synonyms.json", json.dumps({"person": ["man"]}).encode())
    after = read(store.uri)
    assert (after[2] == before[2], after[3] == before[3]) == (True, False)
