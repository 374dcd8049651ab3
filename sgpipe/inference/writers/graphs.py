"""Pairs as scene graphs in Visual Genome's form."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import PredictedPairs
from rlip_model.evaluation.triplets import largest
from rlip_model.evaluation.visual_genome import PredictedGraph


def found_graph(pairs: PredictedPairs, most: int) -> PredictedGraph:
    """The `most` best pairs by their best predicates, each with two boxes of its own; labels from 1.

    Predicates are scored with their boxes, subject x object x predicate; so boxes have score 1.
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


def graph_item(image_id: str, graph: PredictedGraph) -> dict[str, Any]:
    """As `sgpipe eval vg` reads it."""
    return {
        "image_id": image_id,
        "boxes": graph.boxes.tolist(),
        "labels": graph.labels.tolist(),
        "scores": graph.scores.tolist(),
        "pairs": graph.pairs.tolist(),
        "predicate_scores": graph.predicate_scores.tolist(),
    }
