"""The order of an epoch, and its steps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlip_model.text import NO_OBJECTS
from rlip_model.training.flip_text import flip_text
from rlip_model.training.sampling import LabelVocabulary, Texts
from sgpipe.errors import UserError
from sgpipe.storage.shards import IMAGE_COLUMN
from sgpipe.training.data import order
from sgpipe.training.data.order import Epoch, divide, iter_epoch, shuffled_epoch
from sgpipe.training.data.scan import ShardFolder, TrainingSet, UsableRowGroup, scan_training
from sgpipe.training.data.stream import (
    StepPart,
    StepStream,
    TrainingItem,
    TrainingStep,
)
from tests.sgpipe.training.data.runs import (
    NAMES,
    PREDICATES,
    data,
    make_records,
    make_run,
    plain_record,
)
from tests.values import values_of

Sizes = list[list[int]]
sizes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3)
LABELS = {"objects": ["person", "dog", "cat"], "relations": ["on", "left of"]}


def training_set(sizes: Sizes, weights: list[float] | None = None) -> TrainingSet:
    """Folders with row groups of these numbers of rows."""
    folders = [
        ShardFolder(str(n), (weights or [1.0] * len(sizes))[n], {}) for n in range(len(sizes))
    ]
    row_groups = [
        UsableRowGroup(n, "", group, rows)
        for n, part in enumerate(sizes)
        for group, rows in enumerate(part)
    ]
    nothing = LabelVocabulary((), ())
    return TrainingSet(tuple(folders), tuple(row_groups), 0.2, nothing, nothing, None)


def rows(training: TrainingSet, epoch: Epoch) -> list[tuple[int, int]]:
    """(row group, row) of an epoch in order; every other row of a row group's table is usable."""
    numbers = {
        (row_group.folder, row_group.group): number
        for number, row_group in enumerate(training.row_groups)
    }
    ordered = []
    for window, start in enumerate(range(0, len(epoch.visits), epoch.window)):
        visited = [
            numbers[visit.folder, visit.group]
            for visit in epoch.visits[start : start + epoch.window]
        ]
        usable = [range(0, 2 * training.row_groups[number].rows, 2) for number in visited]
        ordered += [(visited[visit], row) for visit, row in epoch.order(window, usable)]
    return ordered


def every_row(training: TrainingSet) -> list[tuple[int, int]]:
    return [
        (number, 2 * row)
        for number, row_group in enumerate(training.row_groups)
        for row in range(row_group.rows)
    ]


@given(sizes, st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_visits_every_row_once(sizes: Sizes, window: int, number: int) -> None:
    training = training_set(sizes)
    epoch = shuffled_epoch(training, window, 0, number)
    assert len(epoch) == training.rows
    assert sorted(rows(training, epoch)) == every_row(training)


def test_the_row_groups_of_a_window_are_mixed():
    training = training_set([[50] * 6])
    ordered = rows(training, shuffled_epoch(training, 2, 0, 0))
    for window in (ordered[at : at + 100] for at in range(0, 300, 100)):
        assert sorted(Counter(row_group for row_group, _ in window).values()) == [50, 50]
        assert 10 < sum(row_group == window[0][0] for row_group, _ in window[:50]) < 40


@given(sizes, st.lists(st.floats(0.01, 3.5), min_size=3, max_size=3), st.integers(0, 5))
def test_a_folder_is_visited_as_often_as_its_weight_says(
    sizes: Sizes, weights: list[float], number: int
) -> None:
    training = training_set(sizes, weights)
    epoch = shuffled_epoch(training, 2, 0, number)
    times = Counter(rows(training, epoch))
    for folder, (weight, part) in enumerate(zip(weights, sizes, strict=False)):
        folder_times = [
            times[row]
            for row in every_row(training)
            if training.row_groups[row[0]].folder == folder
        ]
        assert {int(weight), int(weight) + 1}.issuperset(folder_times)
        assert abs(sum(folder_times) - weight * sum(part)) <= 0.5 + 1e-6
    assert len(epoch) == len(shuffled_epoch(training, 2, 7, number + 1))


def test_a_fraction_has_different_rows_in_every_epoch():
    training = training_set([[10, 10]], [0.5])
    shares = [
        frozenset(rows(training, shuffled_epoch(training, 1, 0, epoch))) for epoch in range(40)
    ]
    assert all(len(share) == 10 for share in shares)
    assert len(set(shares)) > 30
    assert frozenset.union(*shares) == set(every_row(training))


def bits(rows: int) -> bytes:
    """Usable rows of a row group, of which every other one is usable."""
    return np.packbits(np.arange(2 * rows) % 2 == 0).tobytes()


@given(sizes, st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 4))
def test_lanes_share_no_row_and_have_rows_for_all_steps(
    sizes: Sizes, lanes: list[int], window: int
) -> None:
    training = training_set(sizes)
    groups = [replace(group, usable=bits(group.rows)) for group in training.row_groups]
    training = replace(training, row_groups=tuple(groups))
    epoch = shuffled_epoch(training, window, 0, 0)
    steps = len(epoch) // sum(lanes)
    lane_epochs = divide(epoch, lanes, steps)
    visited = []
    for lane, size in zip(lane_epochs, lanes, strict=True):
        lane_rows = []
        for visit in lane.visits:
            usable = visit.usable_rows(2 * visit.rows + 99)
            assert len(usable) == visit.rows
            lane_rows += [(visit.folder, visit.group, row) for row in usable]
        assert len(lanes) == 1 or len(lane_rows) == len(lane) == size * steps
        visited += lane_rows
    assert len(set(visited)) == len(visited)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), make_records(90), rows=7)


