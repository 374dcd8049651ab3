"""Refining labelled relations."""

from hypothesis import given
from hypothesis import strategies as st

from sgpipe.records import Box, Record, Relation, deduplicate
from tests.parity.refinement import NameFrequencies, keep_known, top_per_pair

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


@given(RELATIONS, st.integers(1, 3))
def test_each_pair_keeps_its_most_confident(relations: list[Relation], k: int) -> None:
    kept = top_per_pair(relations, k)
    for pair in {(r.subject, r.object) for r in relations}:
        of_pair = [r for r in relations if (r.subject, r.object) == pair]
        mine = [r for r in kept if (r.subject, r.object) == pair]
        assert len(mine) == min(k, len(of_pair))
        assert sorted(map(confidence, mine)) == sorted(map(confidence, of_pair))[-k:]
        if len(of_pair) <= k:
            assert mine == of_pair
    assert list(dict.fromkeys((r.subject, r.object) for r in kept)) == list(
        dict.fromkeys((r.subject, r.object) for r in relations)
    )


def test_only_what_is_known_between_the_classes_is_kept() -> None:
    objects = [Box("person", 1, (0, 0, 1, 1)), Box("horse", 19, (0, 0, 1, 1))]
    rows = [Relation(0, 1, "riding"), Relation(1, 0, "riding"), Relation(0, 1, "eating")]
    assert keep_known(rows, objects, {("person", "horse"): ["riding"]}) == rows[:1]


def test_names_are_counted_most_frequent_first_and_ties_as_seen() -> None:
    boxes = [Box(name, 1, (0, 0, 1, 1)) for name in ("cup", "dog", "dog", "ant")]
    rows = [Relation(0, 1, text) for text in ("on", "by", "in", "in")]
    counts = NameFrequencies.count([Record("1", "d", "s", "f", 1, 1, boxes, relations=rows)] * 2)
    assert list(counts.objects.items()) == [("dog", 4), ("cup", 2), ("ant", 2)]
    assert list(counts.predicates.items()) == [("in", 4), ("on", 2), ("by", 2)]
    assert NameFrequencies.from_json(counts.to_json()) == counts
