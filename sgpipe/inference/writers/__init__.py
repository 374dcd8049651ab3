"""Predictions as files: JSON lists or Parquet. What all of them share is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import NOT_PREDICTED, Array, PredictedPairs
from rlip_model.evaluation.triplets import largest
from sgpipe.errors import UserError
from sgpipe.inference.predictor import ImagePrediction
from sgpipe.utils.atomic import atomic_write, delete_leftovers

CLASSES = "classes"  # key of the class list in the first item of a file


@dataclass
class WriteSummary:
    """How many images were written and how many failed; reason: of the first failure."""

    images: int = 0
    failed: int = 0
    reason: str = ""

    def add(self, prediction: ImagePrediction) -> None:
        if prediction.pairs is None:
            self.failed += 1
            self.reason = self.reason or str(prediction.error)
        else:
            self.images += 1


@dataclass(frozen=True)
class TopTriplets:
    """The best triplets of an image by descending score: indices of pairs and predicates, and scores `[triplets]`."""

    pair: Array
    predicate: Array
    score: Array

    @classmethod
    def of(cls, pairs: PredictedPairs, most: int, possible: Array | None = None) -> TopTriplets:
        """The `most` best triplets.

        Args:
            possible: `[predicates, objects]`, 0 for impossible combinations, which get score 0, as in evaluators.
        """
        scores = pairs.scores
        if possible is not None:
            scores = np.where(possible.T[pairs.object_labels] == 0, np.float32(0), scores)
        flat = scores.reshape(-1)
        chosen = largest(flat, most)
        chosen = chosen[flat[chosen] != NOT_PREDICTED]
        pair, predicate = np.divmod(chosen, max(scores.shape[1], 1))
        return cls(pair, predicate, flat[chosen])


@contextmanager
def output_file(out: Path) -> Iterator[Path]:
    """A temporary file that replaces `out` when it is complete. Raises UserError: `out` is a folder."""
    if out.is_dir():
        raise UserError(f"{out} is a folder, not a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(out)
    with atomic_write(out) as temporary:
        yield temporary
