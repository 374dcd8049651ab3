"""Captions as evidence beside the layout model: what they state of two classes makes a relation
more probable.

    log odds that a pair interacts      = offset + slope · model's log odds + related
    log odds of a predicate, if it does = offset + slope · model's log odds                (not
                                        stated) = offset + stated + stated_slope · model's log odds
                                        (stated)

`related`: only if a caption relates the two classes; stated: a caption states this predicate for
the two classes. The coefficients are fitted on photographs with human captions by `python -m
experiments.layout_evidence`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError, first_line

FILE = "evidence.json"  # beside the weights
_NEAREST = 1e-5  # a probability nearer to 0 or 1 has the log odds of this distance
_FARTHEST = 30.0  # log odds

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class CaptionEvidence:
    """Coefficients of log odds; the defaults leave the model's probabilities as they are.

    Attributes:
        pair: offset, slope, and what a caption that relates the two classes adds
        predicate: offset, slope, what a caption that states it adds, and the slope then
    """

    pair: tuple[float, float, float] = (0.0, 1.0, 0.0)
    predicate: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)

    @classmethod
    def load(cls, folder: Path) -> CaptionEvidence:
        """Return the coefficients beside a model's weights; those that change nothing if it has
        none.

        Raises:
            UserError: the file is damaged
        """
        file = folder / FILE
        if not file.is_file():
            return cls()
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            offset, slope, related = map(float, values["pair"])
            predicate_offset, predicate_slope, stated, stated_slope = map(
                float, values["predicate"]
            )
        except (OSError, ValueError, KeyError, TypeError) as reason:
            raise UserError(
                f"layout model {folder}: {FILE} cannot be read: {first_line(reason)}"
            ) from None
        return cls(
            (offset, slope, related), (predicate_offset, predicate_slope, stated, stated_slope)
        )

    def of_pairs(self, probabilities: Floats, related: Flags) -> Floats:
        """Return the probabilities `[pairs]` that pairs interact; `related`: whether a caption
        relates the classes.
        """
        offset, slope, addition = self.pair
        return _probability(offset + slope * log_odds(probabilities) + addition * related)

    def of_predicates(self, probabilities: Floats, stated: Flags) -> Floats:
        """Return the probabilities of predicates of pairs that interact; `stated`: by a caption of
        the two classes.
        """
        offset, slope, addition, stated_slope = self.predicate
        slopes = np.where(stated, stated_slope, slope)
        return _probability(offset + slopes * log_odds(probabilities) + addition * stated)


def log_odds(probabilities: Floats) -> Floats:
    """Return the log odds of probabilities, of those next to 0 and 1 finite ones."""
    inside = np.clip(np.asarray(probabilities, np.float64), _NEAREST, 1 - _NEAREST)
    odds: Floats = np.log(inside / (1 - inside))
    return odds


def _probability(odds: Floats) -> Floats:
    probabilities: Floats = 1 / (1 + np.exp(-np.clip(odds, -_FARTHEST, _FARTHEST)))
    return probabilities
