"""Training data of the judge: crops of two things of an image, and which of the possible relations
hold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.miniworld.judge import JudgeConfig
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.dataset import RenderedScene, render
from sgpipe.miniworld.relations import PREDICATES, Statement, closure, statements_of
from sgpipe.miniworld.scene import Scene, random_scene
from sgpipe.records import Box, Relation
from sgpipe.stages.score.scorer import contrast_texts, marked_crop, relation_text

Pair = tuple[int, int]
NO_TEXT = -1


@dataclass(frozen=True)
class ClaimTexts:
    """All texts, and for each (subject class, object class, predicate) those that it is judged by.

    Attributes:
        texts: distinct ones.
        own: int64 `[classes, classes, predicates]`, indices of the relations' texts.
        contrasts: int64 `[classes, classes, predicates, 2]`, those of the contrast texts; -1: there
            is none.
        possible: bool `[classes, classes, predicates]`, whether the miniworld has such relations.
    """

    texts: list[str]
    own: Tensor
    contrasts: Tensor
    possible: Tensor


@cache
def claim_texts() -> ClaimTexts:
    """The texts of all relations between classes of the miniworld."""
    numbers: dict[str, int] = {}
    size = (len(KINDS), len(KINDS), len(PREDICATES))
    text_numbers = torch.empty(size, dtype=torch.long)
    contrasts = torch.full((*size, 2), NO_TEXT)
    possible = torch.zeros(size, dtype=torch.bool)
    stated = _possible()
    for s, subject in enumerate(KINDS):
        for o, object_ in enumerate(KINDS):
            boxes = [Box(subject, 0, (0, 0, 1, 1)), Box(object_, 0, (0, 0, 1, 1))]
            for p, predicate in enumerate(PREDICATES):
                text_numbers[s, o, p] = numbers.setdefault(
                    relation_text(boxes[0], predicate, boxes[1]), len(numbers)
                )
                for place, text in enumerate(contrast_texts(boxes, Relation(0, 1, predicate))):
                    contrasts[s, o, p, place] = numbers.setdefault(text, len(numbers))
                possible[s, o, p] = (subject, predicate, object_) in stated
    return ClaimTexts(list(numbers), text_numbers, contrasts, possible)


def _possible() -> frozenset[Statement]:
    """What images of the train split can show, also as an implied relation."""
    return frozenset().union(*map(closure, statements_of("train")))


@dataclass(frozen=True)
class JudgeData:
    """Crops of ordered pairs of things.

    Attributes:
        pixels: uint8 `[crops, 3, side, side]`.
        classes: int64 `[crops, 2]`, of subject and object, indices into `KINDS`.
        holds: bool `[crops, predicates]`.
    """

    pixels: Tensor
    classes: Tensor
    holds: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def render_judge_data(
    config: JudgeConfig, progress: Callable[[int], None] | None = None
) -> JudgeData:
    """Crops of the first images of the train split; `progress` gets the number of images so far."""
    rng = np.random.default_rng(config.seed)
    pixels: list[Tensor] = []
    classes: list[Pair] = []
    holds: list[Tensor] = []
    for number in range(config.images):
        scene = random_scene(config.seed, "train", number)
        true = _true_predicates(scene)
        for crop, (subject, object_) in _crops(scene, render(scene), true.keys(), config, rng):
            pixels.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
            classes.append(
                (KINDS.index(scene.things[subject].kind), KINDS.index(scene.things[object_].kind))
            )
            holds.append(
                true.get((subject, object_), torch.zeros(len(PREDICATES), dtype=torch.bool))
            )
        if progress:
            progress(number + 1)
    return JudgeData(torch.stack(pixels), torch.tensor(classes), torch.stack(holds))


def _true_predicates(scene: Scene) -> Mapping[Pair, Tensor]:
    """Which predicates hold, bool `[predicates]`, of each related ordered pair."""
    true: dict[Pair, Tensor] = {}
    for fact in scene.facts:
        flags = true.setdefault(
            (fact.subject, fact.object), torch.zeros(len(PREDICATES), dtype=torch.bool)
        )
        flags[PREDICATES.index(fact.predicate)] = True
    return true


def _crops(
    scene: Scene,
    rendered: RenderedScene,
    related: Collection[Pair],
    config: JudgeConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[Image.Image, Pair]]:
    """Crops of ordered pairs of things, related ones first."""
    boxes = [
        Box(thing.kind, 0, tuple(box))
        for thing, box in zip(scene.things, rendered.boxes.tolist(), strict=True)
    ]
    pairs = list(permutations(range(len(boxes)), 2))
    rng.shuffle(pairs)
    both = [pair for pair in pairs if pair in related or pair[::-1] in related]
    unrelated = [pair for pair in pairs if pair not in both]
    wanted = max(round(config.pairs * config.related), config.pairs - len(unrelated))
    for pair in [*both[:wanted], *unrelated[: config.pairs - min(wanted, len(both))]]:
        crop = marked_crop(rendered.image, boxes, Relation(*pair, ""), config.side)
        if crop is not None:
            yield crop, pair
