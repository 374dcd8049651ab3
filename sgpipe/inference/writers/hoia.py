"""Write predictions as JSON in the HOIA format, which `sgpipe eval hico` and `sgpipe eval openimages` read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array, PredictedPairs
from sgpipe.inference.predictor import ImagePrediction
from sgpipe.inference.writers import TopTriplets, WriteSummary, write_json_list
from sgpipe.sources.hoi import HoiaSchema


def write_hoia(
    predictions: Iterable[ImagePrediction],
    out: Path,
    schema: HoiaSchema,
    key: str,
    most: int,
    possible: Array | None = None,
) -> WriteSummary:
    """Write the best triplets of each image; images that could not be read are left out.

    Args:
        schema: category ids, in the order of the classes.
        key: name of the list of relations in the file.
        most: triplets per image.
        possible: see `TopTriplets.of`.
    """
    objects, relations = list(schema.objects), list(schema.relations)

    def items(prediction: ImagePrediction, pairs: PredictedPairs) -> list[dict[str, Any]]:
        top = TopTriplets.of(pairs, most, possible)
        kept, index = np.unique(top.pair, return_inverse=True)  # in the order of the queries, which breaks ties
        boxes = [
            {"bbox": box, "category_id": objects[label]}
            for side, labels in (
                (pairs.subject_boxes, pairs.subject_labels),
                (pairs.object_boxes, pairs.object_labels),
            )
            for box, label in zip(side[kept].tolist(), labels[kept].tolist(), strict=True)
        ]
        triplets = zip(index.reshape(-1).tolist(), top.predicate.tolist(), top.score.tolist(), strict=True)
        listed = [
            {"subject_id": pair, "object_id": pair + len(kept), "category_id": relations[predicate], "score": score}
            for pair, predicate, score in triplets
        ]
        return [{"file_name": prediction.row.file_name, "predictions": boxes, key: listed}]

    return write_json_list(predictions, out, items, schema)
