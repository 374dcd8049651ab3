"""Curves and limbs: sizes, tapering, and bones that keep their length."""

import math

import numpy as np
import pytest

from sgpipe.miniworld.shapes import capsule, ellipse, limb, moved, polygon, reach, ring, shade


def area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_an_ellipse_has_its_radii_and_area() -> None:
    points = ellipse((0, 0, 0), (2, 3), 0.5, 0.25, corners=200).points
    assert points.max(0) == pytest.approx([2.5, 3.25], abs=1e-3)
    assert area(points) == pytest.approx(math.pi * 0.5 * 0.25, rel=1e-2)


def test_tilting_turns_counter_clockwise() -> None:
    points = ellipse((0, 0, 0), (0, 0), 2, 0.1, tilt=30, corners=64).points
    tip = points[points[:, 0].argmax()]
    assert math.degrees(math.atan2(tip[1], tip[0])) == pytest.approx(30, abs=3)


def test_a_ring_has_a_hole() -> None:
    points = ring((0, 0, 0), (0, 0), 1.0, 0.8, corners=200).points
    assert area(points) == pytest.approx(math.pi * (1 - 0.64), rel=1e-2)


def test_a_capsule_tapers_and_has_round_ends() -> None:
    points = capsule((0, 0, 0), (0, 0), (3, 0), 1.0, 0.4).points
    assert points.min(0) == pytest.approx([-0.5, -0.5])
    assert points[:, 0].max() == pytest.approx(3.2)
    assert points[points[:, 0] > 2.9][:, 1].max() == pytest.approx(0.2, abs=0.01)


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


def test_shades_are_valid_colours() -> None:
    assert shade((10, 100, 250), 0.5) == (5, 50, 125)
    assert shade((10, 100, 250), 1.0) == (10, 100, 250)
    assert all(0 <= channel <= 255 for channel in shade((0, 128, 255), 9.0))