@pytest.fixture(scope="module")
def closed_config(tmp_path_factory):
    """The same images, in the shards, with closed class lists."""
    lists = {"objects": list(NAMES), "relations": list(PREDICATES)}
    folder = tmp_path_factory.mktemp("closed")
    return make_run(folder, make_records(90), rows=7, embedded=True, run={"labels": lists})


def stream(
    *configs,
    rank=0,
    world=1,
    batch=4,
    seed=0,
    training=True,
    max_relations=10,
    accumulate=1,
    scanned=None,
    **changes,
) -> StepStream:
    settings = data(*configs, **changes)
    scanned = scanned or scan_training(settings)
    return StepStream(
        scanned, settings, batch, seed, max_relations, rank, world, training, accumulate
    )


def plain(item: TrainingItem) -> tuple:
    """All fields of an item that can be compared."""
    return item.image.image_id, item.flip, item.graph, item.rng.getstate()


def objects(item: TrainingItem) -> tuple[str, ...]:
    return tuple(values_of(item.graph.objects, "name"))


def relations(item: TrainingItem) -> tuple[str, ...]:
    return tuple(values_of(item.graph.relations, "predicate"))


def images_of(step: TrainingStep) -> list[TrainingItem]:
    return [item for part in step for item in part.items]


def plain_step(step: TrainingStep) -> tuple:
    texts = [part.texts for part in step if part.items]
    return texts, list(map(plain, images_of(step)))


def first(step_stream: StepStream, count: int, epoch: int = 0, step: int = 0) -> list[tuple]:
    return list(map(plain_step, islice(step_stream.steps(epoch, step), count)))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.data())
