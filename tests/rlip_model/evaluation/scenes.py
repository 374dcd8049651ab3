"""Small images with a person and things beside it, and what was found in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import EvaluationImage, ImageGroundTruth, PredictedPairs

PERSON = [0, 0, 9, 9]
THING = [50, 50, 59, 59]
FAR = [200, 200, 230, 230]

Found = tuple[list[float], list[float], int, dict[int, float]]  # subject, object, its label, scores of predicates


def image(
    true: Sequence[tuple[int, int, int]] = (),
    found: Sequence[Found] = (),
    *,
    boxes: Sequence[list[float]] = (PERSON, THING),
    labels: Sequence[int] = (0, 1),
    num_predicates: int = 117,
) -> EvaluationImage:
    """`true`: indices of two boxes, and a predicate. All subjects found are persons, label 0."""
    scores = np.zeros((len(found), num_predicates), dtype=np.float32)
    for row, item in zip(scores, found, strict=True):
        for predicate, score in item[3].items():
            row[predicate] = score
    columns: list[Any] = [np.array([item[end] for item in found], dtype=float).reshape(-1, 4) for end in (0, 1)]
    object_labels = np.array([item[2] for item in found], dtype=int)
    return EvaluationImage(
        "a.jpg",
        ImageGroundTruth.from_lists(boxes, labels, true),
        PredictedPairs(*columns, np.zeros(len(found), dtype=int), object_labels, scores),
    )
