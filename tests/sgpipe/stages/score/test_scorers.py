"""Scorers: what they see, both boxes with their outlines; CLIP; and vision-language models, here
and served.
"""

import math
import random
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
)

from sgpipe.errors import UserError
from sgpipe.recipe import Requests, Resources, TagConfig, packaged_model
from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.stages.score import scorer as scoring
from sgpipe.stages.score.clip import ClipModel, ClipScorer, split_name
from sgpipe.stages.score.scorer import (
    NO_AREA,
    OBJECT_COLOUR,
    SUBJECT_COLOUR,
    contrast_texts,
    marked_crop,
)
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import Choice
from tests.clip_checkpoints import make_clip, make_open_clip
from tests.endpoint_server import EndpointServer, shown_image
from tests.vlm_checkpoints import make_vlm

OBJECTS = [
    Box("person", 0, (10, 10, 40, 60)), Box("dog", 1, (50, 20, 30, 30)), Box("dog", 1, (20, 50, 70, 30)),
    Box(NO_OBJECT, 0, (0, 0, 0, 0)), Box("cup", 2, (30, 30, 0, 10)),
]  # fmt: skip
ENDS = ((0, 1), (1, 0), (0, 2), (1, 2), (0, 3), (0, 4))
RELATIONS = [
    Relation(*ends, predicate) for ends in ENDS for predicate in ("holding", "next to", "under")
]

GREY = (100, 100, 100)
DOG = Box("dog", 0, (10, 10, 40, 40))
CAT = Box("cat", 0, (60, 20, 30, 50))
NOTHING = OBJECTS[3]
CHASING = Relation(0, 1, "chasing")
NEARLY_THE_COLOUR = 60  # of 255: what JPEG makes of an outline amid noise

ASKED = [
    Relation(0, 1, "riding"),
    Relation(0, 3, "smiling"),
    Relation(0, 4, "holding"),
    Relation(1, 0, "behind"),
]


