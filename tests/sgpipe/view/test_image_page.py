"""The values of an image's page, and what two runs say of the same image."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from sgpipe.records import NO_OBJECT, Box, Pair, Record, Relation, Triplet
from sgpipe.storage.index import RecordView
from sgpipe.view.image_page import (
    MOST_RELATIONS,
    compare_images,
    image_values,
    match_objects,
)
from sgpipe.view.web import image_url
from tests.sgpipe.stats.runs import CUP, DOG, PERSON, scene
from tests.sgpipe.view.gallery_run import EVIL, STRANGE, make_gallery_run, open_client

RUN = {"identity": {"pair": {"candidates": "captions"}, "tag": {"threshold": 0.05}}}


def values(record: Record, clip_score: Any = None, chosen: str | None = None, vlm_score: Any = None) -> dict[str, Any]:
    found = image_values(RecordView(record, clip_score, "data/val.parquet", 7, vlm_score), RUN, chosen)
    return json.loads(json.dumps(found, allow_nan=False))


def test_everything_that_the_page_shows_is_there() -> None:
    record = scene("a/b", [(0, "on", 1, 0.4), (0, "near", 1, 0.9), (2, "under", 1)], captions=["a man on a dog"])
    record.triplets = [Triplet("man", "on", "dog", "man", "dog", "on", 0, "person", "dog")]
    record.pairs = [Pair(0, 1, ["on", "near", "with"]), Pair(1, 0, ["on"])]
    found = values(record, clip_score=[{"score": 0.31}, None, None], vlm_score=[0.75, float("nan"), None])
    assert found["image"]["photo"] == "/photo/val/a/b"
    assert [item["key"] for item in found["relations"]] == ["2-1-under", "0-1-near", "0-1-on"]
    on = found["relations"][2]
    assert (on["rank"], on["stated"], on["clip_score"], on["vlm_score"]) == (2, [0], {"score": 0.31}, 0.75)
    assert [relation["vlm_score"] for relation in found["relations"][:2]] == [None, None]
    assert [c["predicate"] for c in found["candidates"]["0-1"]] == ["near", "on", "with"]
    assert "1-0" not in found["candidates"]  # only pairs with relations
    assert {edge["key"] for edge in found["graph"]["edges"]} == {"2-1-under", "0-1-near", "0-1-on"}
    assert (found["total"], found["why"], found["threshold"]) == (3, None, 0.05)


def test_of_very_many_relations_the_most_confident_and_the_chosen_one_are_there() -> None:
    boxes = [Box("person", 1, (i % 300, i % 200, 9, 9)) for i in range(500)]
    relations = [(i % 500, f"p{i}", (i + 1) % 500, i / 5000) for i in range(MOST_RELATIONS + 500)]
    found = values(scene("0", relations, boxes), chosen="3-4-p3")
    assert (len(found["relations"]), found["total"]) == (MOST_RELATIONS + 1, MOST_RELATIONS + 500)
    assert found["relations"][-1]["key"] == found["graph"]["edges"][-1]["key"] == "3-4-p3"
    assert len(json.dumps(found)) < 2_000_000


@pytest.mark.parametrize(
    "record",
    [
        scene("0", objects=()),
        scene("0", [(0, "smile", 1)], [PERSON, Box(NO_OBJECT, 0, (0, 0, 0, 0))]),
        scene("0", [(0, "on", 0, 0.5)]),
        scene("0", [(0, "on", 1, math.inf)]),
        scene("0", [(0, "on", 1, 0.5)], [PERSON, Box("dog", 2, (1, math.nan, 5, 5))]),
        Record("0", "d", "val", "x.jpg", 0, 0, [PERSON, DOG], relations=[Relation(0, 1, "on")]),
        scene("0", [(0, "on", 1, 0.5)], captions=["x" * 10_000]),
    ],
)
def test_strange_rows_have_values(record: Record) -> None:
    assert values(record)["total"] == len(record.relations)


def moved(box: Box, by: float) -> Box:
    x, y, width, height = box.bbox
    return Box(box.category, box.category_id, (x + by, y, width, height))


def test_boxes_of_two_runs_are_the_same_if_they_overlap_and_have_one_class() -> None:
    first = [PERSON, DOG, CUP, Box("dog", 2, DOG.bbox)]
    second = [moved(DOG, 5), Box("cat", 4, CUP.bbox), moved(PERSON, 1), moved(DOG, 1)]
    assert match_objects(first, second) == {0: 2, 1: 3, 3: 0}
    assert match_objects(first, [moved(PERSON, 30)]) == {}
    assert match_objects([], first) == match_objects(first, []) == {}


def test_relations_of_two_runs_are_sorted_by_where_they_are() -> None:
    here = [Relation(0, 1, "on", 0.5), Relation(0, 1, "near", 0.5), Relation(2, 0, "by", 0.1)]
    there = [Relation(1, 0, "on", 0.7), Relation(0, 1, "near", 0.2)]
    found = compare_images([PERSON, DOG, CUP], here, [moved(DOG, 1), moved(PERSON, 1)], there)
    assert found == ([(here[0], there[0])], here[1:], there[1:])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return open_client(make_gallery_run(tmp_path_factory.mktemp("view") / "run"))


def page_values(client: TestClient, path: str) -> dict[str, Any]:
    """The values that a page is drawn from, which are those of its JSON answer."""
    page = client.get(f"/image{path}")
    assert page.status_code == 200, page.text
    [found] = re.findall(r'<script type="application/json" id="values">(.*?)</script>', page.text, re.DOTALL)
    answered = client.get(f"/api/image{path}").json()
    assert json.loads(found) == answered
    return answered


def test_a_page_leads_on_within_its_search(client: TestClient) -> None:
    found = page_values(client, "/val/a?q=person+riding+*&relation=0-1-riding&after=x")
    assert found["chosen"] == "0-1-riding"
    assert (found["previous"], found["next"]) == (None, "/image/val/gone?q=person+riding+%2A&relation=0-1-riding")
    assert found["gallery"] == "/?q=person+riding+%2A"
    beside = client.get("/api/neighbours/val/gone?q=person+riding+*&relation=0-1-riding").json()
    assert beside["previous"] == "/image/val/a?q=person+riding+%2A&relation=0-1-riding"


def test_names_with_markup_are_text_and_reach_their_page(client: TestClient) -> None:
    path = image_url("val", STRANGE).removeprefix("/image")
    found = page_values(client, path)
    assert found["relations"][0]["predicate"] == EVIL
    assert EVIL not in client.get(f"/image{path}").text


def test_an_image_that_the_run_does_not_have_is_not_found(client: TestClient) -> None:
    assert client.get("/image/val/nothing").status_code == 404
    assert client.get("/api/image/val/nothing").json() == {"error": "the run has no image 'nothing' in 'val'"}


def test_predicates_are_suggested_by_how_often_they_occur(client: TestClient) -> None:
    assert client.get("/api/predicates?prefix=ne").json() == [
        {"predicate": "near", "count": 99},
        {"predicate": "next to", "count": 1},
    ]
