"""Curves and limbs: sizes, tapering, and bones that keep their length."""

import math

import numpy as np
import pytest

from sgpipe.miniworld.shapes import limb, moved, polygon, reach


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("target", [(1.2, 0.3), (0.1, -0.2), (9.0, 0.0), (0.0, 0.0)])
def test_bones_keep_their_length_however_far_the_target(target: tuple[float, float], side: int) -> None:
    joint, end = reach((0.0, 0.0), target, (1.0, 0.7), side)
    assert math.hypot(*joint) == pytest.approx(1.0, abs=1e-6)
    assert math.dist(joint, end) == pytest.approx(0.7, abs=1e-6)


def test_a_limb_ends_at_a_target_within_reach_and_bends_to_its_side() -> None:
    _, left, end = limb((0, 0, 0), (0, 0), (1.0, 0.0), (0.7, 0.7), (0.1, 0.1, 0.1), 1)
    _, right, _ = limb((0, 0, 0), (0, 0), (1.0, 0.0), (0.7, 0.7), (0.1, 0.1, 0.1), -1)
    assert end == pytest.approx((1.0, 0.0))
    assert left[1] > 0 > right[1]


def test_moving_flips_before_it_turns() -> None:
    (shape,) = moved([polygon((0, 0, 0), (1, 0), (2, 0), (1, 1))], (10, 0), tilt=90, scale=2, flip=True)
    assert shape.points == pytest.approx(np.array([[10, -2], [10, -4], [8, -2]]), abs=1e-9)
