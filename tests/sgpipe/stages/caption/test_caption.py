import dataclasses
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Box, Record
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.utils.gpu_memory import GpuMemory
from tests.factories import make_blip

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
        Box("dog", 1, (2, 3, 18, 15)),
        Box("cat", 2, (8, 9, 20, 12)),
        Box("crowd", 3, (0, 0, 30, 30), iscrowd=True),
        Box("cup", 4, (24, 20, 6, 9)),
    ]
    return [
        Record(str(number), "coco", "val", f"{number}.png", *SIZES[number], objects=list(boxes))
        for number in range(count)
    ]


def make_stage(captioner, images, seed=0, **settings):
    config = CaptionConfig(captioner=str(captioner), device="cpu", **{"samples": 4} | settings)
    stage = CaptionStage(config, {"val": images}, seed)
    stage.setup()
    return stage


def captions(stage, given=None):
    return {record.image_id: record.captions for record in stage(given or records())}


@pytest.mark.parametrize(
    "settings", [{"batch_size": 1}, {"batch_size": 8}, {"batch_size": 3, "resources": {"io_threads": 2}}], ids=str
)
def test_captions_do_not_depend_on_the_batch_size_or_on_threads(captioner, images, settings):
    scopes = ("image", "box", "pair")
    expected = captions(make_stage(captioner, images, batch_size=3, scopes=scopes), records(4))
    assert captions(make_stage(captioner, images, scopes=scopes, **settings), records(4)) == expected


def test_captions_do_not_depend_on_order_company_or_calls(captioner, images):
    stage = make_stage(captioner, images, batch_size=3)
    together = captions(stage)
    assert captions(stage, records()[::-1]) == together
    one_by_one = {}
    for record in records():
        one_by_one |= captions(stage, [record])
    assert one_by_one == together


def as_on_a_gpu(stage, size):
    """A device that gets images as bytes, in groups that two threads compute: the model's is still the CPU."""
    made = stage.captioner
    made.device, made.gpu_threads = torch.device("meta"), 2
    made.memory = GpuMemory(made.device, "lower caption.samples", 2, size)
    return stage


def test_images_that_a_device_normalises_in_threads_give_the_same_captions(captioner, images):
    made, dtypes = as_on_a_gpu(make_stage(captioner, images, scopes=("image", "box")), 3), []
    to_device = type(made.captioner.blip).to_device
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(made.captioner.blip),
            "to_device",
            lambda blip, pixels: (dtypes.append(pixels[0].dtype), to_device(blip, pixels))[1],
        )
        found = captions(made, records(4))
    assert found == captions(make_stage(captioner, images, scopes=("image", "box")), records(4))
    assert set(dtypes) == {torch.uint8}


def test_a_group_that_does_not_fit_is_halved_from_then_on(captioner, images, monkeypatch):
    alone, made, sizes = captions(make_stage(captioner, images)), make_stage(captioner, images), []
    encode = type(made.captioner.blip).encode

    def encode_few(blip, pixels):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encode(blip, pixels)

    monkeypatch.setattr(type(made.captioner.blip), "encode", encode_few)
    made.captioner.memory.batch_size = 4
    assert captions(made) == alone
    assert sizes == [4, 4, 2, 2, 2, 2]


def test_other_scopes_samples_and_crops_do_not_change_a_caption(captioner, images):
    wide = captions(make_stage(captioner, images, scopes=("pair", "image"), samples=6))
    narrow = captions(make_stage(captioner, images))
    for image_id, each in narrow.items():
        assert [caption for caption in wide[image_id] if caption.scope == "image"][:4] == each
    few = captions(make_stage(captioner, images, scopes=("pair",), samples=6, max_crops=2))
    for image_id, each in few.items():
        assert len(each) == 12
        assert Counter(map(repr, each)) <= Counter(map(repr, wide[image_id]))


def test_captions_depend_on_seed_image_and_dataset(captioner, images):
    base = captions(make_stage(captioner, images))
    assert captions(make_stage(captioner, images)) == base
    assert captions(make_stage(captioner, images, seed=1)) != base
    stage = make_stage(captioner, images)
    for change in ({"image_id": "other"}, {"dataset": "other"}):
        assert stage([dataclasses.replace(records(1)[0], **change)])[0].captions != base["0"]


