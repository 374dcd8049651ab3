"""Merged and extended label texts."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.settings import Strategy
from rlip_model.targets import Triplets
from rlip_model.text import NO_OBJECTS
from rlip_model.training import sampling
from rlip_model.training.sampling import LabelledTriplets, LabelVocabulary, NegativeSampling, Texts, extend

OBJECTS = LabelVocabulary.from_counts({name: 100 // rank for rank, name in enumerate("abcdefghijklmnop", 1)})
RELATIONS = LabelVocabulary.from_counts({"on": 50, "near": 20, "riding": 5, "under": 2, "behind": 1})


def image(objects: str, relations: tuple[str, ...], rows: list[tuple[str, str, tuple[str, ...]]]) -> LabelledTriplets:
    labels = torch.zeros(len(rows), len(relations))
    for row, (_, _, names) in enumerate(rows):
        labels[row, [relations.index(name) for name in names]] = 1
    places = [[objects.index(row[end]) for row in rows] for end in (0, 1)]
    boxes = torch.zeros(len(rows), 4)
    subjects, others = (torch.tensor(place, dtype=torch.long) for place in places)
    return LabelledTriplets(Triplets(boxes, boxes, subjects, others, labels), tuple(objects), relations)


BATCH = [
    image("xab", ("on", "holding"), [("x", "a", ("on",)), ("b", "x", ("on", "holding"))]),
    image("bc", ("near", "on"), [("c", "b", ("near",))]),
    image("d", (), []),
]


def read(triplets: Triplets, objects: tuple[str, ...], relations: tuple[str, ...]) -> list[tuple[str, str, set[str]]]:
    columns = (triplets.subject_labels, triplets.object_labels, triplets.relation_labels)
    return [
        (objects[subject], objects[other], {name for name, there in zip(relations, row, strict=True) if there})
        for subject, other, row in zip(*(column.tolist() for column in columns), strict=True)
    ]


@pytest.mark.parametrize("texts", [0, 12, 24])
@pytest.mark.parametrize("strategy", ["frequency", "uniform"])
def test_what_triplets_say_does_not_change(texts: int, strategy: Strategy) -> None:
    negatives = NegativeSampling(OBJECTS, RELATIONS, texts, strategy, strategy)
    merged = sampling.merge(BATCH, negatives, random.Random(0))
    assert merged.texts.objects[:5] == ("x", "a", "b", "c", "d")
    assert merged.texts.relations[:3] == ("on", "holding", "near")
    assert merged.texts.objects[-1] == NO_OBJECTS
    assert len(merged.texts.objects) == max(5, negatives.num_objects) + 1
    for before, after in zip(BATCH, merged.triplets, strict=True):
        said = read(before.triplets, before.object_texts, before.relation_texts)
        assert read(after, merged.texts.objects, merged.texts.relations) == said
        assert after.relation_labels.shape == (len(said), len(merged.texts.relations))


@given(st.integers(0, 40), st.integers(0, 10**6), st.sampled_from(["frequency", "uniform"]))
def test_names_are_new_and_never_more_than_there_are(wanted: int, seed: int, strategy: Strategy) -> None:
    names = ["x", "a", "c"]
    extended = extend(names, OBJECTS, wanted, strategy, random.Random(seed))
    assert extended[:3] == names
    assert len(set(extended)) == len(extended) == max(3, min(wanted, 17))
    assert set(extended) <= {"x", *OBJECTS.names}


def test_a_name_that_is_hardly_ever_drawn_does_not_hold_up() -> None:
    """One in 10^15: drawing until it comes would not end."""
    lopsided = LabelVocabulary(("often", "once"), (10**15, 1))
    assert extend(["often"], lopsided, 500, "frequency", random.Random(0)) == ["often", "once"]


def test_relabelling_needs_all_of_an_images_texts() -> None:
    with pytest.raises(ValueError, match="is not among the 1 texts"):
        sampling.relabelled(BATCH[1], Texts(("b",), ("near", "on")))
