"""Datasets of the hub with objects and relations, as `import hf --map` reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.hub import (
    dataset_source,
)
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from tests.sgpipe.export.hub_stub import COMMIT, answer_at, hub  # noqa: F401 - a fixture
from tests.sgpipe.export.runs import imported
from tests.sgpipe.sources.hub_datasets import (
    jpeg,
)
from tests.values import values_of

CATEGORIES = {
    "categories": [{"id": 1, "name": "dog"}, {"id": 7, "name": "ü" * 300}],
    "rel_categories": [{"id": 0, "name": "on"}, {"id": 3, "name": "near"}],
}
ROW = {  # as SGG-Benchmark publishes its datasets; ids of objects count over the whole split
    "image_id": 42,
    "width": 64,
    "height": 48,
    "file_name": "42.jpg",
    "objects": [
        {"id": 900, "category_id": 7, "bbox": [1.5, 2.0, 10.0, 20.0], "area": 200.0, "iscrowd": 0},
        {"id": 901, "category_id": 1, "bbox": [0.0, 0.0, 64.0, 48.0], "area": 3072.0, "iscrowd": 1},
    ],
    "relations": [
        {"id": 5, "subject_id": 901, "object_id": 900, "predicate_id": 3},
        {"id": 6, "subject_id": 900, "object_id": 900, "predicate_id": 0},
    ],
}
GRAPH = (
    [Box("ü" * 300, 7, (1.5, 2, 10, 20)), Box("dog", 1, (0, 0, 64, 48), True)],
    [Relation(1, 0, "near"), Relation(0, 0, "on")],
)


def save(
    folder: Path, rows: list[dict[str, Any]], categories: Any = CATEGORIES, split: str = "train"
) -> Path:
    (folder / "data").mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"data/{split}-00000-of-00001.parquet")
    if categories is not None:
        (folder / "categories.json").write_text(json.dumps(categories))
    return folder


def load(
    folder: Path, *mapping: str, split: str | None = None, classes: Path | None = None
) -> list[Record]:
    source, root = dataset_source(str(folder), split, mapping, classes)
    rows = imported(source, Path(root), folder / f"run{len(list(folder.glob('run*')))}")
    assert verify(folder / "run0").ok
    return rows


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key not in keys}


def test_sgg_benchmarks_form_is_read_without_a_mapping(tmp_path):
    assert load(save(tmp_path, [ROW])) == [
        Record("42", "hf", "train", "42.jpg", 64, 48, GRAPH[0], relations=GRAPH[1])
    ]
    row = without("width", "height", "file_name") | {
        "image": {"bytes": jpeg(0, (64, 48)), "path": "42.jpg"}
    }
    (record,) = load(save(tmp_path, [row]))
    assert (record.dataset, record.file_name) == ("hub", "data/train-00000-of-00001.parquet#0")
    assert (record.width, record.height, record.objects) == (64, 48, GRAPH[0])


def test_rows_without_a_file_name_and_blank_predicates_are_dropped(tmp_path):
    predicates = {
        **CATEGORIES,
        "rel_categories": [{"id": 0, "name": " "}, {"id": 3, "name": "near"}],
    }
    rows = [ROW, ROW | {"image_id": 43, "file_name": None}, ROW | {"image_id": 44, "file_name": ""}]
    (record,) = load(save(tmp_path, rows, predicates))
    assert (record.image_id, record.relations) == ("42", GRAPH[1][:1])
    counts = Manifest.load(tmp_path / "run0").shards[0].counts
    assert (counts["problem.malformed"], counts["problem.nameless"]) == (2, 1)


def test_columns_of_any_name_are_mapped(tmp_path):
    row = {
        "path": "a.jpg",
        "w": 64,
        "h": 48,
        "boxes": {
            "xywh": [[1.5, 2.0, 10.0, 20.0], [0.0, 0.0, 64.0, 48.0]],
            "what": ["ü" * 300, "dog"],
        },
        "edges": [
            {"a": 1, "b": 0, "verb": "near", "p": 0.5},
            {"a": 0, "b": 0, "verb": "on", "p": None},
        ],
    }
    mapping = [
        "file_name=path",
        "width=w",
        "height=h",
        "objects.bbox=boxes.xywh",
        "objects.category=boxes.what",
        "relations.subject=edges.a",
        "relations.object=edges.b",
        "relations.predicate=edges.verb",
        "relations.confidence=edges.p",
    ]
    (record,) = load(save(tmp_path, [row], None), *mapping)
    assert (record.image_id, record.file_name, record.width) == ("0", "a.jpg", 64)
    assert record.objects == [replace(box, category_id=0, iscrowd=False) for box in GRAPH[0]]
    assert record.relations == [Relation(1, 0, "near", 0.5), Relation(0, 0, "on")]


def test_class_labels_and_class_files_name_numbers(tmp_path):
    label = datasets.ClassLabel(names=["dog", "cat"])
    number = datasets.Value("int32")
    kinds = {
        "file_name": datasets.Value("string"),
        "objects": [{"bbox": [datasets.Value("float32")], "category": label}],
        "relations": [{"subject": number, "object": number, "predicate": label}],
    }
    row = {"file_name": "1.jpg", "objects": [{"bbox": [0, 0, 5, 5], "category": 1}]}
    row["relations"] = [{"subject": 0, "object": 0, "predicate": 0}]
    (tmp_path / "data").mkdir()
    (tmp_path / "1.jpg").write_bytes(jpeg(0, (64, 48)))
    dataset = datasets.Dataset.from_list([row], features=datasets.Features(kinds))
    dataset.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    (record,) = load(tmp_path)
    assert (record.objects[0].category, record.relations, record.width) == (
        "cat",
        [Relation(0, 0, "dog")],
        64,
    )
    classes = tmp_path / "classes.json"
    classes.write_text(
        json.dumps({"objects": {"1": "bird"}, "relations": {"0": "over", "1": "under"}})
    )
    (record,) = load(tmp_path, classes=classes)
    assert (record.objects[0].category, record.relations[0].predicate) == ("bird", "over")


def test_a_mapping_that_names_no_column_lists_those_there_are(tmp_path):
    for mapping, message in (
        (
            "objects.bbox=objects.xyxy",
            r"no column objects\.xyxy: pass --map objects\.bbox=.*; it has image_id, width",
        ),
        ("relations.subject=", r"no column of relations\.subject: pass --map .*; it has image_id"),
        ("objects.name=x", r"--map objects\.name: expected one of image_id"),
    ):
        with pytest.raises(UserError, match=message):
            dataset_source(str(save(tmp_path, [ROW])), None, [mapping])


def test_numbers_without_names_several_splits_and_damage_are_refused(tmp_path):
    save(tmp_path, [ROW], None)
    with pytest.raises(
        UserError, match=r"the numbers in objects.category_id have no names: pass --classes FILE"
    ):
        load(tmp_path)
    save(tmp_path, [ROW], split="val")
    with pytest.raises(UserError, match="has several splits: pass --split train or val"):
        load(tmp_path)
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        load(tmp_path, split="train")


def test_bad_rows_are_error_rows(tmp_path):
    one = ROW["objects"][0]
    changes: list[dict[str, Any]] = [
        {}, {"relations": [ROW["relations"][0] | {"object_id": 17}]},
        {"objects": [one | {"category_id": 2}], "relations": []},
        {"relations": [ROW["relations"][0] | {"predicate_id": 9}]},
        {"objects": [one | {"bbox": [1.0, 2, 3]}], "relations": []}, {"objects": []},
    ]  # fmt: skip
    rows = load(
        save(
            tmp_path, [ROW | {"image_id": number} | change for number, change in enumerate(changes)]
        )
    )
    assert values_of(rows, "ok") == [True] + [False] * 5


def test_rows_need_images_or_names_and_all_files_the_columns(tmp_path):
    save(tmp_path, [without("file_name")])
    with pytest.raises(
        UserError, match="has neither images nor their names: pass --map file_name=COLUMN"
    ):
        load(tmp_path)
    for number, row in enumerate((ROW, without("relations"))):
        pq.write_table(
            pa.Table.from_pylist([row]), tmp_path / f"data/train-0000{number}-of-00002.parquet"
        )
    (tmp_path / "data/train-00000-of-00001.parquet").unlink()
    with pytest.raises(
        UserError, match=r"train-00001-of-00002.parquet has no column of relations.subject"
    ):
        load(tmp_path)
