"""Questions about one image with numbered boxes: what is shown and asked, and that answers are
those of single questions.
"""

import copy
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from sgpipe.errors import UserError
from sgpipe.recipe import Requests, TagConfig
from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.stages.caption import shared_prefix
from sgpipe.stages.score.numbered import MOST_MARKS, draw_numbers, numbered_images
from sgpipe.stages.score.scorer import NO_AREA, VlmScorer
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import ChatRequest, Refusal
from sgpipe.viz import colour_of
from tests.endpoint_server import EndpointServer, scripted
from tests.vlm_checkpoints import make_vlm

END = shared_prefix.end
FAMILIES = ("smolvlm", "qwen2_5_vl", "qwen3_vl")
OBJECTS = [
    Box("person", 0, (10, 10, 40, 60)), Box("dog", 1, (50, 20, 30, 30)), Box("bench", 2, (20, 50, 70, 30)),
    Box(NO_OBJECT, 0, (0, 0, 0, 0)), Box("cup of\ncoffee", 3, (30, 30, 0, 10)),
]  # fmt: skip
ENDS = ((0, 1), (1, 0), (0, 2), (1, 2), (0, 3), (0, 4))
RELATIONS = [
    Relation(*ends, predicate) for ends in ENDS for predicate in ("holding", "next to", "in")
]
VISIBLE = [relation for relation in RELATIONS if relation.object != 4]
GREY = (100, 100, 100)
PROMPT = """Things in this image are outlined and numbered.
1: person
2: bench
3: dog"""


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def scorer_of(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def make(family: str) -> VlmScorer:
        folder = make_vlm(tmp_path_factory.mktemp("vlm") / family, family)
        return loaded(TagConfig(method="vlm", tagger=str(folder), questions="shared", device="cpu"))

    return make


def loaded(config: TagConfig, cache_folder: CacheFolder | None = None) -> VlmScorer:
    scorer = VlmScorer(config, cache_folder)
    scorer.check()
    scorer.load()
    return scorer


def served(server: EndpointServer, cache_folder: CacheFolder | None = None) -> VlmScorer:
    config = TagConfig(
        method="vlm",
        tagger="tiny-vlm",
        endpoint=server.url,
        questions="shared",
        requests=Requests(retries=1),
    )
    return VlmScorer(config, cache_folder)


def requests_of(scorer: VlmScorer, image: Image.Image) -> list[ChatRequest]:
    [numbered_image] = numbered_images(OBJECTS, VISIBLE)
    return scorer._ask_together(numbered_image, image, OBJECTS, VISIBLE)


def content(body: Mapping[str, Any]) -> tuple[str, str]:
    """The image and the text of a request, in their order."""
    image, text = body["messages"][-1]["content"]
    return image["image_url"]["url"], text["text"]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [32, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_single_questions_with_whole_prompts(
    scorer_of, image: Image.Image, family: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of(family)
    monkeypatch.setattr(scorer._model.memory, "batch_size", rows)
    requests = requests_of(scorer, image)
    together = list(scorer._model.ask_together(requests))
    alone = list(scorer._model.ask_all(requests))
    shares = [answer[0].logprobs for answer in together]
    assert len({tuple(share.values()) for share in shares}) > len(VISIBLE), "questions count"
    for share, [choice] in zip(shares, alone, strict=True):
        assert share == pytest.approx(choice.logprobs, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_of_all_tokens_are_those_of_whole_prompts(
    scorer_of, image: Image.Image, family: str
) -> None:
    model = scorer_of(family)._model
    requests = requests_of(scorer_of(family), image)
    prompts = model._read_together(requests)
    assert prompts.prefix["input_ids"].shape[1] > 50
    with torch.inference_mode():
        begun = shared_prefix.begin(model.model, prompts.prefix)
        together = shared_prefix.end(model.model, begun, prompts.endings)
        for request, ending, scores in zip(requests, prompts.endings, together, strict=True):
            inputs = model._read(request)
            beginning = prompts.prefix["input_ids"][0].tolist()
            assert inputs["input_ids"][0].tolist() == [*beginning, *ending]
            torch.testing.assert_close(scores, model.model(**inputs).logits[0, -1])


def test_one_image_is_processed_and_computed_for_all_questions(
    scorer_of, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of("qwen2_5_vl")
    passes = []
    processed = []
    inputs = scorer._model.inputs
    monkeypatch.setattr(
        scorer._model, "inputs", lambda *arguments: processed.append(1) or inputs(*arguments)
    )
    handle = scorer._model.model.register_forward_pre_hook(
        lambda _, args, fields: passes.append("pixel_values" in fields), with_kwargs=True
    )
    scores = scorer.scores(image, OBJECTS, RELATIONS)
    handle.remove()
    assert (passes, len(processed)) == ([True, False], 1)
    assert [score is NO_AREA for score in scores] == [
        relation.object == 4 for relation in RELATIONS
    ]
    order = random.Random(0).sample(range(len(RELATIONS)), len(RELATIONS))
    shuffled = scorer.scores(image, OBJECTS, [RELATIONS[number] for number in order])
    for number, score in zip(order, shuffled, strict=True):
        is_equal = score is scores[number] or score == pytest.approx(scores[number], abs=1e-6)
        assert is_equal, RELATIONS[number]


def test_a_batch_that_does_not_fit_the_memory_is_halved(
    scorer_of, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of("smolvlm")
    scores = scorer.scores(image, OBJECTS, VISIBLE)
    batches = []

    def end(model: Any, begun: Any, endings: Sequence[list[int]]) -> torch.Tensor:
        batches.append(len(endings))
        if len(endings) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return END(model, begun, endings)

    monkeypatch.setattr("sgpipe.stages.caption.vision_language.end", end)
    monkeypatch.setattr(scorer._model, "memory", copy.copy(scorer._model.memory))
    assert scorer.scores(image, OBJECTS, VISIBLE) == pytest.approx(scores, abs=1e-6)
    assert batches == [30, 30, 15, 7, 8, 15, 7, 8]
    assert scorer._model.memory.batch_size == 7


def test_every_request_begins_with_the_same_bytes(image: Image.Image, tmp_path: Path) -> None:
    with EndpointServer(lambda body: ["Yes"]) as server:
        scorer = served(server, CacheFolder(tmp_path))
        scorer.check()
        server.requests.clear()
        scores = scorer.scores(image, OBJECTS, VISIBLE)
        assert scorer.scores(image, OBJECTS, VISIBLE) == scores
    assert len(server.requests) == 2 * len(VISIBLE), "answers are kept"
    assert len({content(body)[0] for body in server.requests}) == 1
    texts = [content(body)[1] for body in server.requests]
    assert {text.rpartition("\n")[0] for text in texts} == {PROMPT}
    question = "Is the person (1) holding the dog (3)? Answer with one word:"
    lines = [text.rpartition("\n")[2] for text in texts]
    assert {f"{question} yes or no.", f"{question} no or yes."} < set(lines)
    assert "Is the person (1) in? Answer with one word: yes or no." in lines
    assert all(body["max_tokens"] == 1 and body["logprobs"] for body in server.requests)


@pytest.mark.slow
def test_the_first_question_is_answered_before_others_are_asked(image: Image.Image) -> None:
    under_way = []

    def answer(body: Mapping[str, Any]) -> list[str]:
        under_way.append(server.at_once)
        return ["Yes"]

    with EndpointServer(answer, seconds=0.05) as server:
        scorer = served(server)
        scorer.scores(image, OBJECTS, VISIBLE)
    assert under_way[0] == 1
    assert max(under_way) > 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [((120, 90), (640, 480)), ((640, 427), (640, 427)), ((4000, 3000), (1024, 768))],
)
def test_boxes_have_outlines_and_numbers_in_their_colours(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, GREY)
    scale = shown[0] / size[0]
    boxes = [
        Box("person", 0, (60 / scale, 80 / scale, 200 / scale, 250 / scale)),
        Box("dog", 1, (300 / scale, 90 / scale, 150 / scale, 100 / scale)),
    ]
    numbered_image = draw_numbers(image, boxes)
    assert numbered_image.size == shown
    assert image.getcolors(1) == [(size[0] * size[1], GREY)], "the image itself is not drawn on"
    for index, places in enumerate([((61, 200), (258, 200)), ((301, 140), (448, 140))]):
        colour = ImageColor.getrgb(colour_of(index))
        assert [numbered_image.getpixel(place) for place in places] == [colour, colour]
    assert numbered_image.getpixel((160, 200)) == numbered_image.getpixel((375, 140)) == GREY, (
        "not hidden"
    )
    only_outlines = {GREY, *(ImageColor.getrgb(colour_of(index)) for index in range(2))}
    number = numbered_image.crop((55, 55, 95, 84)).getcolors(1 << 16)
    assert {colour for _, colour in number} - only_outlines, "white letters"


def test_a_strip_of_one_pixel_and_boxes_beyond_the_image_are_drawn() -> None:
    boxes = [Box("person", 0, (-5, 0, 100, 1)), Box("dog", 1, (100, 0, 900, 1))]
    assert draw_numbers(Image.new("RGB", (500, 1)), boxes).size == (640, 1)


def test_without_candidates_nothing_is_drawn_or_asked(image: Image.Image) -> None:
    with EndpointServer() as server:
        scorer = served(server)
        assert scorer.scores(image, OBJECTS, []) == []
        assert scorer.scores(image, OBJECTS, [Relation(0, 4, "holding")]) == [NO_AREA]
        assert scorer.scores(image, [], []) == []
    assert not server.requests


def test_one_box_has_number_1(image: Image.Image) -> None:
    objects = [OBJECTS[0], OBJECTS[3]]
    with EndpointServer(lambda body: ["Yes"]) as server:
        [score] = served(server).scores(image, objects, [Relation(0, 1, "smiling")])
    assert 0 < score < 1
    assert {content(body)[1].partition(" Answer")[0] for body in server.requests} == {
        "Things in this image are outlined and numbered.\n1: person\nIs the person (1) smiling?"
    }


def test_names_with_line_breaks_stay_on_their_line() -> None:
    [numbered_image] = numbered_images(OBJECTS, [Relation(4, 0, "next\nto")])
    assert numbered_image.prompt(OBJECTS).splitlines()[1:] == ["1: person", "2: cup of coffee"]
    question = numbered_image.question(OBJECTS, Relation(4, 0, "next\nto"))
    assert question == "Is the cup of coffee (2) next to the person (1)?"


@pytest.mark.parametrize("ends", ["a chain", "one subject", "any pairs"])
def test_ten_thousand_boxes_are_on_images_that_can_be_read(ends: str) -> None:
    noise = random.Random(0)
    number = 10_000
    objects = []
    for index in range(number):
        corner = (noise.uniform(0, 600), noise.uniform(0, 400))
        size = (noise.uniform(1, 60), noise.uniform(1, 60))
        objects.append(Box("person", index, (*corner, *size)))
    pairs: Sequence[tuple[int, int]] = [(index - 1, index) for index in range(1, number)]
    if ends == "one subject":
        pairs = [(0, index) for index in range(1, number)]
    elif ends == "any pairs":
        pairs = [(noise.randrange(number), noise.randrange(number)) for _ in range(number)]
    relations = [Relation(*pair, "next to") for pair in pairs]
    copies = numbered_images(objects, relations)
    asked = [index for numbered_image in copies for index in numbered_image.relations]
    assert sorted(asked) == list(range(len(relations)))
    for numbered_image in copies:
        assert len(numbered_image.boxes) == len({*numbered_image.boxes}) <= MOST_MARKS
        numbered = {*numbered_image.boxes}
        for index in numbered_image.relations:
            assert {relations[index].subject, relations[index].object} <= numbered
    ranks = [objects[index].rank for index in copies[0].boxes]
    assert ranks == sorted(ranks)


def test_a_server_without_log_probabilities_is_refused_before_the_run() -> None:
    without = EndpointServer(lambda body: body.pop("logprobs") and ["Yes"])
    with without as server, pytest.raises(UserError, match="the answer has no log-probabilities"):
        served(server).check()


def test_a_prompt_longer_than_the_context_is_a_refusal(scorer_of, image: Image.Image) -> None:
    scorer = scorer_of("qwen2_5_vl")
    name = "cup " * 5000
    objects = [OBJECTS[0], Box(name, 1, (50, 20, 30, 30))]
    [refusal] = scorer.scores(image, objects, [Relation(0, 1, "holding")])
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("the scorer cannot process the image: a prompt of ")
    assert refusal.reason.endswith(" tokens is longer than its 4096")
    with EndpointServer(faults=scripted(*["rejected"] * 2)) as server:
        [refusal] = served(server).scores(image, objects, [Relation(0, 1, "holding")])
    assert refusal == Refusal("HTTP 400: The prompt is longer than the maximum model length")


def test_an_image_that_the_processor_refuses_has_no_score(scorer_of) -> None:
    strip = [Box("person", 0, (0, 0, 100, 1)), Box("dog", 1, (100, 0, 300, 1))]
    relations = [Relation(0, 1, "riding"), Relation(1, 0, "under")]
    scores = scorer_of("qwen2_5_vl").scores(Image.new("RGB", (500, 1)), strip, relations)
    assert len({score.reason for score in scores}) == 1
    assert scores[0].reason.startswith("the scorer cannot process the image: ")


@pytest.mark.parametrize(
    ("function", "changed", "reason"),
    [
        ("end", lambda *inputs: 4 * END(*inputs), "otherwise than"),
        ("begin", lambda model, prefix: model.no_such_argument, "no_such_argument"),
    ],
)
def test_a_model_that_cannot_share_is_refused_in_one_line(
    scorer_of, monkeypatch: pytest.MonkeyPatch, function: str, changed: Any, reason: str
) -> None:
    monkeypatch.setattr(f"sgpipe.stages.caption.vision_language.{function}", changed)
    with pytest.raises(UserError, match=rf"^scorer .* needs tag\.questions: each: .*{reason}"):
        scorer_of("smolvlm").load()
