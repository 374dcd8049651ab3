"""Training data of the captioner: small images, their captions, and dense labels of what each patch
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from experiments.miniworld.captioner import (
    CaptionerModelConfig,
    canonical_caption,
    nouns_of,
    prompt_ids,
)
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.dataset import RenderedScene, render
from sgpipe.miniworld.relations import CONVERSE, RULES
from sgpipe.miniworld.scene import Fact, Scene, names_of, random_scene

NOUNS: tuple[str, ...] = tuple(noun for kind in KINDS for noun in nouns_of(kind))
TAUGHT_PREDICATES: tuple[str, ...] = tuple(dict.fromkeys(rule.predicate for rule in RULES))
# Labels of a patch: its nouns, the predicates they are subject or object of, the nouns of the
# objects, and of the subjects.
DENSE_LABELS = 3 * len(NOUNS) + 2 * len(TAUGHT_PREDICATES)
# A thing that covers less than this fraction of a patch is not labelled.
_MIN_COVERAGE = 0.04


def taught_facts(scene: Scene) -> list[Fact]:
    """The facts with captions: all composed ones, and the converse of "behind" and "in front of".

    The symmetric "next to" is stated in one direction only, as composed.
    """
    composed = [fact for fact in scene.facts if not fact.implied]
    converse = [
        Fact(fact.object, CONVERSE[fact.predicate], fact.subject, True)
        for fact in composed
        if CONVERSE.get(fact.predicate, fact.predicate) != fact.predicate
    ]
    return list(dict.fromkeys([*composed, *converse]))


@dataclass(frozen=True)
class CaptionerData:
    """Images with their ground truth.

    Attributes:
        pixels: uint8 [images, 3, side, side].
        dense: bool [images, patches, DENSE_LABELS].
        tokens: [images, captions, length], each caption from [DEC] to [SEP], padded with token 0;
            images with fewer captions have rows that are all padding.
    """

    pixels: Tensor
    dense: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def render_captioner_data(
    config: CaptionerModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    images: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> CaptionerData:
    """Render the first images of the train split of a seed; `progress` gets the number of images so
    far.
    """
    size = config.image_size
    grid = config.grid
    pixels = torch.empty(images, 3, size, size, dtype=torch.uint8)
    dense = torch.empty(images, grid * grid, DENSE_LABELS, dtype=torch.bool)
    captions: list[Tensor] = []
    for number in range(images):
        scene = random_scene(seed, "train", number)
        rendered = render(scene)
        small = rendered.image.resize((size, size), Image.Resampling.BICUBIC)
        pixels[number] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        dense[number] = dense_labels(scene, rendered, grid)
        captions.append(pad_sequence(list(_tokens(scene, tokenizer)), batch_first=True))
        if progress:
            progress(number + 1)
    return CaptionerData(pixels, dense, _stack(captions))


def dense_labels(scene: Scene, rendered: RenderedScene, grid: int) -> Tensor:
    """bool [grid * grid, DENSE_LABELS]: the labels of all things visible in each patch."""
    things = torch.zeros(len(scene.things), DENSE_LABELS)
    subject, object_, partner = (len(NOUNS) + part * len(TAUGHT_PREDICATES) for part in range(3))
    for number, thing in enumerate(scene.things):
        things[number, NOUNS.index(names_of(thing)[0])] = 1
    for fact in taught_facts(scene):
        predicate = TAUGHT_PREDICATES.index(fact.predicate)
        things[fact.subject, subject + predicate] = 1
        things[fact.object, object_ + predicate] = 1
        things[fact.subject, partner + NOUNS.index(names_of(scene.things[fact.object])[0])] = 1
        things[
            fact.object, partner + len(NOUNS) + NOUNS.index(names_of(scene.things[fact.subject])[0])
        ] = 1
    return visible_in_patches(rendered.owners, len(scene.things), grid).float() @ things > 0


def visible_in_patches(owners: np.ndarray, things: int, grid: int) -> Tensor:
    """bool [grid * grid, things]: the things that are visible in each patch of an image divided
    into a grid.
    """
    height, width = owners.shape
    rows, columns = (np.arange(side) * grid // side for side in (height, width))
    patches = rows[:, None] * grid + columns
    counts = np.bincount(
        (patches * (things + 1) + owners).ravel(), minlength=grid * grid * (things + 1)
    )
    shares = counts.reshape(grid * grid, things + 1) * (grid * grid / (height * width))
    return torch.from_numpy(shares[:, 1:] > _MIN_COVERAGE)


def _tokens(scene: Scene, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    texts = dict.fromkeys(canonical_caption(scene, fact) for fact in taught_facts(scene))
    for text in texts:
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        yield torch.tensor([*prompt_ids(tokenizer), *words, tokenizer.sep_token_id])


def _stack(captions: list[Tensor]) -> Tensor:
    """The captions [captions, length] of all images as one padded tensor."""
    largest, longest = (max(caption.shape[side] for caption in captions) for side in (0, 1))
    stacked = torch.zeros(len(captions), largest, longest, dtype=torch.long)
    for number, each in enumerate(captions):
        stacked[number, : each.shape[0], : each.shape[1]] = each
    return stacked
