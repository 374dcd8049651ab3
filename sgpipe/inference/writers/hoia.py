"""Predictions as files: JSON in the form that `sgpipe eval` reads, or Parquet with names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlip_model.evaluation.inputs import NOT_PREDICTED, Array, PredictedPairs
from rlip_model.evaluation.triplets import largest
from sgpipe import records
from sgpipe.errors import UserError
from sgpipe.inference.predictor import Predicted
from sgpipe.inference.rows import image_number
from sgpipe.inference.writers.graphs import found_graph, graph_item
from sgpipe.inference.writers.vcoco import PeopleReader, people_items
from sgpipe.sources.annotated import ClassLists
from sgpipe.sources.hoi import Numbering

_IMAGE = ("image_id", "dataset", "split", "file_name", "width", "height")  # as in shards
SCHEMA = pa.schema(
    [
        *(records.SCHEMA.field(name) for name in _IMAGE),
        pa.field(
            "triplets",
            pa.list_(
                pa.struct(
                    [
                        ("pair", pa.int32()),
                        ("subject", pa.string()),
                        ("predicate", pa.string()),
                        ("object", pa.string()),
                        ("score", pa.float32()),
                        ("subject_box", pa.list_(pa.float32())),
                        ("object_box", pa.list_(pa.float32())),
                    ]
                )
            ),
        ),
        pa.field("error", pa.string()),
    ],
    metadata={"sgpipe.predictions": "1"},
)
_ROWS_AT_ONCE = 512

Items = Callable[[Predicted, PredictedPairs], list[dict[str, Any]]]


@dataclass
class Written:
    """How many images were written, and how many could not be read."""

    images: int = 0
    failed: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Best:
    """The best triplets of one image, by falling score: which pair, which predicate, and the score, `[triplets]`."""

    pair: Array
    predicate: Array
    score: Array

    @classmethod
    def of(cls, pairs: PredictedPairs, most: int, possible: Array | None = None) -> Best:
        """possible: `[predicates, objects]`, 0 for what cannot be, which is scored 0, as evaluators do."""
        scores = pairs.scores
        if possible is not None:
            scores = np.where(possible.T[pairs.object_labels] == 0, np.float32(0), scores)
        flat = scores.reshape(-1)
        chosen = largest(flat, most)
        chosen = chosen[flat[chosen] != NOT_PREDICTED]
        pair, predicate = np.divmod(chosen, max(scores.shape[1], 1))
        return cls(pair, predicate, flat[chosen])


def write_hoia(
    found: Iterable[Predicted], out: Path, numbering: Numbering, key: str, most: int, possible: Array | None = None
) -> Written:
    """JSON as `sgpipe eval hico` and `openimages` read it; images that could not be read are left out.

    Args:
        numbering: of the classes, in their order.
        key: what the list of relations is called.
        most: triplets of an image.
    """
    objects, relations = list(numbering.objects), list(numbering.relations)

    def items(prediction: Predicted, pairs: PredictedPairs) -> list[dict[str, Any]]:
        best = Best.of(pairs, most, possible)
        kept, place = np.unique(best.pair, return_inverse=True)  # in the order of the queries, which breaks ties
        boxes = [
            {"bbox": box, "category_id": objects[label]}
            for ends, labels in (
                (pairs.subject_boxes, pairs.subject_labels),
                (pairs.object_boxes, pairs.object_labels),
            )
            for box, label in zip(ends[kept].tolist(), labels[kept].tolist(), strict=True)
        ]
        triplets = zip(place.reshape(-1).tolist(), best.predicate.tolist(), best.score.tolist(), strict=True)
        listed = [
            {"subject_id": pair, "object_id": pair + len(kept), "category_id": relations[predicate], "score": score}
            for pair, predicate, score in triplets
        ]
        return [{"file_name": prediction.row.file_name, "predictions": boxes, key: listed}]

    return _write_json(found, out, items)


def write_people(found: Iterable[Predicted], out: Path, reader: PeopleReader) -> Written:
    """JSON as `sgpipe eval vcoco` reads it: every pair of every image. Raises UserError: an image id is no number."""

    def items(prediction: Predicted, pairs: PredictedPairs) -> list[dict[str, Any]]:
        return people_items(image_number(prediction.row), reader.read(pairs), reader.actions)

    return _write_json(found, out, items)


def write_graphs(found: Iterable[Predicted], out: Path, most: int) -> Written:
    """JSON as `sgpipe eval vg --mode sgdet` reads it, with so many pairs of an image."""

    def items(prediction: Predicted, pairs: PredictedPairs) -> list[dict[str, Any]]:
        return [graph_item(prediction.row.image_id, found_graph(pairs, most))]

    return _write_json(found, out, items)


def write_parquet(
    found: Iterable[Predicted], out: Path, classes: ClassLists, most: int, possible: Array | None = None
) -> Written:
    """One row per image with its best triplets, by name; boxes xyxy in pixels; `error`: why there is nothing.

    `pair` counts an image's pairs; `possible` as of `Best.of`.
    """
    written, rows = Written(), list[dict[str, Any]]()
    with _whole(out) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for prediction in found:
            _count(written, prediction)
            row = {name: getattr(prediction.row, name) for name in _IMAGE}
            triplets = None if prediction.pairs is None else list(_named(prediction.pairs, classes, most, possible))
            rows.append({**row, "triplets": triplets, "error": prediction.error})
            if len(rows) == _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return written


def _named(pairs: PredictedPairs, classes: ClassLists, most: int, possible: Array | None) -> Iterator[dict[str, Any]]:
    best = Best.of(pairs, most, possible)
    for pair, predicate, score in zip(best.pair.tolist(), best.predicate, best.score.tolist(), strict=True):
        yield {
            "pair": pair,
            "subject": classes.objects[pairs.subject_labels[pair]],
            "predicate": classes.relations[predicate],
            "object": classes.objects[pairs.object_labels[pair]],
            "score": score,
            "subject_box": pairs.subject_boxes[pair].tolist(),
            "object_box": pairs.object_boxes[pair].tolist(),
        }


def _write_json(found: Iterable[Predicted], out: Path, items: Items) -> Written:
    """A list, one item a line, written as it comes."""
    written = Written()
    with _whole(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        _write_items(found, file, items, written)
    return written


def _write_items(
    found: Iterable[Predicted],
    file: TextIO,
    items: Items,
    written: Written,
) -> None:
    before = "[\n"
    for prediction in found:
        _count(written, prediction)
        for item in items(prediction, prediction.pairs) if prediction.pairs is not None else ():
            file.write(before + json.dumps(item, allow_nan=False))
            before = ",\n"
    file.write("\n]\n" if before != "[\n" else "[]\n")


def _count(written: Written, prediction: Predicted) -> None:
    if prediction.pairs is None:
        written.failed += 1
        written.reason = written.reason or str(prediction.error)
    else:
        written.images += 1


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary file that gets its name when it is whole."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
