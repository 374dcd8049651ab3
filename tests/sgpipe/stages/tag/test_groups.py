"""The groups of pairs that are scored together."""

from hypothesis import given
from hypothesis import strategies as st

from sgpipe.records import Pair
from sgpipe.stages.tag.stage import Batch, own_batches, reference_batches, reference_groups

TEXTS = st.lists(st.sampled_from(["on", "near", "in", "by"]), min_size=1, max_size=3)
PAIRS = st.lists(st.builds(Pair, st.integers(0, 9), st.integers(0, 9), TEXTS), max_size=30)
SIZES = st.integers(1, 7)


def test_own_batches_join_groups_with_equal_predicates() -> None:
    pairs = [Pair(i, 9, ["b", "a"] if i < 5 else ["c"]) for i in range(8)] + [Pair(0, 1, [])]
    batches = own_batches(pairs, size=2, chunk=16)
    assert batches == [
        Batch([[(0, 9), (1, 9)], [(2, 9), (3, 9)]], ["a", "b"]),
        Batch([[(4, 9), (5, 9)]], ["a", "b", "c"]),
        Batch([[(6, 9), (7, 9)]], ["c"]),
    ]
    assert [len(batch.groups) for batch in own_batches(pairs[:5], size=1, chunk=2)] == [2, 2, 1]


def test_reference_batches_merge_the_predicates_of_a_chunk() -> None:
    groups = [([(0, 1)], ["b", "a"]), ([(1, 0)], ["c", "a"]), ([(2, 0)], ["d"]), ([], [])]
    assert reference_batches(groups, 2) == [Batch([[(0, 1)], [(1, 0)]], ["b", "a", "c"]), Batch([[(2, 0)]], ["d"])]
    assert reference_batches([([], [])], 16) == []


@given(PAIRS, SIZES)
def test_own_groups_keep_every_pair_and_are_never_empty(pairs: list[Pair], size: int) -> None:
    groups = [group for batch in own_batches(pairs, size, 100) for group in batch.groups]
    assert sorted(pair for group in groups for pair in group) == sorted((p.subject, p.object) for p in pairs)
    assert sorted(map(len, groups)) == sorted(
        [size] * (len(pairs) // size) + [len(pairs) % size] * (len(pairs) % size > 0)
    )


@given(PAIRS, SIZES)
def test_reference_has_one_entry_per_text_and_one_group_too_many(pairs: list[Pair], size: int) -> None:
    entries = [((pair.subject, pair.object), text) for pair in pairs for text in pair.predicates]
    groups = reference_groups(pairs, size)
    assert len(groups) == len(entries) // size + 1
    assert [pair for group, _ in groups for pair in group] == [pair for pair, _ in entries]
    for index, (_, predicates) in enumerate(groups):
        texts = [text for _, text in entries[index * size : (index + 1) * size]]
        assert predicates == list(dict.fromkeys(texts))


def test_reference_prior_counts_all_pairs_before_it_drops_any() -> None:
    groups = reference_groups([Pair(0, 1, ["on", "by"]), Pair(2, 0, ["by", "in"])], boxes=15)
    assert [pairs for pairs, _ in groups] == [[(0, 1), (2, 0)], [], []]
    assert groups[0][1] == ["on", "by", "in"]
