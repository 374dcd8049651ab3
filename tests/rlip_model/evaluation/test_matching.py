import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlip_model.evaluation.matching import NO_MATCH, best_matches, equal_rows, first_matches

numbers = arrays(int, st.integers(0, 12), elements=st.integers(-2, 4))


@given(numbers, numbers)
def test_equal_rows_are_those_of_two_loops(first: np.ndarray, second: np.ndarray) -> None:
    expected = [(i, j) for i, one in enumerate(first) for j, other in enumerate(second) if one == other]
    assert list(zip(*(rows.tolist() for rows in equal_rows(first, second)), strict=True)) == expected


def test_the_best_fit_is_claimed_and_the_earlier_on_equality() -> None:
    candidates = [(0, 0, 0.6), (0, 1, 0.9), (2, 2, 0.7), (2, 1, 0.7)]
    detections, truths, quality = (np.array(column) for column in zip(*candidates, strict=True))
    assert best_matches(detections, truths, quality, count=4).tolist() == [1, NO_MATCH, 1, NO_MATCH]


def test_only_the_first_claim_is_a_hit() -> None:
    assert first_matches(np.array([4, NO_MATCH, 2, 4, NO_MATCH, 2])).tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert first_matches(np.zeros(0, dtype=int)).tolist() == []