@pytest.fixture
def grey() -> Image.Image:
    return Image.new("RGB", (120, 90), GREY)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["transformers", "open_clip"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / request.param
    if request.param == "open_clip":
        pytest.importorskip("open_clip")
        return make_open_clip(out)
    return make_clip(out)


def scorer_of(folder: Path) -> ClipScorer:
    return loaded(ClipScorer(str(folder), "cpu"))


def vlm_of(folder: Path) -> scoring.VlmScorer:
    scorer = scoring.VlmScorer(TagConfig(tagger=str(folder), device="cpu"))
    scorer.check()
    return loaded(scorer)


def loaded(scorer: Any) -> Any:
    scorer.load()
    return scorer


def test_the_probability_is_the_text_against_the_mean_of_its_contrasts(
    folder: Path, image: Image.Image
) -> None:
    probabilities = scorer_of(folder).scores(image, OBJECTS, RELATIONS)
    clip = ClipModel(str(folder), None, torch.device("cpu"))
    for relation, probability in zip(RELATIONS, probabilities, strict=True):
        crop = marked_crop(image, OBJECTS, relation, clip.side)
        if relation.object == 4:
            assert (crop, probability) == (None, NO_AREA)
            continue
        subject = OBJECTS[relation.subject]
        object_ = OBJECTS[relation.object]
        texts = [
            scoring.relation_text(subject, relation.predicate, object_),
            *contrast_texts(OBJECTS, relation),
        ]
        cosines = clip.embed_texts(texts) @ clip.embed_images([crop])[0]
        stated, *contrasts = (clip.scale * cosines.double()).exp().tolist()
        expected = stated / (stated + sum(contrasts) / len(contrasts))
        assert 0 < probability < 1
        assert probability == pytest.approx(expected, rel=1e-3)


def test_chance_is_one_half_for_symmetric_and_directed_relations_alike(
    folder: Path, image: Image.Image
) -> None:
    scorer = scorer_of(folder)
    scorer.clip.scale = 0.0  # all texts fit equally
    numbers = {len(contrast_texts(OBJECTS, relation)) for relation in RELATIONS}
    assert numbers == {1, 2}
    probabilities = scorer.scores(image, OBJECTS, RELATIONS)
    assert {probability for probability in probabilities if probability is not NO_AREA} == {0.5}


def test_a_probability_does_not_depend_on_what_else_is_asked(
    folder: Path, image: Image.Image
) -> None:
    scorer = scorer_of(folder)
    together = scorer.scores(image, OBJECTS, RELATIONS)
    alone = [scorer_of(folder).scores(image, OBJECTS, [relation])[0] for relation in RELATIONS[:7]]
    assert alone == together[:7]
    order = list(range(len(RELATIONS)))
    random.Random(0).shuffle(order)
    shuffled = scorer_of(folder).scores(image, OBJECTS, [RELATIONS[number] for number in order])
    assert [shuffled[order.index(number)] for number in range(len(order))] == together
    assert scorer.scores(image, OBJECTS, []) == []


def test_contrasts_are_both_things_and_swapped_roles_where_these_differ() -> None:
    assert contrast_texts(OBJECTS, Relation(0, 1, "holding")) == [
        "a person and a dog",
        "a dog holding a person",
    ]
    assert contrast_texts(OBJECTS, Relation(0, 1, "next to")) == ["a person and a dog"]
    assert contrast_texts(OBJECTS, Relation(1, 2, "holding")) == ["a dog and a dog"]
    assert contrast_texts(OBJECTS, Relation(0, 3, "smiling")) == ["a person"]
    elephant, apple = (Box(name, 0, (0, 0, 1, 1)) for name in ("elephant", "apple"))
    assert scoring.relation_text(elephant, "eating", apple) == "an elephant eating an apple"


def test_a_named_model_of_open_clip_has_weights() -> None:
    assert split_name("ViT-B-32:laion2b_s34b_b79k") == ("ViT-B-32", "laion2b_s34b_b79k")
    assert split_name("ViT-B-32:/a/weights.pt") == ("ViT-B-32", "/a/weights.pt")
    for name in ("hf-hub:laion/CLIP", "openai/clip-vit-base-patch32", "/a/b:c"):
        assert split_name(name) == (name, None)


def test_models_that_are_not_clip_or_damaged_are_refused(
    tmp_path: Path, image: Image.Image
) -> None:
    scorer = scorer_of(make_clip(tmp_path / "clip"))
    torch.nn.init.constant_(scorer.clip._network.visual_projection.weight, torch.nan)
    with pytest.raises(UserError, match="returns NaN"):
        scorer.scores(image, OBJECTS, RELATIONS)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"damaged")
    for damaged in (str(tmp_path / "clip"), str(packaged_model("captioner"))):
        with pytest.raises(UserError, match="weight"):
            ClipScorer(damaged, "cpu").load()


def test_a_model_whose_settings_have_no_image_size(tmp_path: Path, image: Image.Image) -> None:
    make_clip(tmp_path)  # for its tokenizer
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**sizes, "vocab_size": 100, "max_position_embeddings": 12, "projection_size": 32}
    vision = {**sizes, "num_patches": 16, "patch_size": 8}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    Siglip2Processor(
        Siglip2ImageProcessor(patch_size=8, max_num_patches=16), tokenizer
    ).save_pretrained(tmp_path)
    assert 0 < scorer_of(tmp_path).scores(image, OBJECTS, RELATIONS)[0] < 1


