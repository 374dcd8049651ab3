"""Refining labelled relations."""

from hypothesis import given
from hypothesis import strategies as st

from sgpipe.records import Relation, deduplicate

RELATIONS = st.lists(
    st.builds(
        Relation,
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from(["on", "near"]),
        st.sampled_from([0.1, 0.5, 0.9, None]),
    ),
    max_size=20,
)


def confidence(relation: Relation) -> float:
    return 1.0 if relation.confidence is None else relation.confidence


def is_subsequence(part: list[Relation], whole: list[Relation]) -> bool:
    places = {id(relation): place for place, relation in enumerate(whole)}
    order = [places[id(relation)] for relation in part]
    return order == sorted(set(order))


@given(RELATIONS)
def test_one_row_per_statement_with_the_highest_confidence(relations: list[Relation]) -> None:
    kept = deduplicate(relations)
    best: dict[tuple[int, str, int], float] = {}
    for relation in relations:
        key = (relation.subject, relation.predicate, relation.object)
        best[key] = max(best.get(key, 0), confidence(relation))
    assert {(r.subject, r.predicate, r.object): confidence(r) for r in kept} == best
    assert len(kept) == len(best)
    assert is_subsequence(kept, relations)


def test_the_first_of_equals_stays_unless_all_do() -> None:
    rows = [Relation(0, 1, "on", score) for score in (0.3, 0.9, 0.2, 0.9)] + [Relation(1, 0, "on", 0.1)]
    assert [rows.index(row) for row in deduplicate(rows)] == [1, 4]
    assert deduplicate(rows)[0] is rows[1]
    assert [id(row) for row in deduplicate(rows, keep_ties=True)] == [id(rows[i]) for i in (1, 3, 4)]
