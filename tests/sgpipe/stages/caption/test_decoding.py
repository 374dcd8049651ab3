"""Noise, nuclei, and captions by a BLIP decoder, with the scores of transformers' processors and
warpers.
"""

import itertools
import math

import pytest
import torch
import transformers
from scipy.stats import chisquare
from transformers import BlipForConditionalGeneration

from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.blip_decoder import BlipDecoder, beam_captions, sample_captions
from sgpipe.stages.caption.nucleus import gumbel, nucleus, philox, process
from tests.factories import make_blip

END = 3  # [SEP] of the tokenizer
PROMPT = [5, 6, 7]
PUBLISHED = CaptionConfig(max_tokens=20, repetition_penalty=1.1, top_k=50)

SHAPES = (
    {"width": 32, "vision_width": 48, "layers": 2, "heads": 4},
    {"width": 48, "vision_width": 32, "layers": 1, "heads": 2},
    {"width": 40, "vision_width": 40, "layers": 3, "heads": 8, "image_size": 40, "patch_size": 4},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_blip(
        tmp_path_factory.mktemp("blip"), seed=3, words="a b c d e f g h i j", layers=1
    )
    return BlipForConditionalGeneration.from_pretrained(folder).eval()


def image_states(model, images=1):
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return torch.randn(images, 1 + patches, vision.hidden_size, generator=torch.manual_seed(0))


def sampling(**changes):
    return CaptionConfig(**{"samples": 4, "max_tokens": 12} | changes)


def words(values):
    return [torch.tensor(int(value, 16)) for value in values.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), [
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (" ".join(["ffffffff"] * 4), "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
])  # fmt: skip
def test_philox_gives_the_published_words(counter, key, expected):
    assert philox(words(counter), words(key)) == tuple(words(expected))


def test_gumbel_noise_has_its_moments_and_differs_along_every_coordinate():
    tokens = torch.arange(40_000)
    zero = torch.zeros_like(tokens)
    coordinates = ((0, 0, 0), (1, 0, 0), (1 << 40, 0, 0), (0, 1, 0), (0, 0, 1))
    variants = [
        gumbel(zero + key, zero + sample, step, tokens) for key, sample, step in coordinates
    ]
    for noise in variants:
        assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
        assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.08)
    correlations = torch.corrcoef(torch.stack(variants)) - torch.eye(len(variants))
    assert correlations.abs().max() < 0.02


def test_nucleus_equals_a_full_sort():
    scores = (
        torch.randn(200, 500, generator=torch.manual_seed(0)) * torch.linspace(0.1, 6, 200)[:, None]
    )
    for top_p in (0.1, 0.5, 0.9, 0.999):
        shares, order = scores.softmax(-1).double().sort(dim=-1, descending=True, stable=True)
        within = shares.cumsum(-1) - shares < top_p
        expected = torch.zeros_like(within).scatter(-1, order, within)
        for width in (None, 400, 500):
            tokens, in_nucleus, enough = nucleus(scores, top_p, width)
            assert bool(enough) == (width != 400 or top_p < 0.9)
            if enough:
                assert torch.equal(
                    torch.zeros_like(within).scatter(-1, tokens, in_nucleus), expected
                )


def test_lengths_and_greedy_choice_agree_with_transformers(model):
    """A nucleus of one token is greedy search; [DEC], prompt and [SEP] count towards both
    limits.
    """
    decoder = BlipDecoder(model)
    states = image_states(model, images=3)
    for shortest, longest in ((0, 6), (5, 12), (9, 9), (12, 30)):
        settings = sampling(samples=1, top_p=1e-9, beams=1, min_tokens=shortest, max_tokens=longest)
        ours = sample_captions(decoder, states, PROMPT, [1, 2, 3], settings)
        assert ours == beam_captions(model, states, PROMPT, settings)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_batch_or_more_samples_give_the_same_captions_as_single_images(model, penalty):
    decoder = BlipDecoder(model)
    states = image_states(model, images=4)
    keys = [11, 22, 33, 44]
    settings = sampling(min_tokens=0, repetition_penalty=penalty)
    together = sample_captions(decoder, states, PROMPT, keys, settings)
    more = settings.model_copy(update={"samples": 9})
    alone = [
        sample_captions(decoder, states[i : i + 1], PROMPT, keys[i : i + 1], more)[0][:4]
        for i in range(4)
    ]
    assert together == alone
    assert len(set(map(len, itertools.chain(*alone)))) > 1


