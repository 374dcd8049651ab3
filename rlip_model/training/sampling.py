"""The label texts of a batch: the texts of its images, extended by negative texts.

Every image is annotated with a few texts of its own; the network reads one list for the whole
batch. Extending it by sampled negative texts is the label sequence extension (LSE) of RLIP (NeurIPS
2022, section 3.3).
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain

import torch
from torch import Tensor

from rlip_model.settings import Strategy
from rlip_model.targets import Triplets
from rlip_model.text import NO_OBJECTS

MOST_REPEATS = 10_000  # consecutive draws of known names after which only new names are drawn


@dataclass(frozen=True)
class LabelledTriplets:
    """Triplets, and the texts that their labels index: objects (without "no objects"), and
    relations.

    unstated: the relation label of all other texts, 0 or NaN (not known).
    """

    triplets: Triplets
    object_texts: tuple[str, ...]
    relation_texts: tuple[str, ...]
    unstated: float = 0.0


@dataclass(frozen=True)
class Texts:
    """The label texts of a batch: objects ("no objects" last), and relations."""

    objects: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class LabelledBatch:
    """The triplets of every image; their labels index one list of texts."""

    triplets: tuple[Triplets, ...]
    texts: Texts


@dataclass(frozen=True)
class LabelVocabulary:
    """The names in a dataset, most frequent first, and their counts, which may be weighted.

    Raises:
        ValueError: a name occurs twice, or a count is not positive.
    """

    names: tuple[str, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.counts):
            raise ValueError("a vocabulary needs distinct names with one count each")
        if any(count <= 0 for count in self.counts):
            raise ValueError("every name of a vocabulary needs a positive count")

    @classmethod
    def from_counts(cls, counts: Mapping[str, float]) -> LabelVocabulary:
        """Sort by descending count; names of equal count keep their order."""
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        return cls(tuple(name for name, _ in ordered), tuple(count for _, count in ordered))


@dataclass(frozen=True)
class NegativeSampling:
    """How to extend the texts of a batch: to `texts` in total, two thirds of them objects; 0 for no
    extension.
    """

    objects: LabelVocabulary
    relations: LabelVocabulary
    texts: int = 500
    object_strategy: Strategy = "frequency"
    relation_strategy: Strategy = "frequency"

    @property
    def num_objects(self) -> int:
        return int(self.texts * 2 / 3)

    @property
    def num_relations(self) -> int:
        return self.texts - self.num_objects


def merge(
    images: Sequence[LabelledTriplets],
    sampling: NegativeSampling | None = None,
    rng: random.Random | None = None,
) -> LabelledBatch:
    """Label all images of a batch with one list of texts; see `batch_texts`."""
    texts = batch_texts(
        (image.object_texts for image in images),
        (image.relation_texts for image in images),
        sampling,
        rng,
    )
    return LabelledBatch(tuple(relabelled(image, texts) for image in images), texts)


def batch_texts(
    objects: Iterable[Iterable[str]],
    relations: Iterable[Iterable[str]],
    sampling: NegativeSampling | None = None,
    rng: random.Random | None = None,
    *,
    take_all: bool = False,
) -> Texts:
    """Return the union of the texts of all images in order of first appearance, then negative
    samples.

    Args:
        objects, relations: the texts of each image.
        sampling: how to sample negative texts; None for none.
        rng: draws objects first, then relations; the same state gives the same texts.
        take_all: see `extend`.

    Raises:
        ValueError: `sampling` is given without `rng`.
    """
    object_texts = union(objects)
    relation_texts = union(relations)
    if sampling is not None:
        if rng is None:
            raise ValueError("sampling negative texts needs rng")
        extended = partial(extend, rng=rng, take_all=take_all)
        object_texts = extended(
            object_texts, sampling.objects, sampling.num_objects, sampling.object_strategy
        )
        relation_texts = extended(
            relation_texts, sampling.relations, sampling.num_relations, sampling.relation_strategy
        )
    return Texts((*object_texts, NO_OBJECTS), tuple(relation_texts))


def union(lists: Iterable[Iterable[str]]) -> list[str]:
    """Return all distinct names, in order of first appearance."""
    return list(dict.fromkeys(chain.from_iterable(lists)))


def extend(
    names: Sequence[str],
    vocabulary: LabelVocabulary,
    total: int,
    strategy: Strategy,
    rng: random.Random,
    *,
    take_all: bool = False,
) -> list[str]:
    """Draw new names until there are `total`, or until none is left in the vocabulary.

    As in the reference, names are drawn until one is new. If almost the whole vocabulary is known,
    this could take very long, so after many repeats only new names are drawn, which gives the same
    distribution.

    Args:
        take_all: if no name is left out, take them as they are: drawing rare names takes long.
    """
    if take_all:
        all_names = union((names, vocabulary.names))
        if len(all_names) <= total:
            return all_names
    extended = list(names)
    known = set(names)
    new = len(set(vocabulary.names) - known)
    cumulative = list(accumulate(vocabulary.counts))
    repeats = 0
    while len(extended) < total and new > 0:
        if repeats < MOST_REPEATS:
            name = _draw(vocabulary.names, cumulative, strategy, rng)
        else:
            name = _draw_new(vocabulary, known, strategy, rng)
        if name in known:
            repeats += 1
            continue
        extended.append(name)
        known.add(name)
        new -= 1
        repeats = 0
    return extended


def _draw(
    names: Sequence[str], cumulative: Sequence[float], strategy: Strategy, rng: random.Random
) -> str:
    if strategy == "uniform":
        return rng.choice(names)
    place = bisect_left(cumulative, rng.uniform(0, 1) * cumulative[-1])
    return names[min(place, len(names) - 1)]


def _draw_new(
    vocabulary: LabelVocabulary, known: set[str], strategy: Strategy, rng: random.Random
) -> str:
    new = [index for index, name in enumerate(vocabulary.names) if name not in known]
    counts = [vocabulary.counts[index] for index in new]
    chosen = rng.choice(new) if strategy == "uniform" else rng.choices(new, weights=counts)[0]
    return vocabulary.names[chosen]


def relabelled(image: LabelledTriplets, texts: Texts) -> Triplets:
    """Return the triplets of an image with labels that index the given texts.

    Raises:
        ValueError: a text of the image is missing in the given texts.
    """
    triplets = image.triplets
    objects = _places(image.object_texts, texts.objects, triplets.object_labels)
    relations = _places(image.relation_texts, texts.relations, triplets.object_labels)
    labels = triplets.relation_labels.new_full(
        (len(triplets), len(texts.relations)), image.unstated
    )
    labels[:, relations] = triplets.relation_labels
    return replace(
        triplets,
        subject_labels=objects[triplets.subject_labels],
        object_labels=objects[triplets.object_labels],
        relation_labels=labels,
    )


def _places(names: Sequence[str], among: Sequence[str], like: Tensor) -> Tensor:
    place = {name: index for index, name in enumerate(among)}
    try:
        places = [place[name] for name in names]
    except KeyError as missing:
        raise ValueError(f"{missing} is not among the {len(among)} texts of the batch") from None
    return torch.tensor(places, dtype=torch.long, device=like.device)
