from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlip_model.text import NO_OBJECTS
from rlip_model.training.flip_text import flip_text
from sgpipe.errors import UserError
from sgpipe.training.data.scan import scan_training
from sgpipe.training.data.stream import StepPart, StepStream, TrainingItem, TrainingStep
from tests.sgpipe.training.data.runs import data, make_records, make_run, plain_record

LABELS = {"objects": ["person", "dog", "cat"], "relations": ["on", "left of"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), make_records(90), rows=7)


def stream(
    *configs, rank=0, world=1, batch=4, seed=0, training=True, most_relations=10, accumulate=1, scanned=None, **changes
) -> StepStream:
    settings = data(*configs, **changes)
    scanned = scanned or scan_training(settings)
    return StepStream(scanned, settings, batch, seed, most_relations, rank, world, training, accumulate)


def plain(item: TrainingItem) -> tuple:
    """All fields of an item that can be compared."""
    return item.image_id, item.flip, item.graph, item.rng.getstate()


def objects(item: TrainingItem) -> tuple[str, ...]:
    return tuple(each.name for each in item.graph.objects)


def relations(item: TrainingItem) -> tuple[str, ...]:
    return tuple(each.predicate for each in item.graph.relations)


def plain_step(step: TrainingStep) -> tuple:
    texts = [part.texts for part in step.parts if part.items]
    return step.epoch, step.index, texts, [plain(item) for item in step.items]


def first(found: StepStream, count: int, epoch: int = 0, step: int = 0) -> list[tuple]:
    return [plain_step(step) for step in islice(found.steps(epoch, step), count)]


def ids(steps: list[tuple]) -> list[str]:
    return [item[0] for step in steps for item in step[3]]


def test_several_workers_together_see_what_one_sees(config):
    alone = stream(config)
    count = alone.steps_per_epoch + 3
    for world in (2, 4):
        shares = [first(stream(config, rank=rank, world=world), count) for rank in range(world)]
        for whole, *parts in zip(first(alone, count), *shares, strict=True):
            assert whole[3] == [item for part in parts for item in part[3]]
            assert all(part[:3] == whole[:3] for part in parts)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.data())
