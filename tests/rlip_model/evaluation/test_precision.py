import numpy as np
import pytest

from rlip_model.evaluation.precision import area, eleven_point


def hits(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text], dtype=bool)


@pytest.mark.parametrize(
    ("found", "truths", "expected"),
    [
        ("x", 1, 1.0),
        ("", 1, 0.0),
        ("..", 1, 0.0),
        (".x", 1, 0.5),
        ("x", 2, 6 / 11),  # recall 0, 0.1, ... 0.5 are reached
        ("x.x", 2, (6 + 5 * 2 / 3) / 11),
        ("xxx", 10, 3 / 11),  # recall 3/10 is less than the fourth of the official points
    ],
)
def test_eleven_points(found: str, truths: int, expected: float) -> None:
    assert eleven_point(hits(found), truths) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "truths", "expected"),
    [
        ("x", 1, 1.0),
        ("", 3, 0.0),
        (".x", 1, 0.5),
        ("x", 2, 0.5),
        ("x.x", 2, 5 / 6),
        (".xx", 2, 2 / 3),
        ("xxx", 10, 0.3),
    ],
)
def test_area(found: str, truths: int, expected: float) -> None:
    assert area(hits(found), truths) == pytest.approx(expected)
