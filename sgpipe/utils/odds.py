"""Probabilities as log odds."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
NEAREST = 1e-4  # a confidence nearer to 0 or 1 has the log odds of this distance


def log_odds(confidence: ArrayLike) -> Floats:
    inside = np.clip(np.asarray(confidence, np.float64), NEAREST, 1 - NEAREST)
    odds: Floats = np.log(inside / (1 - inside))
    return odds


def from_log_odds(odds: ArrayLike) -> Floats:
    chance: Floats = (1 + np.tanh(np.asarray(odds, np.float64) / 2)) / 2
    return chance
