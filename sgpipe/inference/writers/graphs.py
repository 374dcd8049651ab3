"""Write predictions as scene graphs, which `sgpipe eval vg --mode sgdet` reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import PredictedPairs
from rlip_model.evaluation.triplets import largest
from rlip_model.evaluation.visual_genome import PredictedGraph
from sgpipe.inference.predictor import ImagePrediction
from sgpipe.inference.writers import WriteSummary, write_json_list
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import HICO, HoiaSchema


def write_graphs(predictions: Iterable[ImagePrediction], out: Path, classes: DatasetClasses, most: int) -> WriteSummary:
    """Write the `most` best pairs of each image with the scores of all predicates."""
    schema = HoiaSchema(HICO.key, dict(enumerate(classes.objects, 1)), dict(enumerate(classes.relations, 1)))

    def items(prediction: ImagePrediction, pairs: PredictedPairs) -> list[dict[str, Any]]:
        return [_graph_item(prediction.row.image_id, predicted_graph(pairs, most))]

    return write_json_list(predictions, out, items, schema)


def predicted_graph(pairs: PredictedPairs, most: int) -> PredictedGraph:
    """The `most` best pairs by the score of their best predicate, each pair with two boxes of its own.

    Labels start at 1. The scores of predicates already include those of the boxes (subject x object x predicate), so
    boxes have score 1.
    """
    order = largest(pairs.scores.max(1, initial=0.0), most)
    count = len(order)
    scores = pairs.scores[order]
    return PredictedGraph(
        np.concatenate((pairs.subject_boxes[order], pairs.object_boxes[order])),
        1 + np.concatenate((pairs.subject_labels[order], pairs.object_labels[order])),
        np.ones(2 * count, dtype=np.float32),
        np.stack((np.arange(count), count + np.arange(count)), -1),
        np.concatenate((np.zeros((count, 1), dtype=scores.dtype), scores), 1),
    )


def _graph_item(image_id: str, graph: PredictedGraph) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "boxes": graph.boxes.tolist(),
        "labels": graph.labels.tolist(),
        "scores": graph.scores.tolist(),
        "pairs": graph.pairs.tolist(),
        "predicate_scores": graph.predicate_scores.tolist(),
    }
