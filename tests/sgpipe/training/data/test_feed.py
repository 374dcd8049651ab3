import threading
from contextlib import suppress
from itertools import islice

import pytest
import torch

from rlip_model.training.batches import TrainingBatch
from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.training.data.scan import scan_training, scan_validation
from sgpipe.training.data.stream import ShardFeed, StepStream
from tests.sgpipe.training.data.runs import data, image, make_records, make_run, plain_record


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), make_records(60), rows=7)


def feed(*configs, batch=4, max_pairs=None, rank=0, world=1, accumulate=1, **changes) -> ShardFeed:
    settings = data(*configs, **changes)
    training_set = scan_training(settings)
    stream = StepStream(training_set, settings, batch, 0, 10, rank, world, accumulate=accumulate)
    return ShardFeed(stream, scan_validation(settings, training_set), max_pairs)


def training(
    fed: ShardFeed, count: int, epoch: int = 0, step: int = 0
) -> list[list[TrainingBatch]]:
    with fed.read(epoch, step) as steps:
        return list(islice(steps, count))


def validation(fed: ShardFeed) -> list[TrainingBatch]:
    with fed.validation() as batches:
        return list(batches)


def plain(batch: TrainingBatch) -> tuple:
    triplets = [
        {name: value.tolist() for name, value in vars(triplet).items()}
        for triplet in batch.triplets
    ]
    return (
        batch.image_ids,
        batch.pixel_values.tolist(),
        batch.padding.tolist(),
        triplets,
        batch.texts,
        batch.skipped,
    )


def plain_steps(steps: list[list[TrainingBatch]]) -> list[list[tuple]]:
    return [list(map(plain, step)) for step in steps]


@pytest.mark.parametrize("max_pairs", [None, 3])
def test_resuming_from_a_step_gives_the_same_batches(config, max_pairs):
    fed = feed(config, max_pairs=max_pairs)
    uninterrupted = training(fed, fed.steps_per_epoch + 4)
    assert plain_steps(training(fed, 2, epoch=1, step=2)) == plain_steps(uninterrupted[-2:])


def test_a_tagger_learns_from_unrelated_pairs_too(tmp_path):
    config = make_run(tmp_path, [plain_record(str(n)) for n in range(4)])
    [[related]] = training(feed(config, augment=None), 1)
    [[pairs]] = training(feed(config, augment=None, max_pairs=3, related_first=True), 1)
    for one, more in zip(related.triplets, pairs.triplets, strict=True):
        assert (len(one), len(more)) == (1, 2)
        assert torch.equal(more.subject_boxes[1], one.object_boxes[0])
        assert more.relation_labels.sum(1).tolist() == [1, 0]


def test_a_relation_without_object_stays_one(tmp_path):
    records = [plain_record(str(n)) for n in range(4)]
    for record in records:
        record.objects.append(Box(NO_OBJECT, 0, (0, 0, 0, 0)))
        record.relations = [Relation(0, 2, "walking")]
    no_crop = {"crop_probability": 0.0, "short_sides": (32,), "long_side": 48}
    [[batch]] = training(feed(make_run(tmp_path, records), augment=no_crop), 1)
    for triplets in batch.triplets:
        assert triplets.object_boxes.tolist() == [[0, 0, 0, 0]]
        assert [batch.texts.objects[label] for label in triplets.object_labels] == [NO_OBJECT]


def joined(batches: list[TrainingBatch], name: str) -> list:
    return [value for batch in batches for value in getattr(batch, name)]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2)])
