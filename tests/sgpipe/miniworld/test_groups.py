"""Groups: only statements of the split, and no accidental relations."""

from itertools import combinations

import numpy as np
import pytest

from sgpipe.miniworld.actors import Bond, SceneGroup, random_actor
from sgpipe.miniworld.relations import COMPOSITIONAL, statements_of
from sgpipe.miniworld.scene import APART, random_group, stays_apart


def pair(distance: float, kinds: tuple[str, str] = ("chair", "dog"), rise: float = 0.0) -> SceneGroup:
    rng = np.random.default_rng(0)
    first, second = (random_actor(kind, rng) for kind in kinds)
    second.at = (first.extent().right + distance - second.extent().left, rise)
    return SceneGroup([first, second])


def test_unrelated_things_must_not_be_near() -> None:
    assert not stays_apart(pair(0.1))
    assert not stays_apart(pair(-0.3))
    assert stays_apart(pair(APART + 0.01))


def test_related_things_may_be_near() -> None:
    group = pair(0.1)
    group.bonds.append(Bond(0, "next to", 1))
    assert stays_apart(group)


def test_what_flies_above_an_unrelated_thing_is_over_it() -> None:
    group = pair(-0.3, ("chair", "bird"), rise=2.0)
    assert stays_apart(group)
    group.actors[1].posture = "flying"
    assert not stays_apart(group)


def test_nothing_is_under_an_umbrella_by_accident() -> None:
    group = pair(-0.5, ("cat", "umbrella"))
    group.actors[1].posture, group.actors[1].at = "held", (0.0, 1.5)
    assert not stays_apart(group)


@pytest.mark.parametrize("split", ["train", COMPOSITIONAL])
def test_groups_are_connected_and_use_only_statements_of_their_split(split: str) -> None:
    allowed = statements_of(split)
    sizes = set()
    for seed in range(150):
        group = random_group(allowed, np.random.default_rng(seed))
        sizes.add(len(group.actors))
        for subject, predicate, object_ in group.bonds:
            assert (group.actors[subject].kind, predicate, group.actors[object_].kind) in allowed
        assert {end for bond in group.bonds for end in (bond.subject, bond.object)} == set(range(len(group.actors)))
        related = {frozenset((bond.subject, bond.object)) for bond in group.bonds}
        assert len(related) == len(group.bonds), "two relations of one pair"
        for (i, one), (j, other) in combinations(enumerate(group.actors), 2):
            if frozenset((i, j)) not in related:
                a, b = one.extent(), other.extent()
                across = max(a.left, b.left) - min(a.right, b.right)
                upright = max(a.bottom, b.bottom) - min(a.top, b.top)
                assert across >= APART or upright >= 0
    assert sizes == {2, 3}