def test_beam_search_equals_generate(model):
    """Also checks that no prompt token and no padding is left in the result."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(5))
    with torch.no_grad():
        states = model.vision_model(pixels).last_hidden_state
        ids = torch.tensor([[*PROMPT, 0]] * 2)
        ids[:, 0] = model.config.text_config.bos_token_id
        expected = model.generate(
            pixels, input_ids=ids, num_beams=3, do_sample=False, min_length=5, max_length=12
        )
    end = model.config.text_config.sep_token_id
    prompt = [model.config.text_config.bos_token_id, *PROMPT[1:]]
    for (caption,), row in zip(
        beam_captions(model, states, prompt, sampling()), expected.tolist(), strict=True
    ):
        row = row[len(prompt) :]
        assert caption == (row[: row.index(end)] if end in row else row)
        assert caption


def expected_scores(scores, tokens, sampling):
    shortest = transformers.MinLengthLogitsProcessor(sampling.min_tokens, END)
    steps = [shortest, transformers.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.repetition_penalty != 1:
        steps.insert(0, transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.top_k:
        steps.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(sampling.top_p))
    return transformers.LogitsProcessorList(steps)(tokens, scores.clone())


def found_scores(scores, tokens, sampling):
    processed = process(scores, tokens, sampling, END)
    tokens, in_nucleus, _ = nucleus(processed, sampling.top_p)
    return processed.masked_fill(
        ~torch.zeros_like(processed, dtype=torch.bool).scatter(-1, tokens, in_nucleus), -torch.inf
    )


@pytest.mark.parametrize("length", [4, 5, 12])
@pytest.mark.parametrize("changes", [
    {}, {"repetition_penalty": 1.0}, {"top_k": 0}, {"repetition_penalty": 1.0, "top_k": 0}, {"top_k": 1},
    {"repetition_penalty": 2.5, "temperature": 0.7}, {"repetition_penalty": 0.6, "temperature": 1.4}, {"top_p": 0.3},
    {"top_k": 400}, {"top_k": 10**12, "top_p": 1.0},
])  # fmt: skip
def test_scores_equal_those_of_transformers(length, changes):
    """Rows are flat to peaked; scores are of both signs; [DEC], prompt and repeated tokens are
    among the tokens.
    """
    random = torch.manual_seed(length)
    scores = torch.randn(64, 400, generator=random) * torch.linspace(0.2, 6, 64)[:, None]
    scores[::2, END] = 9  # the end would be drawn if it were allowed
    tokens = torch.randint(0, 12, (64, length), generator=random)
    settings = PUBLISHED.model_copy(update=changes)
    before = scores.clone()
    actual, expected = (way(scores, tokens, settings) for way in (found_scores, expected_scores))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert torch.equal(scores, before)


def test_all_tokens_that_tie_with_the_last_of_top_k_stay():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, -1.0]])
    settings = CaptionConfig(top_k=2, top_p=1.0, min_tokens=0)
    tokens = torch.zeros(1, 1, dtype=torch.long)
    assert process(scores, tokens, settings, END).isfinite().nonzero()[:, 1].tolist() == [
        1,
        2,
        3,
        4,
    ]
    assert torch.equal(
        process(scores, tokens, settings, END), expected_scores(scores, tokens, settings)
    )


def test_20000_first_tokens_of_a_captioner_follow_the_distribution_of_transformers(model):
    states = image_states(model)
    count = 20_000
    settings = sampling(samples=count, max_tokens=len(PROMPT) + 1, repetition_penalty=1.6, top_k=6)
    captions = sample_captions(BlipDecoder(model), states, PROMPT, [99], settings)[0]
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        scores = model.text_decoder(
            input_ids=ids, encoder_hidden_states=states, use_cache=False
        ).logits[:, -1]
    shares = expected_scores(scores, ids, settings).double().softmax(-1)[0]
    # the penalty matters
    assert not torch.equal(scores.argsort(), process(scores, ids, settings, END).argsort())
    drawn = torch.tensor([caption[0] for caption in captions]).bincount(minlength=len(shares))
    possible = shares > 0
    assert drawn[~possible].sum() == 0
    assert possible.sum() > 2
    assert chisquare(drawn[possible], count * shares[possible]).pvalue > 0.001


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"width{shape['width']}")
@torch.no_grad()
def test_scores_are_those_of_transformers_token_by_token(tmp_path, shape, samples):
    model = BlipForConditionalGeneration.from_pretrained(
        make_blip(tmp_path, seed=1, **shape)
    ).eval()
    states = image_states(model, images=2)
    prompt = torch.tensor([[5, 6, 7]] * 2)
    tails = torch.randint(
        5, model.config.text_config.vocab_size, (2 * samples, 6), generator=torch.manual_seed(1)
    )
    ids = torch.cat([prompt.repeat_interleave(samples, dim=0), tails], dim=1)
    rows = states.repeat_interleave(samples, dim=0)
    expected = model.text_decoder(input_ids=ids, encoder_hidden_states=rows, use_cache=False).logits

    decoder = BlipDecoder(model)
    state = decoder.start(states, capacity=9)
    torch.testing.assert_close(decoder(prompt, state), expected[::samples, 2], atol=1e-5, rtol=1e-5)
    state.take(torch.arange(2).repeat_interleave(samples))
    for step in range(6):
        scores = decoder(tails[:, step : step + 1], state)
        torch.testing.assert_close(scores, expected[:, 3 + step], atol=1e-5, rtol=1e-5)
