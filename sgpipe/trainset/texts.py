"""The texts that label a step: all classes of the dataset, or those of the step's pictures and sampled others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlip_model.text import NO_OBJECTS
from rlip_model.training.annotations import SceneGraph
from rlip_model.training.sampling import NegativeSampling, Strategy, Texts, Vocabulary, extend, union
from sgpipe.train_recipe import DataConfig
from sgpipe.trainset.contents import Labels, TrainSet


@dataclass(frozen=True)
class ClosedTexts:
    """All classes of the dataset, always."""

    labels: Labels

    def hold(self, graph: SceneGraph) -> bool:
        """Whether all names of a picture are classes."""
        objects, relations = set(self.labels.objects), set(self.labels.relations)
        return objects.issuperset(_objects(graph)) and relations.issuperset(_relations(graph))

    def choose(self, pictures: Sequence[SceneGraph], rng: random.Random) -> Texts:
        return Texts((*self.labels.objects, NO_OBJECTS), self.labels.relations)


@dataclass(frozen=True)
class SampledTexts:
    """The names of the pictures, in order of first appearance, then names that are drawn from the vocabulary."""

    sampling: NegativeSampling

    def hold(self, graph: SceneGraph) -> bool:
        """Any name can be a text."""
        return True

    def choose(self, pictures: Sequence[SceneGraph], rng: random.Random) -> Texts:
        """Draws objects first, then relations."""
        how = self.sampling
        objects = union(map(_objects, pictures))
        relations = union(map(_relations, pictures))
        objects = _extended(objects, how.objects, how.num_objects, how.object_strategy, rng)
        relations = _extended(relations, how.relations, how.num_relations, how.relation_strategy, rng)
        return Texts((*objects, NO_OBJECTS), tuple(relations))


def text_choice(trainset: TrainSet, data: DataConfig) -> ClosedTexts | SampledTexts:
    """How the recipe wants steps to be labelled: by closed lists, which the set then holds, or by samples."""
    if trainset.labels is not None:
        return ClosedTexts(trainset.labels)
    return SampledTexts(
        NegativeSampling(
            trainset.objects,
            trainset.relations,
            data.negative_texts,
            data.object_strategy,
            data.relation_strategy,
        )
    )


def reworded(texts: Texts, wordings: Mapping[str, Sequence[str]], rng: random.Random) -> Texts:
    """The same relations, each said in one of its ways, all equally likely; never as another one of them."""
    said = list(texts.relations)
    for place, text in enumerate(texts.relations):
        ways = [way for way in wordings.get(text, ()) if way not in said]
        if ways:
            said[place] = rng.choice([text, *ways])
    return Texts(texts.objects, tuple(said))


def _objects(graph: SceneGraph) -> Iterator[str]:
    return (item.name for item in graph.objects)


def _relations(graph: SceneGraph) -> Iterator[str]:
    return (item.predicate for item in graph.relations)


def _extended(
    names: Sequence[str], vocabulary: Vocabulary, wanted: int, strategy: Strategy, rng: random.Random
) -> list[str]:
    """As `extend`; but where all names are wanted they are taken as they are, since drawing rare ones takes long."""
    everything = list(dict.fromkeys([*names, *vocabulary.names]))
    return everything if len(everything) <= wanted else extend(names, vocabulary, wanted, strategy, rng)