def test_resuming_from_a_step_gives_the_same_steps(
    seed: int, rows: int, window: int, batch: int, choice: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        records = [*make_records(20, seed), *(plain_record(str(n), height=8 * n + 16) for n in range(5))]
        settings = {"batch": batch, "seed": seed, "shuffle": window, "similar_shapes": bool(seed % 2)}
        found = stream(make_run(Path(folder), records, rows=rows), **settings)
        step = choice.draw(st.integers(0, found.steps_per_epoch))
        whole = first(found, 2 * found.steps_per_epoch + 1)
        at = found.steps_per_epoch
        assert first(found, at + 1 - step, 1, step) == whole[at + step :]


def test_an_epoch_has_every_usable_image_once_except_an_incomplete_batch(config):
    found = stream(config)
    rows = found.training_set.rows
    assert rows % 4
    for epoch in (0, 1):
        seen = Counter(item.image_id for step in found.epoch(epoch) for item in step.items)
        assert set(seen.values()) == {1}
        assert sum(seen.values()) == 4 * found.steps_per_epoch == rows - rows % 4


@pytest.mark.parametrize("world", [1, 2])
def test_the_images_of_a_step_have_similar_shapes(tmp_path, world):
    shapes = [(40, 20), (20, 40), (30, 30)]
    records = [plain_record(str(n), width=shapes[n % 3][0], height=shapes[n % 3][1]) for n in range(60)]
    run = make_run(tmp_path, records, rows=15)
    shares = [stream(run, rank=rank, world=world, shuffle=4, similar_shapes=True).epoch(0) for rank in range(world)]
    steps = [[item for part in parts for item in part.items] for parts in zip(*shares, strict=True)]
    assert sorted(int(item.image_id) for step in steps for item in step) == list(range(60))
    assert all(len({(item.width, item.height) for item in step}) == 1 for step in steps)  # 20 of each: 5 steps of 4
    assert len({step[0].width for step in steps[:5]}) > 1


def test_random_choices_stay_as_in_earlier_versions(config):
    """Otherwise a training that was interrupted before an update would not resume exactly."""
    steps = islice(stream(config).steps(), 3)
    assert [[(item.image_id, item.flip) for item in step.items] for step in steps] == [
        [("0-46", False), ("0-88", True), ("0-44", False), ("0-48", True)],
        [("0-87", False), ("0-77", False), ("0-81", True), ("0-43", False)],
        [("0-80", True), ("0-45", True), ("0-86", True), ("0-2", True)],
    ]


def test_texts_are_the_names_of_the_step_then_sampled_ones(config):
    for [part] in (step.parts for step in stream(config, negative_texts=9).epoch(0)):
        check_texts(part, part.items)


def check_texts(part: StepPart, group: Sequence[TrainingItem]) -> None:
    """The names of the group come first, then sampled ones up to 6 objects and 3 relations."""
    own = {name for item in group for name in objects(item)}
    assert set(part.texts.objects[: len(own)]) == own
    assert part.texts.objects[-1] == NO_OBJECTS
    assert len(set(part.texts.objects)) == len(part.texts.objects) == max(6, len(own)) + 1
    own = {name for item in group for name in relations(item)}
    assert set(part.texts.relations[: len(own)]) == own
    assert len(set(part.texts.relations)) == len(part.texts.relations) == max(3, len(own))


@pytest.mark.parametrize(
    "group", [1, 3, 13, *(pytest.param(group, marks=pytest.mark.soak) for group in (2, 4, 5, 8, 12))]
)
def test_every_group_of_a_step_has_texts_of_its_own_whoever_computes_it(config, group):
    """Groups of the 12 images of a step, of which the last may be smaller; more than a batch: one group."""
    expected = [min(group, 12 - at) for at in range(0, 12, group)]
    grouped = partial(stream, config, batch=12, scanned=scan_training(data(config)), text_group=group, negative_texts=9)
    whole = [[part.texts for part in step.parts] for step in islice(grouped().epoch(0), 2)]
    for world, accumulate in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1), (6, 2), (12, 1)]:
        workers = [grouped(rank=rank, world=world, accumulate=accumulate).epoch(0) for rank in range(world)]
        for steps in zip(*(islice(each, 2) for each in workers), strict=True):
            assert len({len(step.parts) for step in steps}) == 1
            parts = [part for step in steps for part in step.parts if part.items]
            items = [item for part in parts for item in part.items]
            assert len(items) == 12
            if (world, accumulate) == (1, 1):
                assert [len(part.items) for part in parts] == expected
            at = 0
            for part in parts:
                first = at // group * group
                assert (at + len(part.items) - 1) // group * group == first
                check_texts(part, items[first : first + group])
                assert part.texts == whole[steps[0].index][first // group]
                at += len(part.items)


def test_flips_are_random_per_image_and_change_names(tmp_path):
    records = [plain_record(str(n), "left of") for n in range(40)]
    for each in records:
        each.objects[1].category = "right hand"
    items = [item for step in stream(make_run(tmp_path, records)).epoch(0) for item in step.items]
    plain_names = ("person", "right hand"), ("left of",)
    mirrored = tuple(tuple(map(flip_text, part)) for part in plain_names)
    for item in items:
        assert (objects(item), relations(item)) == (mirrored if item.flip else plain_names)
    assert 8 < sum(item.flip for item in items) < 32


def test_closed_labels_are_the_texts_and_flips_stay_within_them(tmp_path):
    records = [plain_record(str(n), ("on", "left of")[n % 2]) for n in range(40)]
    config = make_run(tmp_path, records, run={"labels": LABELS})
    steps = list(stream(config, labels="full").epoch(0))
    assert {step.parts[0].texts.objects for step in steps} == {("person", "dog", "cat", NO_OBJECTS)}
    assert {step.parts[0].texts.relations for step in steps} == {("on", "left of")}
    flips = {name: set[bool]() for name in ("on", "left of")}
    for step in steps:
        for item in step.items:
            flips[relations(item)[0]].add(item.flip)
    assert flips == {"on": {True, False}, "left of": {False}}


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_a_validation_visits_all_images_once_in_order(config, world):
    whole = [plain_step(step) for step in stream(config, training=False).epoch(0)]
    shares = [
        [plain_step(step) for step in stream(config, rank=rank, world=world, training=False).epoch(0)]
        for rank in range(world)
    ]
    order = ids(whole)
    assert len(order) == scan_training(data(config)).rows
    assert len(order) % 4
    for step, *parts in zip(whole, *shares, strict=True):
        assert [image for part in parts for image in ids([part])] == ids([step])
        assert all(part[2] == step[2] for part in parts if part[2])


def test_batches_that_cannot_be_divided_or_filled_are_refused(config):
    with pytest.raises(UserError, match="a batch of 4 cannot be divided evenly between 3 workers"):
        stream(config, world=3)
    with pytest.raises(UserError, match=r"only \d\d images, fewer than a batch of 200"):
        stream(config, batch=200)


def test_shards_that_changed_after_the_scan_are_named(tmp_path):
    found = stream(make_run(tmp_path, [plain_record(str(n)) for n in range(6)], rows=6))
    make_run(tmp_path, [plain_record(str(n)) for n in range(3)], rows=3)
    (tmp_path / "data" / "train-000000000-000000003.parquet").rename(found.training_set.row_groups[0].file)
    with pytest.raises(UserError, match=r"000000006\.parquet has changed"):
        next(found.steps())


def test_relations_are_reworded_only_in_training(config):
    wordings = {"left of": ("to the left of", "on"), "under": ("below",)}
    own = stream(config, wordings=wordings)
    steps = list(islice(own.steps(), 40))
    parts = [step.parts for step in steps]
    said = Counter(
        pair for [part] in parts for pair in zip(part.texts.relations, part.network_texts.relations, strict=True)
    )
    assert all(part.network_texts.objects == part.texts.objects for [part] in parts)
    assert {("left of", "left of"), ("left of", "to the left of"), ("under", "under"), ("under", "below")} < set(said)
    assert {spoken for known, spoken in said if known == "on"} == {"on"}
    for [part] in parts:  # never said as another relation of the group
        assert len(set(part.network_texts.relations)) == len(part.texts.relations)
    assert [plain_step(step) for step in steps] == first(stream(config, wordings=wordings), 40)
    checked = stream(config, wordings=wordings, training=False)
    assert all(part.network_texts == part.texts for step in checked.epoch(0) for part in step.parts)
