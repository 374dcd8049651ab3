"""HICO-DET's 600 interaction classes, and the splits of its settings.

Objects are numbered like COCO's 80 classes (person: 0), verbs like HICO-DET's 117. Classes are in
the order of HICO-DET's list. Rare classes have fewer than 10 training instances (Chao et al., WACV
2018). The zero-shot settings remove classes from training: unseen combinations, rare first (UC-RF)
or non-rare first (UC-NF; Hou et al., ECCV 2020), or unseen objects (UO; Bansal et al., AAAI 2020).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.triplets import TripletClasses

NUM_VERBS = 117
NUM_OBJECTS = 80
PERSON = 0
CLASSES = TripletClasses(NUM_OBJECTS, NUM_VERBS)

Setting = Literal["default", "NF", "UC-RF", "UC-NF", "UO"]
SETTINGS: tuple[Setting, ...] = ("default", "NF", "UC-RF", "UC-NF", "UO")


@dataclass(frozen=True)
class ClassSplit:
    """Class numbers `[classes]`: the rare (or unseen) classes, and all others."""

    rare: Array
    non_rare: Array

    @classmethod
    def from_labels(
        cls, rare: Array, non_rare: Array, classes: TripletClasses = CLASSES
    ) -> ClassSplit:
        """From arrays `[classes, 3]`: subject label, object label, verb; numbered by `classes`."""
        numbers = [
            classes.number(*np.reshape(labels, (-1, 3)).astype(int).T)
            for labels in (rare, non_rare)
        ]
        return cls(*numbers)


def split(setting: Setting) -> ClassSplit:
    """Return the split of a setting.

    "default" and "NF" (no fine-tuning) are split by rarity, the zero-shot settings into unseen and
    seen classes.
    """
    content = _content()
    numbers = class_numbers()
    rare = np.zeros(len(numbers), dtype=bool)
    rare[content["rare" if setting in ("default", "NF") else setting]] = True
    return ClassSplit(numbers[rare], numbers[~rare])


def class_numbers() -> Array:
    """Return the numbers `[600]` of HICO-DET's classes (by `CLASSES`), in the order of its list."""
    objects, verbs = np.array(_content()["classes"]).T
    return CLASSES.number(np.full(len(objects), PERSON), objects, verbs)


def possible_interactions() -> Array:
    """`[117, 80]`, True for the 600 combinations of verb and object that are classes."""
    objects, verbs = np.array(_content()["classes"]).T
    possible = np.zeros((NUM_VERBS, NUM_OBJECTS), dtype=bool)
    possible[verbs, objects] = True
    return possible


@cache
def _content() -> dict[str, list[int]]:
    return dict(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
