"""Predictions in Parquet: read as they were written, and refused where a number would be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlip_model.evaluation.inputs import PredictedPairs
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks.inputs import read_triplets
from sgpipe.inference.rows import ImagePrediction, ImageRow
from sgpipe.inference.writers import SCHEMA, write_parquet
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.fields import FieldError

CLASSES = DatasetClasses(("person", "horse", "dog"), ("riding", "next to"))
TRIPLET = {
    "pair": 0,
    "subject": "person",
    "predicate": "riding",
    "object": "horse",
    "score": 0.5,
    "subject_box": [0.0, 0.0, 9.0, 9.0],
    "object_box": [5.0, 5.0, 9.0, 9.0],
}


def predicted(name: str, pairs: PredictedPairs | None) -> ImagePrediction:
    row = ImageRow(name, "drawn", "val", name, 64, 48, None, None, None)
    return ImagePrediction(row, pairs, None if pairs is not None else "not found")


def table(path: Path, *triplets: dict[str, Any]) -> Path:
    schema = pa.schema([SCHEMA.field("file_name"), SCHEMA.field("triplets")])
    pq.write_table(pa.Table.from_pylist([{"file_name": "a.jpg", "triplets": list(triplets)}], schema=schema), path)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    rng, written = np.random.default_rng(0), []
    for number in range(600):  # more than are read at once
        count = number % 4
        boxes = rng.random((2, count, 4), dtype=np.float32)
        scores = rng.integers(1, 4, (count, 2)).astype(np.float32)  # many are equal: their order counts
        pairs = PredictedPairs(*boxes, *rng.integers(0, 3, (2, count)), scores)
        written.append(predicted(f"{number}.jpg", None if number % 10 == 9 else pairs))
    write_parquet(written, tmp_path / "found.parquet", CLASSES, 100)
    found = dict(read_triplets(tmp_path / "found.parquet", {}, []))
    assert [(name, each is None) for name, each in found.items()] == [
        (one.row.file_name, one.pairs is None) for one in written
    ]
    for one in written:
        if one.pairs is not None:
            pairs = found[one.row.file_name].pairs(CLASSES)
            for name in ("subject_boxes", "object_boxes", "subject_labels", "object_labels", "scores"):
                assert np.array_equal(getattr(pairs, name), getattr(one.pairs, name)), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"score": float("nan")}, "a box or score is NaN or infinite"),
        ({"score": None}, "a triplet has no 'score'"),
        ({"pair": 1, "subject_box": [0.0, 1.0, 2.0]}, "a box is not four numbers"),
        ({"pair": 1, "subject_box": [0.0, 1.0, 2.0, None]}, "a box or score is NaN or infinite"),
        ({"subject": "dog"}, "a pair has more than one subject or object"),
        ({"subject_box": [0.0, 0.0, 9.0, 8.0]}, "a pair has more than one subject or object"),
        ({"object_box": [0.0, 0.0, 9.0, 8.0]}, "a pair has more than one subject or object"),
    ],
)
def test_what_would_make_numbers_wrong_is_one_line(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = table(tmp_path / "found.parquet", TRIPLET, {**TRIPLET, "predicate": "next to", **change})
    with pytest.raises(UserError, match=rf"found.parquet: image 'a.jpg': {told}"):
        list(read_triplets(path, {}, []))


@pytest.mark.parametrize("change", [{"object": "unicorn"}, {"predicate": "unicorn"}])
def test_other_classes_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = table(tmp_path / "found.parquet", TRIPLET, {**TRIPLET, "pair": 1, **change})
    ((_, triplets),) = read_triplets(path, {}, [])
    with pytest.raises(FieldError, match="'unicorn' is not a class"):
        triplets.pairs(CLASSES)


def test_other_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "found.parquet"
    with pytest.raises(UserError, match=r"found.parquet cannot be read: No such file or directory$"):
        list(read_triplets(path, {}, []))
    pq.write_table(pa.table({"file_name": ["a.jpg"]}), path)
    with pytest.raises(UserError, match="not written by `sgpipe predict"):
        list(read_triplets(path, {}, []))
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="not written by `sgpipe predict"):
        list(read_triplets(path, {}, []))
