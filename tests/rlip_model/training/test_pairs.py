"""Pairs for the R-Tagger, related ones first, and extended label texts; `tests/parity/misc.py` has
merged ones.
"""

import random
from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.settings import Strategy
from rlip_model.targets import Triplets
from rlip_model.training.annotations import MISSING_OBJECT, SceneTargets
from rlip_model.training.pairs import tagger_triplets
from rlip_model.training.sampling import (
    LabelledTriplets,
    LabelVocabulary,
    Texts,
    extend,
    relabelled,
)

WORDS = ("on", "near", "under")
Relation = tuple[int, int, int]
RELATIONS = [(0, 1, 0), (0, 1, 2), (2, 0, 1), (1, 1, 1)]

OBJECTS = LabelVocabulary.from_counts(
    {name: 100 // rank for rank, name in enumerate("abcdefghijklmnop", 1)}
)


def scene(objects: int, relations: list[Relation], missing: bool = False) -> SceneTargets:
    """Objects named by their numbers, each 1 pixel to the right of the one before; perhaps a
    missing one.
    """
    left = torch.arange(float(objects))
    boxes = torch.stack((left, left, left + 5, left + 5), dim=1)
    names = list(map(str, range(objects)))
    if missing:
        boxes = torch.cat((boxes, torch.zeros(1, 4)))
        names = [*names, MISSING_OBJECT]
    rows = torch.tensor(relations, dtype=torch.long).reshape(-1, 3)
    return SceneTargets(boxes, torch.arange(len(names)), rows, tuple(names), WORDS)


def read(labelled: LabelledTriplets) -> list[tuple[int, int, frozenset[int]]]:
    """Subject, object and relations of each triplet."""
    triplets = labelled.triplets
    columns = (triplets.subject_labels, triplets.object_labels, triplets.relation_labels)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        (subject, object_, frozenset(word for word in range(3) if row[word]))
        for subject, object_, row in rows
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[Relation]]:
    objects = draw(st.integers(0, 7))
    number = st.integers(0, max(objects - 1, 0))
    relations = draw(
        st.lists(st.tuples(number, number, st.integers(0, 2)), max_size=40 if objects else 0)
    )
    return objects, relations


@given(cases(), st.integers(1, 60), st.integers(0, 2**32))
def test_as_many_as_there_is_room_for(
    case: tuple[int, list[Relation]], limit: int, seed: int
) -> None:
    objects, relations = case
    rows = read(
        tagger_triplets(
            scene(objects, relations), 20, 20, limit, random.Random(seed), related_first=True
        )
    )
    mixed = read(tagger_triplets(scene(objects, relations), 20, 20, limit, random.Random(seed)))
    assert Counter(rows) == Counter(mixed)
    related = {(subject, object_) for subject, object_, _ in relations}
    unrelated = set(permutations(range(objects), 2)) - related
    positives = [row for row in rows if row[2]]
    assert rows[: len(positives)] == positives
    assert len(positives) == min(len(related), limit)
    assert len({row[:2] for row in rows}) == len(rows) == min(len(related) + len(unrelated), limit)
    assert {row[:2] for row in rows[len(positives) :]} <= unrelated
    for subject, object_, words in positives:
        assert words == {word for *pair, word in relations if pair == [subject, object_]}


@pytest.mark.parametrize(("limit", "expected"), [(4, 13), (2, 3)])
def test_every_pair_has_its_chance(limit: int, expected: int) -> None:
    drawn = {
        row[:2]
        for seed in range(200)
        for row in read(tagger_triplets(scene(4, RELATIONS), 20, 20, limit, random.Random(seed)))
    }
    assert len(drawn) == expected


def test_missing_objects_are_in_no_pair() -> None:
    labelled = tagger_triplets(
        scene(3, [(0, 1, 0), (0, 3, 1)], missing=True), 20, 20, 100, random.Random(0)
    )
    assert len(labelled.triplets) == 6
    assert (labelled.triplets.object_boxes[:, 2:] > 0).all()
    assert [row for row in read(labelled) if row[2]] == [(0, 1, {0})]


@given(st.integers(0, 40), st.integers(0, 10**6), st.sampled_from(["frequency", "uniform"]))
def test_names_are_new_and_never_more_than_there_are(
    wanted: int, seed: int, strategy: Strategy
) -> None:
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
    boxes = torch.zeros(1, 4)
    labels = torch.zeros(1, dtype=torch.long)
    image = LabelledTriplets(
        Triplets(boxes, boxes, labels + 1, labels, torch.ones(1, 1)), ("b", "c"), ("near",)
    )
    with pytest.raises(ValueError, match="is not among the 1 texts"):
        relabelled(image, Texts(("b",), ("near", "on")))