def test_the_subject_is_red_and_the_object_blue_where_they_are(grey: Image.Image) -> None:
    marked, swapped = scoring.marked_images(
        grey, [DOG, CAT], [CHASING, Relation(1, 0, "chasing")], 1000
    )
    assert marked.size == grey.size
    assert marked.getpixel((10, 30)) == marked.getpixel((49, 30)) == SUBJECT_COLOUR
    assert marked.getpixel((60, 40)) == marked.getpixel((70, 69)) == OBJECT_COLOUR
    assert (
        marked.getpixel((30, 30)) == marked.getpixel((70, 40)) == marked.getpixel((55, 30)) == GREY
    )
    assert grey.getcolors(1) == [(120 * 90, GREY)], "the image itself is not drawn on"
    assert (swapped.getpixel((10, 30)), swapped.getpixel((60, 40))) == (
        OBJECT_COLOUR,
        SUBJECT_COLOUR,
    )


def test_a_crop_is_square_and_shows_both_boxes_with_a_margin(grey: Image.Image) -> None:
    crop = marked_crop(grey, [DOG, CAT], CHASING, 232)
    assert crop.size == (232, 232)
    # around (10, 10) to (90, 70)
    scale = 232 / (80 * 1.16)
    left = 50 - 40 * 1.16
    top = 40 - 40 * 1.16
    assert (
        crop.getpixel((round((10.5 - left) * scale), round((30 - top) * scale))) == SUBJECT_COLOUR
    )
    assert crop.getpixel((round((60.5 - left) * scale), round((40 - top) * scale))) == OBJECT_COLOUR
    assert crop.getpixel((round((30 - left) * scale), round((30 - top) * scale))) == GREY
    assert crop.getpixel((116, 2)) != GREY, "beyond the image"


def test_a_relation_without_an_object_has_one_outline(grey: Image.Image) -> None:
    objects = [DOG, NOTHING]
    for marked in (
        marked_crop(grey, objects, CHASING, 64),
        *scoring.marked_images(grey, objects, [CHASING], 64),
    ):
        colours = {colour for _, colour in marked.getcolors(1 << 16)}
        assert {SUBJECT_COLOUR, OBJECT_COLOUR} & colours == {SUBJECT_COLOUR}


@pytest.mark.parametrize(
    "box", [(10, 10, 0, 40), (10, 10, 30, 0), (200, 10, 30, 30), (-30, 10, 30, 30)]
)
def test_a_box_without_area_in_the_image_is_not_shown(
    grey: Image.Image, box: tuple[float, ...]
) -> None:
    for objects in permutations([DOG, Box("cat", 0, box)]):
        assert (
            marked_crop(grey, objects, CHASING, 64)
            is scoring.visible_boxes(grey, objects, CHASING)
            is None
        )


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_a_local_model_is_asked_one_question_at_a_time(
    family: str, tmp_path: Path, image: Image.Image
) -> None:
    scorer = vlm_of(make_vlm(tmp_path, family))
    together = scorer.scores(image, OBJECTS, ASKED)
    assert together[2] is NO_AREA
    assert (
        len(
            {
                probability
                for probability in together
                if isinstance(probability, float) and 0 < probability < 1
            }
        )
        == 3
    )
    alone = [scorer.scores(image, OBJECTS, [relation])[0] for relation in ASKED[::-1]]
    assert alone == together[::-1]
    assert scorer.scores(image.rotate(90), OBJECTS, ASKED[:1]) != together[:1], "the image counts"
    ahead = {"resources": Resources(io_threads=1)}  # a thread prepares the next questions
    scorer._model.config = scorer._model.config.model_copy(update=ahead)
    assert scorer.scores(image, OBJECTS, ASKED) == together


def test_an_image_that_the_processor_refuses_has_no_score(tmp_path: Path) -> None:
    scorer = vlm_of(make_vlm(tmp_path, "qwen2_5_vl"))
    strip = [Box("person", 0, (0, 0, 100, 1)), Box("dog", 1, (100, 0, 300, 1))]
    [refusal] = scorer.scores(Image.new("RGB", (500, 1)), strip, [Relation(0, 1, "riding")])
    assert refusal.reason.startswith("the scorer cannot process the image: ")


