"""A vision-language model relates numbered boxes: what it is shown, and what becomes of each kind
of answer.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.pipeline import Pipeline
from sgpipe.recipe import PairConfig, Requests, TagConfig
from sgpipe.records import NO_OBJECT, Box, Record, Relation, Triplet
from sgpipe.stages import marks
from sgpipe.stages.caption.vision_language import VisionLanguageCaptioner
from sgpipe.stages.marks import MarksStage
from sgpipe.stages.pair import check_pair
from sgpipe.stages.served.answers import CacheFolder, RequestCache
from sgpipe.stages.tag.methods import AssumedStage
from sgpipe.viz import TextPlacer, overlap
from tests.endpoint_server import EndpointServer, scripted, shown_image
from tests.factories import make_blip
from tests.marked_model import NAMES, MarkedWorld
from tests.values import values_of
from tests.vlm_checkpoints import make_vlm

pytestmark = pytest.mark.usefixtures("no_pauses")

DOG = Box("dog", 3, (0, 0, 60, 60))
CAT = Box("cat", 2, (30, 30, 30, 30))
MAN = Box("person", 1, (70, 10, 20, 20))


def make_stage(
    url: str | None,
    folder: Path,
    cache: Path | None = None,
    present: Any = None,
    **settings: object,
) -> MarksStage:
    values = {
        "candidates": "marks",
        "model": "tiny-vlm",
        "endpoint": url,
        "requests": Requests(retries=1),
    }
    stage = MarksStage(
        PairConfig(**(values | settings)), "coco", NAMES, present, {"val": folder}, seed=0
    )
    stage.check()
    stage.cache_folder = CacheFolder(cache) if cache else None
    stage.setup()
    return stage


def pairs(record: Record) -> dict[tuple[int, int], list[str]]:
    return {(pair.subject, pair.object): pair.predicates for pair in record.pairs}


def test_pairs_and_predicates_are_exactly_those_that_the_model_states(tmp_path: Path) -> None:
    world = MarkedWorld(tmp_path / "images", 12, rate=0.3, seed=2)
    with EndpointServer(world) as server:
        done = make_stage(server.url, world.folder)(copy.deepcopy(world.records))
    stated = [{ends: set(texts) for ends, texts in pairs(record).items()} for record in done]
    assert stated == list(map(world.expected, world.records))
    assert any(stated)
    assert all(record.ok and not any(record.left_out.values()) for record in done)
    assert any(world.stated(record) != world.truth[record.image_id] for record in world.records)


def relations(*triples: tuple[Any, Any, Any]) -> str:
    return json.dumps(
        {"relations": [{"subject": s, "predicate": p, "object": o} for s, p, o in triples]}
    )


def one_image(folder: Path, *boxes: Box) -> Record:
    Image.new("RGB", (100, 80), "grey").save(folder / "1.png")
    # numbered 2, 3, 1
    return Record("1", "coco", "val", "1.png", 100, 80, list(boxes or (CAT, MAN, DOG)))


FINE = relations((1, "chasing", 2))
MANY = relations(*((1, f"near {number}", 2) for number in range(10_000)))
# what the server answers at first and when it is asked once more; the predicates by ends; asked how
# often; failed
ANSWERS: dict[str, tuple[str, str, dict[tuple[int, int], list[str]], int, int]] = {
    "prose around it": (
        f"Sure!\n```json\n{FINE}\n```\nAnything else?",
        "",
        {(2, 0): ["chasing"]},
        1,
        0,
    ),
    "reasoning": (f"<think>{{1}} and {{2}}?</think>{FINE}", "", {(2, 0): ["chasing"]}, 1, 0),
    "empty list": (relations(), "", {}, 1, 0),
    "spelling": (relations((1, " Is  Sitting ON", 3)), "", {(2, 1): ["sitting on"]}, 1, 0),
    "repeated": (
        relations(*[(1, "on", 2), (1, "On ", 2), (1, "by", 2)] * 2),
        "",
        {(2, 0): ["on", "by"]},
        1,
        0,
    ),
    "prose alone": ("1 chases 2", FINE, {(2, 0): ["chasing"]}, 2, 0),
    "another key": (FINE.replace("}]", ', "score": 1}]'), FINE, {(2, 0): ["chasing"]}, 2, 0),
    "another key beside": ('{"more": 1, ' + FINE[1:], FINE, {(2, 0): ["chasing"]}, 2, 0),
    "cut off": (FINE[:-5], FINE, {(2, 0): ["chasing"]}, 2, 0),
    "out of range": (relations((1, "on", 4)), FINE, {(2, 0): ["chasing"]}, 2, 0),
    "of range twice": (
        relations((1, "on", 4)),
        relations((1, "on", 0), (3, "by", 1)),
        {(1, 2): ["by"]},
        2,
        1,
    ),
    "itself": (
        relations((2, "on", 2)),
        relations((2, "on", 2), (2, "on", 1)),
        {(0, 2): ["on"]},
        2,
        1,
    ),
    "types": (
        relations((True, "on", 2), ("1", "on", 2), (1.0, "on", 2), (1, 7, 2)),
        FINE,
        {(2, 0): ["chasing"]},
        2,
        0,
    ),
    "no predicate": (
        relations((1, "is", 2), (1, "\ud800", 3), (1, "x" * 99, 3)),
        FINE,
        {(2, 0): ["chasing"]},
        2,
        0,
    ),
    "10,000": (MANY, MANY, {(2, 0): [f"near {number}" for number in range(500)]}, 2, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_checked_and_asked_for_once_more(tmp_path: Path, name: str) -> None:
    first, second, expected, asked, failed = ANSWERS[name]
    with EndpointServer(lambda body: [first if len(body["messages"]) == 1 else second]) as server:
        stage = make_stage(server.url, tmp_path)
        server.requests.clear()
        [record] = stage([one_image(tmp_path)])
        assert len(server.requests) == asked
    assert (record.ok, pairs(record), record.left_out["answers"]) == (True, expected, failed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["No.", relations((1, "on", 9)), '{"relations": {}}', "[" * 9000, "{}"]
)
def test_an_image_without_a_usable_answer_fails_and_is_asked_again_on_request(
    tmp_path: Path, text: str
) -> None:
    replies = [text]
    with EndpointServer(lambda body: replies) as server:
        stage = make_stage(server.url, tmp_path, tmp_path)
        server.requests.clear()
        for _ in range(2):  # the second time from the cache
            [record] = stage([one_image(tmp_path)])
            assert record.error == "pair: the model's answers are unusable"
            assert record.left_out["answers"] == 1
        assert len(server.requests) == 2
        assert server.requests[1]["messages"][1] == {"role": "assistant", "content": text[:4000]}
        RequestCache(CacheFolder(tmp_path).file).forget_refusals()
        replies[0] = FINE
        [record] = stage([one_image(tmp_path)])
    assert (record.ok, len(record.pairs)) == (True, 1)


def test_samples_are_united_and_each_is_asked_once_more_by_itself(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> list[str]:
        if len(body["messages"]) > 1:
            return [relations((2, "by", 3)) if body["messages"][1]["content"] == "bad" else "worse"]
        return [FINE, "bad", relations((1, "chasing", 2), (1, "on", 2)), "no"]

    with EndpointServer(answer) as server:
        [record] = make_stage(server.url, tmp_path, samples=4)([one_image(tmp_path)])
        assert len(set(values_of(server.requests[1:], "seed"))) == 3
    assert pairs(record) == {(0, 1): ["by"], (2, 0): ["chasing", "on"]}
    assert (record.ok, record.left_out["answers"]) == (True, 1)


def test_what_captions_state_remains_beside_it(tmp_path: Path) -> None:
    triplet = Triplet("cat", "on", "person", "cat", "person", "on", 0)
    with EndpointServer(
        lambda body: [relations((2, "on", 3), (2, "by", 3), (1, "by", 2))]
    ) as server:
        for candidates, on in (("captions+marks", "captions"), ("marks", "marks")):
            record = replace(one_image(tmp_path), triplets=[copy.copy(triplet)])
            [record] = make_stage(server.url, tmp_path, candidates=candidates)([record])
            assert pairs(record) == {(0, 1): ["on", "by"], (2, 0): ["by"]}
            pair = PairConfig(candidates=candidates, model="m", endpoint="u")
            AssumedStage(TagConfig(method="all"), pair)([record])
            origins = values_of(record.relations, "subject", "predicate", "origin")
            assert origins == [(0, "on", on), (0, "by", "marks"), (2, "by", "marks")]
    with EndpointServer(lambda body: ["no"]) as server:
        record = replace(one_image(tmp_path), triplets=[triplet])
        [record] = make_stage(server.url, tmp_path, candidates="captions+marks")([record])
    assert (record.ok, pairs(record), record.left_out["answers"]) == (True, {(0, 1): ["on"]}, 1)


def test_a_refused_image_is_an_error_row_and_one_box_is_no_question(tmp_path: Path) -> None:
    with EndpointServer(lambda body: [FINE], scripted(None, "refusal")) as server:
        stage = make_stage(server.url, tmp_path)
        [record] = stage([one_image(tmp_path)])
        assert record.error == "pair: the model refused: I cannot describe people."
        crowd = Box("dog", 3, (0, 0, 50, 50), iscrowd=True)
        nothing = Box(NO_OBJECT, 0, (0, 0, 0, 0))
        [record] = stage([one_image(tmp_path, DOG, crowd, nothing)])
        assert (record.ok, record.pairs, len(server.requests)) == (True, [], 2)
        missing = replace(one_image(tmp_path), file_name="no.png")
        assert stage([missing])[0].error.startswith("pair: ")


def test_the_largest_boxes_are_marked_whatever_their_order_and_others_counted(
    tmp_path: Path,
) -> None:
    boxes = [Box("car", 5, (x, 5, 10 + x, 20)) for x in range(8)]
    with EndpointServer(lambda body: [relations((1, "by", 2))]) as server:
        stage = make_stage(server.url, tmp_path, max_marks=3)
        server.requests.clear()
        for order in (boxes, boxes[::-1]):
            [record] = stage([one_image(tmp_path, *order)])
            [(subject, object_)] = pairs(record)
            marked = (record.objects[subject], record.objects[object_])
            assert (marked, record.left_out["marks"]) == ((boxes[7], boxes[6]), 5)
    assert server.requests[0] == server.requests[1]
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["relations"]["items"]["properties"]["subject"]["enum"] == [1, 2, 3]


def test_what_an_extended_run_already_has_is_no_candidate(tmp_path: Path) -> None:
    stated = relations((1, "chasing", 2), (3, "next to", 1), (1, "under", 3))
    with EndpointServer(lambda body: [stated]) as server:
        record = replace(
            one_image(tmp_path), relations=[Relation(2, 0, "chasing"), Relation(2, 1, "near")]
        )
        [record] = make_stage(server.url, tmp_path, present=())([record])
    assert pairs(record) == {(2, 1): ["under"]}


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=30),
    st.floats(0.4, 2.5),
    st.booleans(),
)
def test_numbers_hide_no_other_number(
    shares: list[tuple[float, ...]], aspect: float, alike: bool
) -> None:
    width = min(1024.0, 1024 * aspect)
    height = min(1024.0, 1024 / aspect)
    room = TextPlacer(width, height)
    spots = []
    for x, y, w, h in [shares[0]] * len(shares) if alike else shares:
        box = (x * width, y * height, (x + w * (1 - x)) * width, (y + h * (1 - y)) * height)
        spots.append(room.place_beside(box, (34, 25)))
    assert all(
        left >= 0 <= top and right <= width and bottom <= height
        for left, top, right, bottom in spots
    )
    assert not any(overlap(spot, other) for at, spot in enumerate(spots) for other in spots[:at])


def test_a_local_model_is_asked_in_its_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "_MAX_TOKENS", 32)
    model = make_vlm(tmp_path / "vlm", "qwen2_5_vl")
    stage = make_stage(None, tmp_path, model=str(model), samples=2)
    assert stage.device.type == "cpu"  # whose utilization would be measured
    [record] = stage([one_image(tmp_path)])  # random words
    assert (record.error, record.left_out["answers"]) == (
        "pair: the model's answers are unusable",
        2,
    )
    texts = [["bad", FINE], [relations((3, "by", 1))]]
    prompts = []
    decode = VisionLanguageCaptioner._decode

    def scripted(
        self: Any, inputs: Any, keys: Any, generation: Any, samples: int = 0
    ) -> list[list[str]]:
        [written] = decode(self, inputs, keys, generation, samples)
        assert len(written) == samples
        prompts.append(self.tokenizer.decode(inputs[0]["input_ids"][0]))
        return [texts[len(prompts) - 1]]

    monkeypatch.setattr(VisionLanguageCaptioner, "_decode", scripted)
    [record] = stage([one_image(tmp_path)])
    assert pairs(record) == {(1, 2): ["by"], (2, 0): ["chasing"]}
    assert "\n1: dog\n2: cat\n3: person\n" in prompts[0]
    assert "<|im_start|>assistant\nbad<|im_end|>" in prompts[1]
    assert prompts[1].count("<|vision_start|>") == 1


def test_models_that_cannot_be_asked_are_refused_in_one_line(tmp_path: Path) -> None:
    for settings, words in (
        ({"candidates": "marks"}, "set pair.model"),
        ({"endpoint": "http://localhost:1/v1"}, "pair.endpoint is for marks"),
    ):
        with pytest.raises(UserError, match=words):
            check_pair(PairConfig.model_validate(settings))
    for settings, words in (
        ({"model": str(make_vlm(tmp_path / "blip-2", "blip-2"))}, "has no chat template"),
        ({"model": str(make_blip(tmp_path / "blip"))}, "has no chat template"),
        ({"model": str(tmp_path / "none")}, "none"),
    ):
        with pytest.raises(UserError, match=words):
            make_stage(None, tmp_path, **settings)


def test_label_needs_no_captioner_with_it(tmp_path: Path) -> None:
    one_image(tmp_path)
    with EndpointServer(lambda body: [FINE]) as server:
        settings = {
            "pair.candidates": "marks",
            "pair.model": "tiny-vlm",
            "pair.endpoint": server.url,
        }
        without = {"caption.captioner": None, "detect.detector": None, "tag.method": "all"}
        pipeline = Pipeline("folder", settings=without | settings)
        boxes = [[0, 0, 60, 60], [30, 30, 60, 60]]
        # the second are no classes of the recipe
        for classes in (
            ["dog", "cat"],
            ["zebu", "okapi"],
        ):
            graph = pipeline(tmp_path / "1.png", boxes=boxes, classes=classes)
            assert list(map(tuple, graph.triplets())) == [(classes[0], "chasing", classes[1], 1.0)]
        assert shown_image(server.requests[-1]).size == (1024, 819)
