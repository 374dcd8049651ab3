"""Write predictions as Parquet: one row per image, with names instead of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlip_model.evaluation.inputs import Array, PredictedPairs
from sgpipe import records
from sgpipe.inference.predictor import ImagePrediction
from sgpipe.inference.writers import TopTriplets, WriteSummary, output_file
from sgpipe.sources.annotated import DatasetClasses

_IMAGE = ("image_id", "dataset", "split", "file_name", "width", "height")  # as in shards
_TRIPLET = pa.struct(
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
SCHEMA = pa.schema(
    [
        *(records.SCHEMA.field(name) for name in _IMAGE),
        pa.field("triplets", pa.list_(_TRIPLET)),
        pa.field("error", pa.string()),
    ],
    metadata={"sgpipe.predictions": "1"},
)
_ROWS_PER_WRITE = 512


def write_parquet(
    predictions: Iterable[ImagePrediction], out: Path, classes: DatasetClasses, most: int, possible: Array | None = None
) -> WriteSummary:
    """Write the best triplets of each image by name, with boxes as pixel xyxy.

    `pair` is the index of a triplet's pair in the image; `error` says why an image has no triplets.

    Args:
        most: triplets per image.
        possible: see `TopTriplets.of`.
    """
    summary, rows = WriteSummary(), list[dict[str, Any]]()
    with output_file(out) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for prediction in predictions:
            summary.add(prediction)
            image = {name: getattr(prediction.row, name) for name in _IMAGE}
            pairs = prediction.pairs
            triplets = None if pairs is None else list(_named_triplets(pairs, classes, most, possible))
            rows.append({**image, "triplets": triplets, "error": prediction.error})
            if len(rows) == _ROWS_PER_WRITE:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return summary


def _named_triplets(
    pairs: PredictedPairs, classes: DatasetClasses, most: int, possible: Array | None
) -> Iterator[dict[str, Any]]:
    top = TopTriplets.of(pairs, most, possible)
    for pair, predicate, score in zip(top.pair.tolist(), top.predicate, top.score.tolist(), strict=True):
        yield {
            "pair": pair,
            "subject": classes.objects[pairs.subject_labels[pair]],
            "predicate": classes.relations[predicate],
            "object": classes.objects[pairs.object_labels[pair]],
            "score": score,
            "subject_box": pairs.subject_boxes[pair].tolist(),
            "object_box": pairs.object_boxes[pair].tolist(),
        }
