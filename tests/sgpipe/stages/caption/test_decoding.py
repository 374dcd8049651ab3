import itertools
import math

import pytest
import torch
from transformers import BlipForConditionalGeneration

from sgpipe.stages.caption.blip import BlipDecoder, beam_captions, sample_captions
from sgpipe.stages.caption.decoding import (
    NucleusSampling,
    gumbel,
    nucleus,
    philox,
)
from tests.factories import make_blip

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_blip(tmp_path_factory.mktemp("blip"), seed=3, words="a b c d e f g h i j", layers=1)
    return BlipForConditionalGeneration.from_pretrained(folder).eval()


def image_states(model, images=1):
    vision = model.config.vision_config
    return torch.randn(images, 17, vision.hidden_size, generator=torch.manual_seed(0))


def sampling(model, **changes):
    defaults = {"samples": 4, "top_p": 0.9, "temperature": 1.0, "min_tokens": 5, "max_tokens": 12}
    return NucleusSampling(**defaults | changes, end=model.config.text_config.sep_token_id)


def words(values):
    return [torch.tensor(int(value, 16)) for value in values.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    assert philox(words(counter), words(key)) == tuple(words(expected))


def test_gumbel_noise_has_its_moments_and_differs_along_every_coordinate():
    tokens = torch.arange(40_000)
    zero = torch.zeros_like(tokens)
    variants = [
        gumbel(zero, zero, 0, tokens),
        gumbel(zero + 1, zero, 0, tokens),
        gumbel(zero + (1 << 40), zero, 0, tokens),
        gumbel(zero, zero + 1, 0, tokens),
        gumbel(zero, zero, 1, tokens),
    ]
    for noise in variants:
        assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
        assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.08)
    correlations = torch.corrcoef(torch.stack(variants)) - torch.eye(len(variants))
    assert correlations.abs().max() < 0.02


def test_nucleus_equals_a_full_sort():
    scores = torch.randn(200, 500, generator=torch.manual_seed(0)) * torch.linspace(0.1, 6, 200)[:, None]
    for top_p in (0.1, 0.5, 0.9, 0.999):
        shares, order = scores.softmax(-1).double().sort(dim=-1, descending=True, stable=True)
        kept = shares.cumsum(-1) - shares < top_p
        expected = torch.zeros_like(kept).scatter(-1, order, kept)
        assert torch.equal(nucleus(scores, top_p), expected)


def test_lengths_and_greedy_choice_agree_with_transformers(model):
    """A nucleus of one token is greedy search; [DEC], prompt and [SEP] count towards both limits."""
    decoder, states = BlipDecoder(model), image_states(model, images=3)
    for least, most in ((0, 6), (5, 12), (9, 9), (12, 30)):
        ours = sample_captions(
            decoder,
            states,
            PROMPT,
            [1, 2, 3],
            sampling(model, samples=1, top_p=1e-9, min_tokens=least, max_tokens=most),
        )
        assert ours == beam_captions(model, states, PROMPT, 1, least, most)


def test_a_batch_gives_the_same_captions_as_single_images(model):
    decoder, states = BlipDecoder(model), image_states(model, images=4)
    keys = [11, 22, 33, 44]
    together = sample_captions(decoder, states, PROMPT, keys, sampling(model, min_tokens=0))
    alone = [
        sample_captions(decoder, states[i : i + 1], PROMPT, keys[i : i + 1], sampling(model, min_tokens=0))[0]
        for i in range(4)
    ]
    assert together == alone
    assert len({len(caption) for caption in itertools.chain(*alone)}) > 1


def test_beam_search_equals_generate(model):
    """Also checks that no prompt token and no padding is left in the result."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(5))
    with torch.no_grad():
        states = model.vision_model(pixels).last_hidden_state
        ids = torch.tensor([[*PROMPT, 0]] * 2)
        ids[:, 0] = model.config.text_config.bos_token_id
        expected = model.generate(pixels, input_ids=ids, num_beams=3, do_sample=False, min_length=5, max_length=12)
    end = model.config.text_config.sep_token_id
    prompt = [model.config.text_config.bos_token_id, *PROMPT[1:]]
    for (found,), row in zip(beam_captions(model, states, prompt, 3, 5, 12), expected.tolist(), strict=True):
        row = row[len(prompt) :]
        assert found == (row[: row.index(end)] if end in row else row)
        assert found


def test_damaged_weights_raise_an_error(model):
    states = image_states(model)
    states[0, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        sample_captions(BlipDecoder(model), states, PROMPT, [1], sampling(model))
