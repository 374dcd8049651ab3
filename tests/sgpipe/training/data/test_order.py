from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.training.data.scan import ShardFolder, TrainingSet, UsableRowGroup
from sgpipe.training.data.stream import Epoch, Visit, shuffled_epoch

Sizes = list[list[int]]


def training_set(sizes: Sizes, weights: list[float] | None = None) -> TrainingSet:
    """Folders with row groups of these numbers of rows."""
    folders = [ShardFolder(str(n), (weights or [1.0] * len(sizes))[n], {}) for n in range(len(sizes))]
    row_groups = [UsableRowGroup(n, "", group, rows) for n, part in enumerate(sizes) for group, rows in enumerate(part)]
    nothing = LabelVocabulary((), ())
    return TrainingSet(tuple(folders), tuple(row_groups), 0.2, nothing, nothing, None, 0, 0)


def rows(found: TrainingSet, epoch: Epoch) -> list[tuple[int, int]]:
    """(row group, row) of an epoch in order; every other row of a row group's table is usable."""
    ordered = []
    for window, visits in enumerate(windows(epoch)):
        usable = [range(0, 2 * found.row_groups[visit.row_group].rows, 2) for visit in visits]
        ordered += [(visits[visit].row_group, row) for visit, row in epoch.order(window, usable)]
    return ordered


def windows(epoch: Epoch) -> list[tuple[Visit, ...]]:
    return [epoch.visits[at : at + epoch.window] for at in range(0, len(epoch.visits), epoch.window)]


def every_row(found: TrainingSet) -> list[tuple[int, int]]:
    return [(number, 2 * row) for number, row_group in enumerate(found.row_groups) for row in range(row_group.rows)]


sizes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3)


@given(sizes, st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_visits_every_row_once(sizes: Sizes, window: int, number: int) -> None:
    found = training_set(sizes)
    epoch = shuffled_epoch(found, window, 0, number)
    assert len(epoch) == found.rows
    assert sorted(rows(found, epoch)) == every_row(found)


@given(sizes, st.integers(1, 4), st.data())
def test_a_position_is_found_in_its_window(sizes: Sizes, window: int, choice: st.DataObject) -> None:
    found = training_set(sizes)
    epoch = shuffled_epoch(found, window, 0, 0)
    position = choice.draw(st.integers(0, len(epoch)))
    number, place = epoch.find(position)
    sizes_of = [sum(visit.rows for visit in visits) for visits in windows(epoch)]
    assert sum(sizes_of[:number]) + place == position
    assert position == len(epoch) or place < sizes_of[number]


def test_the_row_groups_of_a_window_are_mixed():
    found = training_set([[50] * 6])
    ordered = rows(found, shuffled_epoch(found, 2, 0, 0))
    for window in (ordered[at : at + 100] for at in range(0, 300, 100)):
        assert sorted(Counter(row_group for row_group, _ in window).values()) == [50, 50]
        assert 10 < sum(row_group == window[0][0] for row_group, _ in window[:50]) < 40


@given(sizes, st.lists(st.floats(0.01, 3.5), min_size=3, max_size=3), st.integers(0, 5))
def test_a_folder_is_visited_as_often_as_its_weight_says(sizes: Sizes, weights: list[float], number: int) -> None:
    found = training_set(sizes, weights)
    epoch = shuffled_epoch(found, 2, 0, number)
    times = Counter(rows(found, epoch))
    for folder, (weight, part) in enumerate(zip(weights, sizes, strict=False)):
        own = [times[row] for row in every_row(found) if found.row_groups[row[0]].folder == folder]
        assert {int(weight), int(weight) + 1}.issuperset(own)
        assert abs(sum(own) - weight * sum(part)) <= 0.5 + 1e-6
    assert len(epoch) == len(shuffled_epoch(found, 2, 7, number + 1))


def test_a_fraction_has_different_rows_in_every_epoch():
    found = training_set([[10, 10]], [0.5])
    shares = [frozenset(rows(found, shuffled_epoch(found, 1, 0, epoch))) for epoch in range(40)]
    assert all(len(share) == 10 for share in shares)
    assert len(set(shares)) > 30
    assert frozenset.union(*shares) == set(every_row(found))