def test_captions_record_their_boxes_and_use_their_region(captioner, images):
    stage = make_stage(captioner, images, scopes=("image", "box", "pair"), samples=2)
    found = captions(stage)["0"]
    assert [(caption.scope, caption.boxes) for caption in found[::2]] == [
        ("image", []),
        ("box", [0]),
        ("box", [1]),
        ("box", [3]),
        ("pair", [0, 1]),
        ("pair", [0, 3]),
        ("pair", [1, 3]),
    ]
    seen = []
    stage.captioner.blip.model.vision_model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True
    )
    stage(records(1))
    with Image.open(images / "0.png") as image:
        for window, pixels in (((0, 0, 60, 40), seen[0]), ((2, 3, 20, 18), seen[1]), ((2, 3, 28, 21), seen[4])):
            assert torch.equal(pixels[0], stage.captioner.blip.prepare(image.crop(window)))


@pytest.mark.parametrize("decoding", ["nucleus", "beam"])
def test_each_region_is_encoded_once(captioner, images, decoding):
    stage = make_stage(captioner, images, samples=10, scopes=("image", "box"), decoding=decoding)
    seen = []
    stage.captioner.blip.model.vision_model.register_forward_hook(
        lambda *call: seen.append(len(call[2].last_hidden_state))
    )
    stage(records(3))
    # One at a time on a CPU: other shapes round differently, and captions would depend on the batch.
    assert seen == [1] * 3 * (1 + 3)


def test_the_settings_of_the_recipe_reach_the_sampler(captioner, images):
    likeliest = captions(make_stage(captioner, images, top_k=1), records(2))
    assert all(len({caption.text for caption in each}) == 1 for each in likeliest.values())
    repeated = {}
    for penalty in (1e-2, 1.0, 1e2):
        found = captions(make_stage(captioner, images, repetition_penalty=penalty, min_tokens=20), records(2))
        texts = [caption.text.split() for each in found.values() for caption in each]
        repeated[penalty] = max(count for words in texts for count in Counter(words).values())
    assert repeated[1e-2] > repeated[1.0] > repeated[1e2]


def test_beam_search_gives_one_deterministic_caption(captioner, images):
    found = captions(make_stage(captioner, images, decoding="beam", batch_size=1), records(4))
    assert all(len(each) == 1 for each in found.values())
    unused = {"repetition_penalty": 5.0, "top_k": 1, "top_p": 0.1, "temperature": 3.0}
    others = make_stage(captioner, images, decoding="beam", seed=5, batch_size=8, **unused)
    assert captions(others, records(4)) == found
    greedy = captions(make_stage(captioner, images, decoding="beam", beams=1), records(4))
    assert greedy != found
    assert greedy == captions(make_stage(captioner, images, samples=1, top_p=1e-9), records(4))


def test_an_unreadable_image_becomes_an_error_row(captioner, images, tmp_path):
    for name in os.listdir(images):
        (tmp_path / name).write_bytes((images / name).read_bytes())
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").write_bytes((images / "3.png").read_bytes()[:60])
    (tmp_path / "4.png").write_text("not an image")
    given = records()
    given[5].fail("source", "known to be bad")
    found = {record.image_id: record for record in make_stage(captioner, tmp_path, batch_size=3)(given)}
    assert [found[str(number)].status for number in range(7)] == ["ok", "error", "ok", "error", "error", "error", "ok"]
    assert found["1"].error.startswith("caption: image file not found")
    assert found["3"].error.startswith("caption: image cannot be read")
    assert found["5"].error == "source: known to be bad"
    assert all(found[number].captions == [] for number in "1345")
    good = captions(make_stage(captioner, images))
    assert all(found[number].captions == good[number] for number in "026")


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 65}, {"max_tokens": 4, "min_tokens": 0}, {"max_tokens": 9, "min_tokens": 10}]
)
def test_limits_that_leave_no_room_are_refused(captioner, images, settings):
    with pytest.raises(UserError, match=r"^caption.max_tokens is"):
        make_stage(captioner, images, **settings)


def test_a_captioner_gets_the_file_of_a_whole_image(captioner, images):
    given = []
    stage = make_stage(captioner, images, scopes=("image", "box"))
    stage.captioner.caption = lambda inputs: iter([[] for each in inputs if given.append(each) is None])
    stage(records(1))
    assert [each.file for each in given] == [images / "0.png", None, None, None]
    assert len({each.key for each in given}) == 4