def test_resuming_from_a_step_gives_the_same_steps(
    seed: int, rows: int, window: int, batch: int, choice: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        records = [
            *make_records(20, seed),
            *(plain_record(str(n), height=8 * n + 16) for n in range(5)),
        ]
        settings = {"batch": batch, "seed": seed, "shuffle": window}
        step_stream = stream(make_run(Path(folder), records, rows=rows), **settings)
        step = choice.draw(st.integers(0, step_stream.steps_per_epoch))
        uninterrupted = first(step_stream, 2 * step_stream.steps_per_epoch + 1)
        at = step_stream.steps_per_epoch
        assert first(step_stream, at + 1 - step, 1, step) == uninterrupted[at + step :]


def test_a_worker_copies_the_embedded_images_of_its_own_share_alone(tmp_path):
    config = make_run(tmp_path, [plain_record(str(n)) for n in range(12)], embedded=True)
    training = scan_training(data(config))
    for row in iter_epoch(training, Epoch(training.row_groups)):
        assert not isinstance(row.values()[IMAGE_COLUMN], dict)
    shares = [next(stream(config, rank=rank, world=4).epoch(0)) for rank in range(4)]
    assert [len(images_of(step)) for step in shares] == [1] * 4
    assert len({item.embedded for step in shares for item in images_of(step)} - {None}) == 4


def test_random_choices_stay_as_in_earlier_versions(config):
    """Otherwise a training that was interrupted before an update would not resume exactly."""
    steps = islice(stream(config).steps(), 3)
    assert [[(item.image.image_id, item.flip) for item in images_of(step)] for step in steps] == [
        [("0-46", False), ("0-88", True), ("0-44", False), ("0-48", True)],
        [("0-87", False), ("0-77", False), ("0-81", True), ("0-43", False)],
        [("0-80", True), ("0-45", True), ("0-86", True), ("0-2", True)],
    ]
    second = next(stream(config).epoch(1))  # in another order
    assert [item.image.image_id for item in images_of(second)] != ["0-46", "0-88", "0-44", "0-48"]


def check_texts(part: StepPart, group: Sequence[TrainingItem]) -> None:
    """The names of the group come first, then sampled ones up to 6 objects and 3 relations."""
    names = {name for item in group for name in objects(item)}
    assert set(part.texts.objects[: len(names)]) == names
    assert part.texts.objects[-1] == NO_OBJECTS
    assert len(set(part.texts.objects)) == len(part.texts.objects) == max(6, len(names)) + 1
    predicates = {name for item in group for name in relations(item)}
    assert set(part.texts.relations[: len(predicates)]) == predicates
    assert len(set(part.texts.relations)) == len(part.texts.relations) == max(3, len(predicates))


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 3, 5, 13])
def test_every_group_of_a_step_has_texts_of_its_own_whoever_computes_it(config, group):
    """Groups of the 12 images of a step, of which the last may be smaller; more than a batch: one
    group.
    """
    expected = [min(group, 12 - at) for at in range(0, 12, group)]
    grouped = partial(
        stream,
        config,
        batch=12,
        scanned=scan_training(data(config)),
        text_group=group,
        negative_texts=9,
    )
    single = [values_of(step, "texts") for step in islice(grouped().epoch(0), 2)]
    for world, accumulate in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1), (6, 2), (12, 1)]:
        workers = [
            grouped(rank=rank, world=world, accumulate=accumulate).epoch(0) for rank in range(world)
        ]
        for number, steps in enumerate(
            zip(*(islice(worker, 2) for worker in workers), strict=True)
        ):
            assert len(set(map(len, steps))) == 1
            parts = [part for step in steps for part in step if part.items]
            items = [item for part in parts for item in part.items]
            assert len(items) == 12
            if (world, accumulate) == (1, 1):
                assert [len(part.items) for part in parts] == expected
            at = 0
            for part in parts:
                first = at // group * group
                assert (at + len(part.items) - 1) // group * group == first
                check_texts(part, items[first : first + group])
                assert part.texts == single[number][first // group]
                at += len(part.items)


@pytest.fixture
def read_columns(monkeypatch) -> dict[tuple[str, int], set[str]]:
    """The columns of each row group that were read."""
    columns_of: dict[tuple[str, int], set[str]] = {}
    plain_read = order.read_row_group

    def recorded(path, group, columns, optional):
        columns_of.setdefault((str(path), group), set()).update([*columns, *optional])
        return plain_read(path, group, columns, optional)

    monkeypatch.setattr(order, "read_row_group", recorded)
    return columns_of


@pytest.mark.parametrize("labels", [{"text_group": 1}, {"labels": "full"}, {}])
def test_a_worker_reads_the_row_groups_of_its_own_images_alone(closed_config, read_columns, labels):
    """Of 8 workers, each with one of the 8 images of a step, each reads about an eighth; without
    text groups, also the names in the others.
    """
    scanned = scan_training(data(closed_config, **labels))
    counts = []
    for rank in range(8):
        worker = stream(closed_config, rank=rank, world=8, batch=8, scanned=scanned, **labels)
        assert len(list(worker.epoch(0))) == worker.steps_per_epoch
        whole = [group for group, columns in read_columns.items() if IMAGE_COLUMN in columns]
        counts.append(len(whole))
        assert labels == {} or len(read_columns) == len(whole)
        for columns in read_columns.values():
            assert {*order.NAME_COLUMNS} <= columns
        read_columns.clear()
    row_groups = len(scanned.row_groups)
    assert max(counts) <= -(-row_groups // 8) + 1  # the first and last one may be parts
    assert sum(counts) <= row_groups + 7


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("labels", [{"text_group": 2}, {"labels": "full"}, {}])
def test_steps_resume_and_are_the_same_for_any_number_of_workers(closed_config, world, labels):
    """The images, also embedded, their annotations and random choices, and all texts."""
    scanned = scan_training(data(closed_config, **labels))
    lanes = partial(stream, closed_config, batch=8, scanned=scanned, **labels)
    steps = lanes().steps_per_epoch
    single = list(islice(lanes().steps(), 2 * steps))
    assert len({tuple(image_ids(step)) for step in single}) == 2 * steps
    workers = [
        list(islice(lanes(rank=rank, world=world).steps(), 2 * steps)) for rank in range(world)
    ]
    for step, *shares in zip(single, *workers, strict=True):
        items = [item for share in shares for item in images_of(share)]
        assert list(map(plain, items)) == list(map(plain, images_of(step)))
        assert values_of(items, "embedded") == values_of(images_of(step), "embedded")
        assert texts_of_images(shares) == texts_of_images([step])
    resumed = lanes(rank=world - 1, world=world)
    assert first(resumed, steps, 0, 2) == list(map(plain_step, workers[-1][2 : steps + 2]))


def image_ids(step: TrainingStep) -> list[str]:
    return [item.image.image_id for item in images_of(step)]


def texts_of_images(shares: Sequence[TrainingStep]) -> list[tuple[Texts, Texts]]:
    """The texts that are read with each image of a step."""
    texts = []
    for share in shares:
        for part in share:
            texts += [(part.texts, part.network_texts)] * len(part.items)
    return texts


def test_a_step_without_text_groups_has_images_of_different_row_groups(closed_config):
    """Each of its images comes from a lane, whose row groups no other lane has."""
    step_stream = stream(closed_config, batch=8, labels="full", shuffle=1)
    for step in step_stream.epoch(0):
        groups = [int(name.split("-")[1]) // 7 for name in image_ids(step)]
        assert len({*groups}) >= 5


def test_flips_are_random_per_image_and_change_names(tmp_path):
    records = [plain_record(str(n), "left of") for n in range(40)]
    for record in records:
        record.objects[1].category = "right hand"
    items = [
        item for step in stream(make_run(tmp_path, records)).epoch(0) for item in images_of(step)
    ]
    plain_names = ("person", "right hand"), ("left of",)
    mirrored = tuple(tuple(map(flip_text, part)) for part in plain_names)
    for item in items:
        assert (objects(item), relations(item)) == (mirrored if item.flip else plain_names)
    assert 8 < sum(values_of(items, "flip")) < 32


def test_closed_labels_are_the_texts_and_flips_stay_within_them(tmp_path):
    records = [plain_record(str(n), ("on", "left of")[n % 2]) for n in range(40)]
    config = make_run(tmp_path, records, run={"labels": LABELS})
    steps = list(stream(config, labels="full").epoch(0))
    assert {step[0].texts.objects for step in steps} == {("person", "dog", "cat", NO_OBJECTS)}
    assert {step[0].texts.relations for step in steps} == {("on", "left of")}
    flips = {name: set[bool]() for name in ("on", "left of")}
    for step in steps:
        for item in images_of(step):
            flips[relations(item)[0]].add(item.flip)
    assert flips == {"on": {True, False}, "left of": {False}}


@pytest.mark.parametrize("world", [2, 7])
def test_a_validation_visits_all_images_in_the_same_order_whoever_computes_it(config, world):
    single, *shares = (
        list(
            map(plain_step, stream(config, rank=rank, world=process_count, training=False).epoch(0))
        )
        for rank, process_count in ((0, 1), *((rank, world) for rank in range(world)))
    )
    for step, *parts in zip(single, *shares, strict=True):
        assert [item[0] for part in parts for item in part[1]] == [item[0] for item in step[1]]
        assert all(part[0] == step[0] for part in parts if part[0])


def test_batches_that_cannot_be_divided_or_filled_are_refused(config):
    with pytest.raises(UserError, match="a batch of 4 cannot be divided evenly between 3 workers"):
        stream(config, world=3)
    with pytest.raises(UserError, match=r"only \d\d images, less than a batch of 200"):
        stream(config, batch=200)


def test_shards_that_changed_after_the_scan_are_named(tmp_path):
    step_stream = stream(make_run(tmp_path, [plain_record(str(n)) for n in range(6)], rows=6))
    make_run(tmp_path, [plain_record(str(n)) for n in range(3)], rows=3)
    (tmp_path / "data" / "train-000000000-000000003.parquet").rename(
        step_stream.training_set.row_groups[0].file
    )
    with pytest.raises(UserError, match=r"000000006\.parquet has changed"):
        next(step_stream.steps())


def test_relations_are_reworded_only_in_training(config):
    wordings = {"left of": ("to the left of", "on"), "under": ("below",)}
    reworded = stream(config, wordings=wordings)
    steps = list(islice(reworded.steps(), 40))
    parts = steps
    counter = Counter(
        pair
        for [part] in parts
        for pair in zip(part.texts.relations, part.network_texts.relations, strict=True)
    )
    assert all(part.network_texts.objects == part.texts.objects for [part] in parts)
    assert {
        ("left of", "left of"),
        ("left of", "to the left of"),
        ("under", "under"),
        ("under", "below"),
    } < set(counter)
    assert {spoken for known, spoken in counter if known == "on"} == {"on"}
    for [part] in parts:  # never said as another relation of the group
        assert len(set(part.network_texts.relations)) == len(part.texts.relations)
    assert list(map(plain_step, steps)) == first(stream(config, wordings=wordings), 40)
    checked = stream(config, wordings=wordings, training=False)
    assert all(part.network_texts == part.texts for step in checked.epoch(0) for part in step)
