"""The models of the benchmark of instructions learn from boxes what there is to learn, and nothing
else.
"""

from __future__ import annotations

import random

import numpy as np

from benchmarks.blind_models import BoxQuestion, Claim, answered


def questions(is_telling: bool) -> list[BoxQuestion]:
    """Yes or no questions whose subject is above the object if they are right; or anywhere."""
    rng = random.Random(0)
    result = []
    for number in range(400):
        is_right = number % 2 == 0
        is_above = is_right if is_telling else rng.random() < 0.5
        left = rng.randint(0, 200)
        top = rng.randint(0, 40) if is_above else rng.randint(120, 160)
        claim = Claim(
            rng.choice(("riding", "under")),
            (left, top, left + 30, top + 30),
            (left, 80, left + 40, 120),
        )
        result.append(
            BoxQuestion(
                f"image {number}", "relation", (claim,), 0 if is_right else 1, has_none=True
            )
        )
    return result


def test_models_learn_where_boxes_are() -> None:
    for name, right in answered(questions(is_telling=True)).items():
        assert right.mean() > 0.95, name


def test_models_are_right_by_chance_where_boxes_tell_nothing() -> None:
    for name, right in answered(questions(is_telling=False)).items():
        assert abs(right.mean() - 0.5) < 4 * np.sqrt(0.25 / 400), name


def test_the_right_one_of_several_options_is_learned() -> None:
    pairs = questions(is_telling=True)
    both = [
        BoxQuestion(right.image, "choice", wrong.claims + right.claims, 1, has_none=False)
        for right, wrong in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    for name, is_right in answered(both).items():
        assert is_right.mean() > 0.95, name
