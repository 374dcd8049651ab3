"""What the captioner learns from: small images, what is to be said of them, and what each patch shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from experiments.miniworld.captioner import ModelConfig, prompt_ids
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.captions import canonical_caption, noun_of, nouns_of
from sgpipe.miniworld.relations import CONVERSE, RULES
from sgpipe.miniworld.render import RenderedScene, render
from sgpipe.miniworld.scene import Fact, Scene, random_scene

NOUNS: tuple[str, ...] = tuple(noun for kind in KINDS for noun in nouns_of(kind))
TAUGHT: tuple[str, ...] = tuple(dict.fromkeys(rule.predicate for rule in RULES))
# What a patch shows: which things, what they do, what is done to them, and to or by whom.
DENSE_LABELS = 3 * len(NOUNS) + 2 * len(TAUGHT)
# A thing smaller than this part of a patch is not asked for.
_SEEN = 0.04


def taught_facts(scene: Scene) -> list[Fact]:
    """What is said of a scene: all that was composed, and that what is behind something has it in front.

    What is next to something is told from one side only, as it was composed.
    """
    composed = [fact for fact in scene.facts if not fact.implied]
    turned = [
        Fact(fact.object, CONVERSE[fact.predicate], fact.subject, True)
        for fact in composed
        if CONVERSE.get(fact.predicate, fact.predicate) != fact.predicate
    ]
    return list(dict.fromkeys([*composed, *turned]))


@dataclass(frozen=True)
class Lessons:
    """Images and what is true of them.

    Attributes:
        pixels: uint8 [images, 3, side, side].
        dense: bool [images, patches, DENSE_LABELS].
        tokens: [images, captions, length], each caption from [DEC] to [SEP], then the padding token 0;
            an image with fewer captions has rows of nothing but padding.
    """

    pixels: Tensor
    dense: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def draw_lessons(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    images: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Lessons:
    """The first images of the train split of a seed; `progress` is told how many are drawn."""
    size, grid = config.image_size, config.grid
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
    return Lessons(pixels, dense, _stack(captions))


def dense_labels(scene: Scene, rendered: RenderedScene, grid: int) -> Tensor:
    """bool [grid * grid, DENSE_LABELS]: what is true of any thing that is seen in a patch."""
    things = torch.zeros(len(scene.things), DENSE_LABELS)
    subject, object_, partner = (len(NOUNS) + part * len(TAUGHT) for part in range(3))
    for number, thing in enumerate(scene.things):
        things[number, NOUNS.index(noun_of(thing))] = 1
    for fact in taught_facts(scene):
        predicate = TAUGHT.index(fact.predicate)
        things[fact.subject, subject + predicate] = 1
        things[fact.object, object_ + predicate] = 1
        things[fact.subject, partner + NOUNS.index(noun_of(scene.things[fact.object]))] = 1
        things[fact.object, partner + len(NOUNS) + NOUNS.index(noun_of(scene.things[fact.subject]))] = 1
    return seen_in_patches(rendered.owners, len(scene.things), grid).float() @ things > 0


def seen_in_patches(owners: np.ndarray, things: int, grid: int) -> Tensor:
    """bool [grid * grid, things]: which things take up some of each patch of an image cut into a grid."""
    height, width = owners.shape
    rows, columns = (np.arange(side) * grid // side for side in (height, width))
    patches = rows[:, None] * grid + columns
    counts = np.bincount((patches * (things + 1) + owners).ravel(), minlength=grid * grid * (things + 1))
    shares = counts.reshape(grid * grid, things + 1) * (grid * grid / (height * width))
    return torch.from_numpy(shares[:, 1:] > _SEEN)


def _tokens(scene: Scene, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    texts = dict.fromkeys(canonical_caption(scene, fact).text for fact in taught_facts(scene))
    for text in texts:
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        yield torch.tensor([*prompt_ids(tokenizer), *words, tokenizer.sep_token_id])


def _stack(captions: list[Tensor]) -> Tensor:
    """[captions, length] of every image as one padded tensor."""
    most, longest = (max(each.shape[side] for each in captions) for side in (0, 1))
    stacked = torch.zeros(len(captions), most, longest, dtype=torch.long)
    for number, each in enumerate(captions):
        stacked[number, : each.shape[0], : each.shape[1]] = each
    return stacked
