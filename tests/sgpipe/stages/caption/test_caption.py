import dataclasses
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Box, Record
from sgpipe.stages.caption.stage import CaptionStage, noise_key, regions
from tests.factories import make_blip
from tests.values import values_of

SIZES = [(60, 40), (32, 32), (45, 70), (90, 30), (33, 57), (64, 64), (51, 43)]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return make_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{number}.png")
    return folder


def records(count=7):
    boxes = [
        Box("dog", 1, (2, 3, 18, 15)), Box("cat", 2, (8, 9, 20, 12)), Box("crowd", 3, (0, 0, 30, 30), iscrowd=True),
        Box("cup", 4, (24, 20, 6, 9)),
    ]  # fmt: skip
    names = enumerate(SIZES[:count])
    return [
        Record(str(n), "coco", "val", f"{n}.png", *size, objects=list(boxes)) for n, size in names
    ]


def make_stage(captioner, images, seed=0, **settings):
    config = CaptionConfig(captioner=str(captioner), device="cpu", **{"samples": 4} | settings)
    stage = CaptionStage(config, {"val": images}, seed)
    stage.setup()
    return stage


def captions(stage, captioned=None):
    return dict(values_of(stage(captioned or records()), "image_id", "captions"))


def test_captions_do_not_depend_on_order_company_batches_threads_or_scopes(captioner, images):
    stage = make_stage(captioner, images, batch_size=3)
    together = captions(stage)
    assert captions(stage, records()[::-1]) == together
    threads = make_stage(
        captioner, images, batch_size=1, resources={"io_threads": 2}, scopes=("image", "box")
    )
    for record in records():
        alone = captions(threads, [record])[record.image_id]
        assert [caption for caption in alone if caption.scope == "image"] == together[
            record.image_id
        ]


def test_captions_depend_on_seed_image_and_dataset(captioner, images):
    base = captions(make_stage(captioner, images))
    assert captions(make_stage(captioner, images)) == base
    assert captions(make_stage(captioner, images, seed=1)) != base
    stage = make_stage(captioner, images)
    for change in ({"image_id": "other"}, {"dataset": "other"}):
        assert stage([dataclasses.replace(records(1)[0], **change)])[0].captions != base["0"]


def test_captions_record_their_boxes_and_each_region_is_encoded_once(captioner, images):
    stage = make_stage(captioner, images, scopes=("image", "box", "pair"), samples=2)
    texts = captions(stage)["0"]
    boxes = [[], [0], [1], [3], [0, 1], [0, 3], [1, 3]]
    expected = [(("image", "box", "pair")[len(box)], box) for box in boxes]
    assert values_of(texts[::2], "scope", "boxes") == expected
    seen = []
    vision = stage.captioner.model.vision_model
    vision.register_forward_pre_hook(
        lambda *call: seen.append(call[2]["pixel_values"]), with_kwargs=True
    )
    stage(records(1))
    # One at a time on a CPU: other shapes round differently, and captions would depend on the
    # batch.
    assert list(map(len, seen)) == [1] * (1 + 3 + 3)
    with Image.open(images / "0.png") as image:
        for window, pixels in (
            ((0, 0, 60, 40), seen[0]),
            ((2, 3, 20, 18), seen[1]),
            ((2, 3, 28, 21), seen[4]),
        ):
            assert torch.equal(pixels[0], stage.captioner.prepare(image.crop(window)))


def test_beam_search_gives_one_deterministic_caption(captioner, images):
    by_image = captions(make_stage(captioner, images, decoding="beam", batch_size=1), records(4))
    assert all(len(texts) == 1 for texts in by_image.values())
    unused = {"repetition_penalty": 5.0, "top_k": 1, "top_p": 0.1, "temperature": 3.0}
    stage = make_stage(captioner, images, decoding="beam", seed=5, batch_size=8, **unused)
    assert captions(stage, records(4)) == by_image
    greedy = captions(make_stage(captioner, images, decoding="beam", beams=1), records(4))
    assert greedy != by_image
    assert greedy == captions(make_stage(captioner, images, samples=1, top_p=1e-9), records(4))


def test_an_unreadable_image_becomes_an_error_row(captioner, images, tmp_path):
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").write_bytes((images / "3.png").read_bytes()[:60])
    (tmp_path / "4.png").write_text("not an image")
    originals = records()
    originals[5].fail("source", "known to be bad")
    processed = {
        record.image_id: record
        for record in make_stage(captioner, tmp_path, batch_size=3)(originals)
    }
    assert [processed[str(number)].status for number in range(7)] == [
        "ok",
        "error",
        "ok",
        "error",
        "error",
        "error",
        "ok",
    ]
    assert processed["1"].error.startswith("caption: image file not found")
    assert processed["3"].error.startswith("caption: image cannot be read")
    assert processed["5"].error == "source: known to be bad"
    assert all(processed[number].captions == [] for number in "1345")
    good = captions(make_stage(captioner, images))
    assert all(processed[number].captions == good[number] for number in "026")


def test_limits_that_leave_no_room_are_refused(captioner, images):
    for max_tokens, min_tokens in ((65, 5), (4, 0), (9, 10)):
        with pytest.raises(UserError, match=r"^caption.max_tokens is"):
            make_stage(captioner, images, max_tokens=max_tokens, min_tokens=min_tokens)


def record_of(*boxes):
    return Record(
        "1", "coco", "val", "1.jpg", 100, 80, objects=[Box("thing", 1, box) for box in boxes]
    )


def test_windows_cover_the_boxes_and_stay_in_the_image():
    cut, _ = regions(record_of((0.4, 1.2, 10.5, 10.3), (88.5, 70.1, 20, 20)), ("box", "pair"), 100)
    assert values_of(cut, "window") == [
        (0, 1, 11, 12),
        (88, 70, 100, 80),
        (0, 1, 100, 80),
    ]
    degenerate = record_of((3, 4, 0, 0), (99.9, 79.9, 0.05, 0.05), (100, 80, 5, 5), (-9, -9, 4, 4))
    for left, top, right, bottom in values_of(regions(degenerate, ("box",), 100)[0], "window"):
        assert 0 <= left < right <= 100  # a pixel at least
        assert 0 <= top < bottom <= 80


def test_pairs_are_of_the_largest_boxes():
    rng = np.random.default_rng(0)
    boxes = [(*rng.uniform(0, 60, 2), *rng.uniform(1, 30, 2)) for _ in range(12)]
    order = sorted(range(12), key=lambda index: -boxes[index][2] * boxes[index][3])
    for number in (2, 5, 12):
        pairs = sorted(tuple(sorted(pair)) for pair in combinations(order[:number], 2))
        cut, beyond = regions(record_of(*boxes), ("pair",), len(pairs))
        assert (values_of(cut, "boxes"), beyond) == (pairs, 66 - len(pairs))
    assert regions(record_of(*boxes), ("pair",), 500)[1] == 0


def test_which_regions_are_captioned_and_how_does_not_depend_on_the_order_of_boxes():
    # of equal size, at equal distances
    boxes = [(10.0 * (n % 4), 20.0 * (n // 4), 8.0, 8.0) for n in range(8)]

    def noise(boxes):
        record = record_of(*boxes)
        cut, beyond = regions(record, ("box", "pair"), 5)
        return (
            sorted(
                (region.window, noise_key(3, record, region.scope, region.boxes)) for region in cut
            ),
            beyond,
        )

    first, beyond = noise(boxes)
    assert (len(first), beyond) == (10, 3 + 23)
    assert noise(boxes[::-1]) == noise(boxes[3:] + boxes[:3]) == (first, beyond)
