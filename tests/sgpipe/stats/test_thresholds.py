"""Suggested thresholds: the order in which they are tested, and how often they are wrong."""

from itertools import pairwise

import numpy as np
import pytest

from sgpipe.calibration import lowest_shown
from sgpipe.stats.precision import JudgedRelations
from sgpipe.stats.thresholds import candidates, suggest


def judged(*groups: tuple[float, int, int]) -> JudgedRelations:
    """Groups of a confidence, so many correct and so many wrong relations."""
    confidence = np.concatenate(
        [np.full(right + wrong, at, np.float32) for at, right, wrong in groups]
    )
    correct = np.concatenate([np.arange(right + wrong) < right for _, right, wrong in groups])
    return JudgedRelations(confidence, correct)


def test_the_lowest_threshold_that_shows_the_target():
    relations = judged((0.9, 40, 0), (0.8, 0, 1), (0.5, 12, 8), (0.1, 0, 9))
    choice = suggest(relations, 0.85)
    assert (choice.threshold, choice.kept) == (pytest.approx(0.9), 40)
    assert 0.85 < choice.at_least < choice.precision.value
    choice = suggest(relations, 0.7)
    # equal confidences stay together
    assert (choice.threshold, choice.kept) == (
        pytest.approx(0.5),
        61,
    )
    assert suggest(relations, 0.95) is None  # 40 of 40 show 94 %
    assert suggest(judged((0.9, 9, 0)), 0.5) is None  # nine are too few to rest on
    assert suggest(judged((0.9, 30, 0)), 0.9).kept == 30  # all are, with no room for a wrong one


def test_the_search_ends_at_the_first_threshold_that_is_not_shown():
    highest = [0.85, 0.9, 0.95, 0.97]
    # the first leaves no room for a wrong relation
    assert lowest_shown([0.0, 0.82, 0.83, 0.7], highest, 0.8) == 2
    assert lowest_shown([0.0, 0.79, 0.83, 0.9], highest, 0.8) is None
    assert lowest_shown([0.0, 0.0, 0.0, 0.965], highest, 0.96) == 3  # only the last can show it
    assert lowest_shown([], [], 0.8) is None


def test_candidates_depend_on_confidences_only_and_end_with_all_relations():
    confidence = np.random.default_rng(0).random(500).astype(np.float32)
    thresholds = candidates(confidence)
    counts = [int((confidence >= np.float32(threshold)).sum()) for threshold in thresholds]
    assert counts == sorted(counts)
    assert counts[-1] == 500
    assert 40 < counts[0] < 60
    assert all(1 < after / before < 1.4 for before, after in pairwise(counts))
    assert candidates(confidence[:9]) == []


def test_a_plateau_below_the_target_seldom_shows_a_threshold():
    """Every threshold that keeps a precision of 79.5 % is wrong; the search of all took one in 16
    of 100 samples.
    """
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(300):
        confidence = rng.random(500).astype(np.float32)
        correct = rng.random(500) < np.minimum(0.795, 2 * confidence)
        shown += suggest(JudgedRelations(confidence, correct), 0.8) is not None
    assert shown / 300 < 0.09  # 5 of 100, and three standard errors
