import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.evaluation.suppression import unsuppressed


def one_by_one(groups: np.ndarray, scores: np.ndarray, overlaps: np.ndarray, threshold: float) -> list[bool]:
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        rivals = [better for better in kept if groups[better] == groups[row]]
        if all(overlaps[better, row] <= threshold for better in rivals):
            kept.append(row)
    return [row in kept for row in range(len(scores))]


@given(st.integers(0, 2**32 - 1), st.integers(0, 14), st.integers(1, 3), st.sampled_from([0.1, 0.5, 0.9]))
def test_as_one_by_one(seed: int, count: int, num_groups: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    groups, scores = random.integers(0, num_groups, count), random.integers(0, 5, count) / 5
    overlaps = random.random((count, count))
    overlaps = np.maximum(overlaps, overlaps.T)
    found = unsuppressed(groups, scores, lambda better, worse: overlaps[better, worse], threshold)
    assert found.tolist() == one_by_one(groups, scores, overlaps, threshold)
