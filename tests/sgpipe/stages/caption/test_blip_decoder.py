import pytest
import torch
from transformers import BlipForConditionalGeneration

from sgpipe.stages.caption.blip_decoder import BlipDecoder
from tests.factories import make_blip

SHAPES = (
    {"width": 32, "vision_width": 48, "layers": 2, "heads": 4},
    {"width": 48, "vision_width": 32, "layers": 1, "heads": 2},
    {"width": 40, "vision_width": 40, "layers": 3, "heads": 8, "image_size": 40, "patch_size": 4},
)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"width{shape['width']}")
def model(request, tmp_path_factory):
    folder = make_blip(tmp_path_factory.mktemp("blip"), seed=1, **request.param)
    return BlipForConditionalGeneration.from_pretrained(folder).eval()


def image_states(model, images):
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return torch.randn(images, 1 + patches, vision.hidden_size, generator=torch.manual_seed(0))


@torch.no_grad()
def reference_scores(model, ids, states):
    """transformers' scores of every next token without a cache: [rows, tokens, vocabulary]."""
    return model.text_decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).logits


@pytest.mark.parametrize("samples", [1, 3])
def test_scores_are_those_of_transformers_token_by_token(model, samples):
    states = image_states(model, images=2)
    prompt = torch.tensor([[5, 6, 7]] * 2)
    tails = torch.randint(5, model.config.text_config.vocab_size, (2 * samples, 6), generator=torch.manual_seed(1))
    ids = torch.cat([prompt.repeat_interleave(samples, dim=0), tails], dim=1)
    expected = reference_scores(model, ids, states.repeat_interleave(samples, dim=0))

    decoder = BlipDecoder(model)
    state = decoder.start(states, capacity=9)
    torch.testing.assert_close(decoder(prompt, state), expected[::samples, 2], atol=1e-5, rtol=1e-5)
    state.fork(samples)
    for step in range(6):
        scores = decoder(tails[:, step : step + 1], state)
        torch.testing.assert_close(scores, expected[:, 3 + step], atol=1e-5, rtol=1e-5)


def test_a_compiled_step_gives_the_same_scores(tmp_path):
    model = BlipForConditionalGeneration.from_pretrained(make_blip(tmp_path, seed=1, **SHAPES[0])).eval()
    states, prompt = image_states(model, images=2), torch.tensor([[5, 6, 7]] * 2)
    tails = torch.randint(5, model.config.text_config.vocab_size, (6, 14), generator=torch.manual_seed(1))
    plain, other = BlipDecoder(model), BlipDecoder(model)
    compiled = other.compile("aot_eager")
    expected, found = [], []
    for scores, decoder in ((expected, plain), (found, other)):
        state = decoder.start(states, capacity=17)
        scores.append(decoder(prompt, state))
        state.fork(3)
        scores += [decoder(tails[:, step : step + 1], state) for step in range(14)]
    torch.testing.assert_close(found, expected)
    assert compiled.failure == ""
    assert compiled.seconds > 0


def test_remaining_sequences_keep_their_scores(model):
    states = image_states(model, images=1)
    decoder = BlipDecoder(model)
    state = decoder.start(states, capacity=5)
    decoder(torch.tensor([[5, 6]]), state)
    state.fork(3)
    decoder(torch.tensor([[7], [8], [9]]), state)
    state.keep(torch.tensor([2, 0]))
    scores = decoder(torch.tensor([[10], [11]]), state)
    ids = torch.tensor([[5, 6, 9, 10], [5, 6, 7, 11]])
    expected = reference_scores(model, ids, states.expand(2, -1, -1))[:, -1]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_nothing_of_the_image_is_copied_per_sample(model):
    states = image_states(model, images=2)
    state = BlipDecoder(model).start(states, capacity=4)
    before = [keys.data_ptr() for keys in state.image_keys]
    state.fork(10)
    assert [keys.data_ptr() for keys in state.image_keys] == before
    assert all(len(keys) == 2 for keys in (*state.image_keys, *state.image_values))
    assert all(len(keys) == 20 for keys in (*state.keys, *state.values))
