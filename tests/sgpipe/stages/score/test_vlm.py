"""A vision-language model as a scorer, on this machine and behind an endpoint."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import Requests, Resources, packaged_model
from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.stages.score.scorer import NO_AREA, OBJECT_COLOUR, SUBJECT_COLOUR
from sgpipe.stages.score.vlm import NEITHER, ServedScorer, VlmScorer, ask_about, mean_of_orders, share_of_yes
from tests.endpoint_server import EndpointServer, shown_image
from tests.vlm_checkpoints import make_vlm

OBJECTS = [
    Box("man", 0, (10, 10, 40, 60)), Box("horse", 1, (50, 20, 30, 30)), Box(NO_OBJECT, 0, (0, 0, 0, 0)),
    Box("cup", 2, (30, 30, 0, 10)),
]  # fmt: skip
RELATIONS = [Relation(0, 1, "riding"), Relation(0, 2, "smiling"), Relation(0, 3, "holding"), Relation(1, 0, "behind")]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def scorer_of(folder: Path) -> VlmScorer:
    scorer = VlmScorer(str(folder), "cpu")
    scorer.check()
    scorer.load()
    return scorer


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_a_local_model_is_asked_one_question_at_a_time(family: str, tmp_path: Path, image: Image.Image) -> None:
    scorer = scorer_of(make_vlm(tmp_path, family))
    together = scorer.scores(image, OBJECTS, RELATIONS)
    assert together[2] is NO_AREA
    assert len({each for each in together if isinstance(each, float) and 0 < each < 1}) == 3
    alone = [scorer.scores(image, OBJECTS, [relation])[0] for relation in RELATIONS[::-1]]
    assert alone == together[::-1]
    assert scorer.scores(image.rotate(90), OBJECTS, RELATIONS[:1]) != together[:1], "the image counts"
    ahead = {"resources": Resources(io_threads=1)}  # a thread prepares the next questions
    scorer._model.config = scorer._model.config.model_copy(update=ahead)
    assert scorer.scores(image, OBJECTS, RELATIONS) == together


def test_an_image_that_the_processor_refuses_has_no_score(tmp_path: Path) -> None:
    scorer = scorer_of(make_vlm(tmp_path, "qwen2_5_vl"))
    strip = [Box("man", 0, (0, 0, 100, 1)), Box("horse", 1, (100, 0, 300, 1))]
    [found] = scorer.scores(Image.new("RGB", (500, 1)), strip, [Relation(0, 1, "riding")])
    assert found.reason.startswith("the scorer cannot process the image: ")


def test_the_probability_is_that_of_the_first_token_in_both_orders(tmp_path: Path, image: Image.Image) -> None:
    scorer = scorer_of(make_vlm(tmp_path, "smolvlm"))
    model, said = scorer._model.model, []
    model.register_forward_hook(lambda _, inputs, found: said.append(found.logits[0, -1].double()))
    [probability] = scorer.scores(image, OBJECTS, RELATIONS[:1])
    assert len(said) == 2
    both = torch.cat([scorer._yes, scorer._no])
    shares = [each.softmax(0)[scorer._yes].sum() / each.softmax(0)[both].sum() for each in said]
    assert probability == pytest.approx(torch.stack(shares).mean().item())
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UserError, match="returns NaN"):
        scorer.scores(image, OBJECTS, RELATIONS[:1])


def test_models_that_cannot_be_asked_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = make_vlm(tmp_path / "blip2", "blip-2")
    for model, reason in (
        (packaged_model("tagger"), "does not read images and text: its model_type is 'rlip_tagger'"),
        (tmp_path / "none" / "such", "No such file"),
        (tmp_path / "empty", r"^scorer .*config\.json: "),
        (folder, "has no chat template"),
    ):
        with pytest.raises(UserError, match=reason):
            scorer_of(model)


def test_the_question_names_both_boxes_and_both_orders() -> None:
    question = "Is the man (red box) riding the horse (blue box)? Answer with one word: "
    assert list(ask_about(OBJECTS, RELATIONS[0])) == [f"{question}yes or no.", f"{question}no or yes."]
    assert ask_about(OBJECTS, RELATIONS[1])[0].startswith("Is the man (red box) smiling? ")


def test_yes_has_many_spellings() -> None:
    assert share_of_yes({"Yes": 0.3, " yes": 0.1, "▁YES": 0.2, "No": 0.2, "nope": 0.5}) == pytest.approx(0.75)
    assert share_of_yes({"no.": 0.5}) == 0
    assert share_of_yes({"The": 0.9}) is NEITHER
    assert mean_of_orders(0.2, 0.6) == pytest.approx(0.4)
    assert mean_of_orders(0.2, NEITHER) is NEITHER


def served(server: EndpointServer, cache: CacheFolder | None = None, **requests: object) -> ServedScorer:
    scorer = ServedScorer(server.url, "tiny-vlm", Requests(**{"retries": 3, **requests}), cache)
    scorer.load()
    return scorer


def test_a_check_asks_a_broken_server_few_times(no_pauses: None) -> None:
    with EndpointServer(faults=lambda body, attempt: "broken") as server:
        with pytest.raises(UserError, match="HTTP 500"):
            served(server, retries=6).check()
        assert len(server.requests) == 1 + 2 + 1  # and one to see whether it answers others


def test_a_served_model_gets_two_requests_of_one_token(image: Image.Image, tmp_path: Path) -> None:
    with EndpointServer(lambda body: ["Yes"]) as server:
        scorer = served(server, CacheFolder(tmp_path))
        scorer.check()
        server.requests.clear()
        found = scorer.scores(image, OBJECTS, RELATIONS)
        assert scorer.scores(image, OBJECTS, RELATIONS) == found
    assert len(server.requests) == 6, "answers are kept"
    assert found[2] is NO_AREA
    yes, no = math.exp(-0.25), math.exp(-1.5)
    assert [found[0], found[1], found[3]] == [pytest.approx(yes / (yes + no))] * 3
    assert all(body["max_tokens"] == 1 and body["logprobs"] for body in server.requests)
    shown = map(shown_image, server.requests)  # in any order
    found_colours = [(each.size, each.getpixel((10, 30)), each.getpixel((60, 20))) for each in shown]
    assert found_colours.count((image.size, SUBJECT_COLOUR, OBJECT_COLOUR)) == 2