def test_the_parts_of_all_workers_make_up_the_step(config, world, accumulate):
    shares = [
        training(feed(config, rank=rank, world=world, accumulate=accumulate), 10)
        for rank in range(world)
    ]
    for [single], *workers in zip(training(feed(config), 10), *shares, strict=True):
        parts = [part for worker in workers for part in worker]
        assert set(map(len, parts)) == {4 // (world * accumulate)}
        assert joined(parts, "image_ids") == list(single.image_ids)
        assert all(part.texts == single.texts for part in parts)
        for name in ("subject_boxes", "relation_labels"):
            cut, uncut = (
                [getattr(joined_part, name) for joined_part in joined(batches, "triplets")]
                for batches in (parts, [single])
            )
            assert all(map(torch.equal, cut, uncut))


def test_images_are_flipped_together_with_their_boxes(tmp_path):
    """Without other augmentation, flipping an image and its boxes back gives the originals."""
    plain_size = {"width": 48, "height": 32}
    config = make_run(tmp_path, [plain_record(str(n), **plain_size) for n in range(8)])
    only_flip = {"jitter": 0.0, "crop_probability": 0.0, "short_sides": (32,), "long_side": 48}
    changed, unchanged = (
        {
            image_id: (batch.pixel_values[n], batch.triplets[n])
            for [batch] in training(feed(config, batch=8, augment={**only_flip, "flip": flip}), 1)
            for n, image_id in enumerate(batch.image_ids)
        }
        for flip in (1.0, 0.0)
    )
    assert set(changed) == set(unchanged) == set(map(str, range(8)))
    for image_id, (pixels, triplets) in unchanged.items():
        flipped, mirrored = changed[image_id]
        assert torch.allclose(flipped.flip(2), pixels)
        expected = triplets.subject_boxes * torch.tensor([-1, 1, 1, 1]) + torch.tensor([1, 0, 0, 0])
        assert torch.allclose(mirrored.subject_boxes, expected)


def test_embedded_images_give_the_same_batches(tmp_path):
    records = make_records(30)
    files = make_run(tmp_path / "files", records)
    shards = make_run(tmp_path / "shards", records, embedded=True, images=tmp_path / "nothing")
    assert plain_steps(training(feed(files), 8)) == plain_steps(training(feed(shards), 8))


@pytest.mark.parametrize("embedded", [True, False])
def test_an_unreadable_image_is_skipped_and_counted(tmp_path, embedded):
    records = [plain_record(str(n), width=24 + n) for n in range(12)]
    spoilt = {"3": None, "5": b"no image", "7": image(records[8])}
    config = make_run(tmp_path, records, rows=12, embedded=embedded, spoilt=spoilt)
    fed = feed(config, batch=12)
    [[batch]] = training(fed, 1)
    assert batch.skipped == 3
    assert len(batch) == len(batch.triplets) == 9
    assert set(batch.image_ids) == set(map(str, range(12))) - {"3", "5", "7"}


@pytest.mark.parametrize("count", [5, 60])
def test_a_wrong_image_folder_ends_the_training(tmp_path, count):
    config = make_run(tmp_path, [plain_record(str(n)) for n in range(count)])
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=f"first {min(count, 32)} images cannot be read from {tmp_path}/images"
    ):
        training(feed(config, batch=1), 100)
    with pytest.raises(UserError, match="--images"):
        validation(feed(config))


@pytest.mark.parametrize("world", [1, 3])
def test_a_validation_reads_every_image_once_unchanged(config, world):
    fed = [feed(config, batch=3, rank=rank, world=world) for rank in range(world)]
    shares = list(map(validation, fed))
    rows = fed[0].stream.training_set.rows
    assert set(map(len, shares)) == {-(-rows // 3)}
    ids = [image_id for share in shares for batch in share for image_id in batch.image_ids]
    assert len(ids) == len(set(ids)) == rows
    assert {
        tuple(batch.pixel_values.shape[1:]) for share in shares for batch in share if len(batch)
    } == {(3, 32, 48)}


def test_no_thread_is_left_running(config, monkeypatch):
    before = set(threading.enumerate())
    training(feed(config), 2)
    validation(feed(config))
    with suppress(KeyboardInterrupt), feed(config).read() as steps:
        next(steps)
        raise KeyboardInterrupt
    monkeypatch.setattr(ShardFeed, "example", None)
    with pytest.raises(TypeError):
        training(feed(config), 2)
    assert set(threading.enumerate()) <= before
