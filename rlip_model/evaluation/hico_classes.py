"""HICO-DET's 600 classes of interactions, and how its settings divide them.

Objects are numbered as COCO's 80 (person: 0), verbs as HICO-DET's 117; classes are in the order of HICO-DET's list.
Rare are those with fewer than 10 instances in the training set (Chao et al., WACV 2018). The zero-shot settings take
some out of training: unseen combinations, rare ones first (UC-RF) or frequent ones first (UC-NF; Hou et al., ECCV
2020), or unseen objects (UO; Bansal et al., AAAI 2020).
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

NUM_VERBS, NUM_OBJECTS, PERSON = 117, 80, 0
CLASSES = TripletClasses(NUM_OBJECTS, NUM_VERBS)

Setting = Literal["default", "NF", "UC-RF", "UC-NF", "UO"]
SETTINGS: tuple[Setting, ...] = ("default", "NF", "UC-RF", "UC-NF", "UO")


@dataclass(frozen=True)
class ClassSplit:
    """Numbers of classes, `[classes]` each: rare or unseen ones, and the others."""

    rare: Array
    non_rare: Array

    @classmethod
    def from_labels(cls, rare: Array, non_rare: Array, classes: TripletClasses = CLASSES) -> ClassSplit:
        """Of `[classes, 3]` each: subject label, object label, verb, as counted by `classes`."""
        return cls(*(classes.number(*np.reshape(part, (-1, 3)).astype(int).T) for part in (rare, non_rare)))


def split(setting: Setting) -> ClassSplit:
    """Of the fully trained and the not fine-tuned (NF) setting by rarity, of the zero-shot settings by unseenness."""
    content = _content()
    numbers = class_numbers()
    rare = np.zeros(len(numbers), dtype=bool)
    rare[content["rare" if setting in ("default", "NF") else setting]] = True
    return ClassSplit(numbers[rare], numbers[~rare])


def class_numbers() -> Array:
    """`[600]`, in the order of HICO-DET's list, by `CLASSES`."""
    objects, verbs = np.array(_content()["classes"]).T
    return CLASSES.number(np.full(len(objects), PERSON), objects, verbs)


def possible_interactions() -> Array:
    """`[117, 80]`, True for the 600 pairs of verb and object that are classes."""
    objects, verbs = np.array(_content()["classes"]).T
    possible = np.zeros((NUM_VERBS, NUM_OBJECTS), dtype=bool)
    possible[verbs, objects] = True
    return possible


@cache
def _content() -> dict[str, list[int]]:
    return dict(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