def test_the_probability_is_that_of_the_first_token_in_both_orders(
    tmp_path: Path, image: Image.Image
) -> None:
    scorer = vlm_of(make_vlm(tmp_path, "smolvlm"))
    model = scorer._model.model
    answers = []
    model.register_forward_hook(
        lambda _, inputs, output: answers.append(output.logits[0, -1].double())
    )
    [probability] = scorer.scores(image, OBJECTS, ASKED[:1])
    assert len(answers) == 2
    yes, no = scorer._model.yes_and_no
    both = torch.cat([yes, no])
    shares = [logits.softmax(0)[yes].sum() / logits.softmax(0)[both].sum() for logits in answers]
    assert probability == pytest.approx(torch.stack(shares).mean().item())
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UserError, match="returns NaN"):
        scorer.scores(image, OBJECTS, ASKED[:1])


def test_models_that_cannot_be_asked_are_refused_in_one_line(tmp_path: Path) -> None:
    for model, reason in (
        (
            packaged_model("tagger"),
            "does not read images and text: its model_type is 'rlip_tagger'",
        ),
        (tmp_path, r"^scorer .*config\.json: "),
        (make_vlm(tmp_path / "blip2", "blip-2"), "has no chat template"),
    ):
        with pytest.raises(UserError, match=reason):
            vlm_of(model)


def test_the_question_names_both_boxes_and_both_orders() -> None:
    question = "Is the person (red box) riding the dog (blue box)? Answer with one word: "
    assert list(scoring.ask_about(OBJECTS, ASKED[0])) == [
        f"{question}yes or no.",
        f"{question}no or yes.",
    ]
    assert scoring.ask_about(OBJECTS, ASKED[1])[0].startswith("Is the person (red box) smiling? ")


def test_yes_has_many_spellings() -> None:
    assert scoring.share_of_yes(
        {"Yes": 0.3, " yes": 0.1, "▁YES": 0.2, "No": 0.2, "nope": 0.5}
    ) == pytest.approx(0.75)
    assert scoring.share_of_yes({"no.": 0.5}) == 0
    assert (
        scoring.share_of_yes({"The": 0.9})
        is scoring.share_of_yes({"yes": float("nan"), "no": 0.5})
        is scoring.NEITHER
    )
    assert scoring._share([Choice("yes", None, {"yes": 1e6})]) == 1
    assert scoring.mean_of_orders(0.2, 0.6) == pytest.approx(0.4)
    assert scoring.mean_of_orders(0.2, scoring.NEITHER) is scoring.NEITHER


def served(
    server: EndpointServer, cache: CacheFolder | None = None, **requests: object
) -> scoring.VlmScorer:
    config = TagConfig(
        tagger="tiny-vlm", endpoint=server.url, requests=Requests(**{"retries": 3, **requests})
    )
    scorer = scoring.VlmScorer(config, cache)
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
        probabilities = scorer.scores(image, OBJECTS, ASKED)
        assert scorer.scores(image, OBJECTS, ASKED) == probabilities
    assert len(server.requests) == 6, "answers are kept"
    assert probabilities[2] is NO_AREA
    yes = math.exp(-0.25)
    no = math.exp(-1.5)
    assert [probabilities[0], probabilities[1], probabilities[3]] == [
        pytest.approx(yes / (yes + no))
    ] * 3
    assert all(body["max_tokens"] == 1 and body["logprobs"] for body in server.requests)
    with_outlines = 0  # of the first relation; requests come in any order
    for crop in map(shown_image, server.requests):
        assert crop is not None
        assert crop.size == image.size
        outlines = np.array([crop.getpixel((10, 30)), crop.getpixel((60, 20))])
        drawn = np.array([SUBJECT_COLOUR, OBJECT_COLOUR])
        with_outlines += bool((abs(outlines - drawn) < NEARLY_THE_COLOUR).all())
    assert with_outlines == 2
