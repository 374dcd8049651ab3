import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlip_model.evaluation.matching import NO_CLAIM, best_claims, equal_rows, first_claims, first_of_equals

numbers = arrays(int, st.integers(0, 12), elements=st.integers(-2, 4))


@given(numbers, numbers)
def test_equal_rows_are_those_of_two_loops(first: np.ndarray, second: np.ndarray) -> None:
    expected = [(i, j) for i, one in enumerate(first) for j, other in enumerate(second) if one == other]
    assert list(zip(*(rows.tolist() for rows in equal_rows(first, second)), strict=True)) == expected


def claims(candidates: list[tuple[int, int, float]], same: list[int], count: int) -> list[int]:
    detections, truths, quality = (np.array(column) for column in zip(*candidates, strict=True))
    return best_claims(detections, truths, quality, np.array(same), count).tolist()


def test_the_best_fit_is_claimed_and_the_earlier_on_equality() -> None:
    candidates = [(0, 0, 0.6), (0, 1, 0.9), (2, 2, 0.7), (2, 1, 0.7)]
    assert claims(candidates, [0, 1, 2], count=4) == [1, NO_CLAIM, 1, NO_CLAIM]


def test_equals_are_claimed_as_one() -> None:
    assert claims([(0, 1, 0.9), (1, 0, 0.9)], [0, 0], count=2) == [0, 0]


def test_nothing_fits() -> None:
    nothing = np.zeros(0, dtype=int)
    assert best_claims(nothing, nothing, nothing, nothing, 2).tolist() == [NO_CLAIM, NO_CLAIM]


def test_only_the_first_claim_is_a_hit() -> None:
    assert first_claims(np.array([4, NO_CLAIM, 2, 4, NO_CLAIM, 2])).tolist() == [True, False, True, False, False, False]
    assert first_claims(np.zeros(0, dtype=int)).tolist() == []


def test_equal_rows_share_the_first_ones_number() -> None:
    rows = np.array([[3, 1], [0, 0], [3, 1], [0, 1], [0, 0]])
    assert first_of_equals(rows).tolist() == [0, 1, 0, 3, 1]
    assert first_of_equals(np.zeros((0, 2))).tolist() == []
