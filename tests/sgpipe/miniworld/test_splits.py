"""No statement of the compositional split occurs in the others."""

import pytest

from sgpipe.miniworld.relations import (
    COMPOSITIONAL,
    CONVERSE,
    RULES,
    SPLITS,
    Statement,
    closure,
    statements_of,
)


def stated(split: str) -> set[Statement]:
    return {statement for composed in statements_of(split) for statement in closure(composed)}


def test_compositional_statements_never_occur_in_train_or_val() -> None:
    for split in set(SPLITS) - {COMPOSITIONAL}:
        assert not stated(split) & stated(COMPOSITIONAL)


def test_every_relation_belongs_to_one_side() -> None:
    every = {statement for rule in RULES for statement in rule.statements}
    assert statements_of("train") == statements_of("val")
    assert statements_of("train") | statements_of(COMPOSITIONAL) == every
    assert 0.1 < len(statements_of(COMPOSITIONAL)) / len(every) < 0.25


def test_train_covers_the_words_of_held_out_statements() -> None:
    train = stated("train")
    classes = {name for subject, _, object_ in train for name in (subject, object_)}
    predicates = {predicate for _, predicate, _ in train}
    for subject, predicate, object_ in statements_of(COMPOSITIONAL):
        assert {subject, object_} <= classes
        assert predicate in predicates


@pytest.mark.parametrize("predicate", CONVERSE)
def test_a_converse_implies_the_relation_it_comes_from(predicate: str) -> None:
    assert ("dog", CONVERSE[predicate], "car") in closure(("car", predicate, "dog"))
    assert ("car", predicate, "dog") in closure(("dog", CONVERSE[predicate], "car"))
