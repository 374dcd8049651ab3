import pytest
import torch
from transformers import BlipForConditionalGeneration

from sgpipe.stages.caption.blip import BlipDecoder
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


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_scores_and_is_compiled_twice(tmp_path):
    """For one number of tokens, then for any; whatever the prompt, the number of layers, and of images."""
    torch._dynamo.reset()
    model = BlipForConditionalGeneration.from_pretrained(make_blip(tmp_path, **{**SHAPES[1], "layers": 12})).eval()
    states, prompt = image_states(model, images=2), torch.tensor([[5, 6, 7]] * 2)
    tails = torch.randint(5, model.config.text_config.vocab_size, (6, 9), generator=torch.manual_seed(1))
    plain, other, graphs = BlipDecoder(model), BlipDecoder(model), []
    compiled = other.compile(lambda graph, inputs: graphs.append(graph) or graph.forward)

    def scores(decoder: BlipDecoder) -> list[torch.Tensor]:
        state = decoder.start(states, capacity=12)
        found = [decoder(prompt, state)]
        state.fork(3)
        return found + [decoder(tails[:, step : step + 1], state) for step in range(9)]

    expected = scores(plain)
    for _ in range(10):
        torch.testing.assert_close(scores(other), expected)
    assert (compiled.failure, len(graphs)) == ("", 2)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_step_may_write_into_its_cache(tmp_path):
    model = BlipForConditionalGeneration.from_pretrained(make_blip(tmp_path, seed=1, **SHAPES[0])).eval()
    found = []
    for backend in (None, "aot_eager"):
        decoder = BlipDecoder(model)
        compiled = decoder.compile(backend) if backend else None
        state = decoder.start(image_states(model, images=2), capacity=4)
        found.append([decoder(torch.tensor([[5 + step]] * 2), state) for step in range(4)])
        assert compiled is None or not compiled.failure
    torch.testing.assert_close(*found)
