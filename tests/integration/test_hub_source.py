"""A dataset in the hub's Parquet form is labelled without unpacking it, and its labels load beside
it.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files.stores import StorePath
from sgpipe.storage.run_records import iter_records
from tests.integration.faults.conftest import server, store  # noqa: F401 - fixtures
from tests.sgpipe.generation.in_process import without_ray
from tests.sgpipe.sources.hub_datasets import write
from tests.values import values_of

IMAGES = 12
LABELLED = ("--tagger", "MINIWORLD", "--captioner", "MINIWORLD", "--set", "caption.decoding=beam")

pytestmark = pytest.mark.slow


def sgpipe(*words: object) -> str:
    with without_ray():
        done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic images with COCO annotations."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    sgpipe("miniworld", "--count", IMAGES, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def parquet(drawn: Path) -> Path:
    """The same as the hub has it: two files, several row groups, class numbers with names."""
    annotated = json.loads((drawn / "instances.json").read_text())
    ids = values_of(annotated["categories"], "id")
    rows = []
    for image in annotated["images"]:
        boxes_of_image = [
            annotation
            for annotation in annotated["annotations"]
            if annotation["image_id"] == image["id"]
        ]
        objects = {
            "bbox": values_of(boxes_of_image, "bbox"),
            "category": [ids.index(entry["category_id"]) for entry in boxes_of_image],
        }
        content = {
            "bytes": (drawn / "images" / image["file_name"]).read_bytes(),
            "path": image["file_name"],
        }
        rows += (
            [{"image": content, "image_id": image["id"], "objects": objects}]
            if boxes_of_image
            else []
        )
    classes = datasets.ClassLabel(names=values_of(annotated["categories"], "name"))
    box = datasets.List(datasets.Value("float64"), length=4)
    boxes = {"bbox": datasets.List(box), "category": datasets.List(classes)}
    features = {"image": datasets.Image(), "image_id": datasets.Value("int64"), "objects": boxes}
    data = drawn.parent / "hub" / "data"
    for number, part in enumerate((rows[:7], rows[7:])):
        write(
            data / f"train-{number:05d}-of-00002.parquet",
            part,
            datasets.Features(features),
            batch=3,
        )
    return data.parent


def facts(out: Path) -> dict[str, tuple]:
    """What a run says of each image, by its id: boxes, captions, relations."""
    return {
        record.image_id: (
            record.status,
            [(box.category, [round(value, 2) for value in box.bbox]) for box in record.objects],
            values_of(record.captions, "text"),
            [
                (item.subject, item.predicate, item.object, round(item.confidence, 4))
                for item in record.relations
            ],
        )
        for record in iter_records(out)
    }


def test_labels_are_those_of_the_unpacked_images_and_load_beside_the_dataset(
    drawn, parquet, tmp_path
):
    before = sorted(values_of(parquet.rglob("*"), "name"))
    sgpipe("generate", "hub", "--dataset", parquet, *LABELLED, "--out", tmp_path / "run")
    coco = (
        "--images",
        drawn / "images",
        "--annotations",
        drawn / "instances.json",
        "--split",
        "train",
    )
    sgpipe("generate", "coco", *coco, *LABELLED, "--out", tmp_path / "coco")
    labelled = facts(tmp_path / "run")
    expected = facts(tmp_path / "coco")
    assert labelled == {image_id: expected[image_id] for image_id in labelled}
    assert len(labelled) >= IMAGES - 2
    assert any(relations for *_, relations in labelled.values())
    assert sorted(values_of(parquet.rglob("*"), "name")) == before

    sgpipe("export", tmp_path / "run", "--to", "hf", "--embed", "--out", tmp_path / "labels")
    cache = str(tmp_path / "cache")
    labels = datasets.load_dataset(str(tmp_path / "labels"), cache_dir=cache)["train"]
    dataset = datasets.load_dataset(str(parquet), cache_dir=cache)["train"]
    assert [int(row["image_id"]) for row in labels] == dataset["image_id"][:]
    assert [row["image"].tobytes() for row in labels] == [row["image"].tobytes() for row in dataset]
    assert "nothing left to do" in sgpipe(
        "generate", "hub", "--dataset", parquet, *LABELLED, "--out", tmp_path / "run"
    )


def test_the_dataset_may_be_in_an_object_store(parquet, store: StorePath, tmp_path):  # noqa: F811 - a fixture
    for path in parquet.rglob("*.parquet"):
        (store / path.relative_to(parquet).as_posix()).put(path.read_bytes())
    sgpipe(
        "generate",
        "hub",
        "--dataset",
        store.uri,
        *LABELLED,
        "--limit",
        "4",
        "--out",
        tmp_path / "run",
    )
    assert values_of(iter_records(tmp_path / "run"), "status") == ["ok"] * 4
