import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.blip import BlipCaptioner, fuse_vision_attention
from sgpipe.stages.caption.captioner import settings_of
from tests.factories import make_blip, make_tokenizer
from tests.values import values_of


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "captioner")


def load(source, image_size=None):
    captioner = BlipCaptioner(
        settings_of(CaptionConfig(captioner=str(source), image_size=image_size, device="cpu"))
    )
    captioner.setup()
    return captioner


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def image(width=50, height=37):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_resized_pixels_are_normalised_on_a_device_to_the_same_bits(original):
    blip = load(original)
    pictures = [image(), image(60, 32)]
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (blip.prepare.mean, blip.prepare.std)
    )
    for picture in pictures:
        pixels = torch.from_numpy(
            np.array(picture.resize((32, 32), Image.Resampling.BICUBIC))
        ).permute(2, 0, 1)
        assert torch.equal(blip.prepare(picture), (pixels.float() / 255 - mean) / std)
    resized = [blip.prepare.resize(picture) for picture in pictures]
    assert set(values_of(resized, "dtype")) == {torch.uint8}
    assert torch.equal(blip.to_device(resized), blip.to_device(list(map(blip.prepare, pictures))))
    assert blip.to_device(resized).is_contiguous()


def test_preparation_uses_the_checkpoint_or_clip_defaults(folder):
    settings = folder / "preprocessor_config.json"
    change(settings, image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3], resample=2)
    prepare = load(folder).prepare
    assert (prepare.mean, prepare.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert prepare.resample == Image.Resampling.BILINEAR
    settings.unlink()
    prepare = load(folder).prepare
    assert (prepare.size, prepare.resample) == (32, Image.Resampling.BICUBIC)
    assert prepare.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert prepare.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))


def test_another_image_size_interpolates_the_positions(original):
    blip = load(original, image_size=48)
    pixels = blip.prepare(image()).unsqueeze(0)
    assert pixels.shape == (1, 3, 48, 48)
    reference = BlipForConditionalGeneration.from_pretrained(original).eval()
    with torch.no_grad():
        expected = reference.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert expected.shape[1] == 1 + 36
    torch.testing.assert_close(blip.encode(pixels), expected, atol=1e-5, rtol=1e-5)


def test_text_has_no_special_tokens_and_single_spaces(original):
    blip = load(original)
    ids = blip.tokenizer.convert_tokens_to_ids
    tokens = [
        "##s",
        "[PAD]",
        "on",
        "[DEC]",
        "the",
        "cat",
        "##s",
        "[ENC]",
        ",",
        "[UNK]",
        "white",
        ".",
    ]
    assert blip.text(list(map(ids, tokens))) == "s on the cats, white."
    assert blip.text([10_000]) == ""


def test_a_tokenizer_without_dec_and_enc_is_accepted(folder):
    """As in the checkpoints on the hub, whose tokenizer is BERT's."""
    for path in (*folder.glob("*token*"), folder / "vocab.txt"):
        path.unlink()
    tokenizer = make_tokenizer(folder, blip_tokens=False)
    blip = load(folder)
    assert len(blip.tokenizer) == len(tokenizer) == blip.text_config.vocab_size - 2
    assert (
        blip.text([blip.text_config.bos_token_id, *blip.prompt_ids("cat on grass")])
        == "cat on grass"
    )


# more with tests/bad_data/checkpoints.py
def test_a_damaged_preprocessor_and_other_image_sizes_are_refused(
    folder,
):
    with pytest.raises(UserError, match=f"{folder}.*patch size 8"):
        load(folder, image_size=50)
    for text in (
        '{"image_mean": [1], "image_std": [1]}',
        '{"image_std": [0.5, 0.5, 0]}',
        "{broken",
    ):
        (folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError, match=r"preprocessor_config\.json"):
            load(folder)


@pytest.mark.parametrize(("values", "word"), [
    ({"architectures": ["BlipForQuestionAnswering"]}, "expected BlipForConditionalGeneration"),
    ({"bos_token_id": 1_000_000}, "text_config.bos_token_id is 1000000"),
    ({"sep_token_id": -5}, "text_config.sep_token_id is -5"),
])  # fmt: skip
def test_another_kind_of_model_or_of_tokens_is_refused(folder, values, word):
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", **values, text_config=config["text_config"] | values)
    with pytest.raises(UserError, match=word):
        load(folder)


@pytest.mark.parametrize(("vision_width", "heads", "image_size"), [(48, 4, 32), (32, 2, 40)])
@torch.no_grad()
def test_fused_attention_gives_the_same_states(tmp_path, vision_width, heads, image_size):
    make_blip(tmp_path, vision_width=vision_width, heads=heads, image_size=image_size)
    reference = BlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    fused = copy.deepcopy(reference)
    fuse_vision_attention(fused)
    pixels = torch.randn(3, 3, image_size, image_size, generator=torch.manual_seed(0))
    expected = reference.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(
        fused.vision_model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5
    )
