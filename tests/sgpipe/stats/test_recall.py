"""Recall plans: blind answers over HTTP, the recall that they show, and what two people show about
each other.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from benchmarks.recall_coverage import parts_of_all, people, plans
from sgpipe.records import NO_OBJECT, Box
from sgpipe.stats.recall import measure_recall, recapture
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from tests.sgpipe.stats.runs import invoke, make_shards, scene
from tests.sgpipe.view.gallery_run import open_client
from tests.values import values_of

SECRET = "levitating above"  # a predicate of the run that nobody else utters
IMAGES = 60


def boxes(number: int) -> list[Box]:
    return [
        Box(name, 1, (9 * at, 5, 8, 8))
        for at, name in enumerate(["person", "dog", "cup", "car"][:number])
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of each image, the run has "on" between 0 and 1, and every second one "near" between 1
    and 0.
    """
    records = []
    for number in range(IMAGES):
        relations = [(0, "On", 1, 0.4 + number / 200), (2, SECRET, 0, 0.9)]
        records.append(
            scene(
                f"i{number}", [*relations, *([(1, "near", 0, 0.2)] if number % 2 else [])], boxes(4)
            )
        )
    lonely = scene("lonely", objects=[*boxes(1), Box(NO_OBJECT, 0, (0, 0, 0, 0))])
    return make_shards(tmp_path / "run", [*records, lonely])


@pytest.fixture
def client(run: Path) -> TestClient:
    return open_client(run)


def draw(client: TestClient, status: int = 201, **values: object) -> str:
    response = client.post(
        "/api/plans", json={"kind": "recall", "count": 40, "seed": 1, "id": "r", **values}
    )
    assert response.status_code == status, response.text
    return response.json().get("plan") or response.json()["error"]


def question(client: TestClient, by: str = "anna", **params: object) -> dict:
    response = client.get("/api/recall/r", params={"by": by, **params})
    assert response.status_code == 200, response.text
    return response.json()


def answer(
    client: TestClient,
    asked: dict,
    relations: list | None,
    by: str = "anna",
    status: int = 200,
    changes=None,
) -> dict:
    named = relations and [
        dict(zip(("subject", "predicate", "object"), relation, strict=True))
        for relation in relations
    ]
    place = {name: asked["question"]["image"][name] for name in ("split", "image_id")}
    line = {
        "id": f"{by}{asked['number']}",
        "plan": "r",
        "by": by,
        **place,
        "relations": named,
        **(changes or {}),
    }
    stored = client.post("/api/judgements", json=line)
    assert stored.status_code == status, stored.text
    return stored.json()


def test_people_answer_blindly_and_the_recall_is_reported(client, run):
    draw(client)
    for by in ("anna", "ben"):
        for number in range(20):
            asked = question(client, by)
            assert (asked["number"], asked["left"], len(asked["question"]["objects"])) == (
                number,
                40 - number,
                4,
            )
            seen = [(0, "on", 1), (1, "NEAR", 0)] if by == "anna" else [(0, "on", 1)]
            assert answer(client, asked, seen, by)["by"] == by
    viewer = client.app.state.freshness.viewer
    log = JudgementLog(run / JUDGEMENTS, viewer.index.fingerprint)
    recall = measure_recall(log.recall_plans["r"], log, viewer.index.rows)
    rows = recall.predicates
    assert (recall.answered, recall.open, recall.images) == (20, 20, IMAGES)
    assert (rows["on"].correct, rows["on"].judged) == (20, 20)
    assert rows["near"].judged == 20
    assert 3 < rows["near"].correct < 17
    assert recall.recall.value == pytest.approx((20 + rows["near"].correct) / 40)
    assert recall.recall.low < recall.recall.value < recall.recall.high
    assert (recall.people.both, recall.people.one) == (20, 20)
    assert "anna and ben answered 20 common questions" in recall.as_groups()[0]["lines"][1]
    shown = client.get("/judge").text + client.get("/api/plans/r?by=ben").text
    assert "20 of 40 questions answered" in shown  # and no figure before the last answer
    assert not any(text in shown for text in ("of the relations that", "near:", "common question"))
    estimate = "If each misses relations independently"
    assert estimate not in invoke("stats", run, "--judgements", "own").stdout
    assert estimate in invoke("stats", run, "--judgements", "own", "--estimate-total").stdout
    report = invoke("stats", run, "--judgements", "own", "--json")
    assert json.loads(report.stdout)["judgements"]["recall"]["answered"] == 20


def test_nothing_of_the_labels_reaches_the_page_or_its_answers(client):
    draw(client)
    for number in range(3):
        asked = question(client)
        stored = answer(client, asked, [(0, "on", 1)])
        page = client.get("/recall/r")
        assert page.status_code == 200
        for text in (page.text, json.dumps([asked, stored, question(client, at=number)])):
            assert SECRET not in text
            assert "confidence" not in text
            assert "near" not in text
    assert question(client, "ben", at=0)["question"]["relations"] == []  # nor what others said
    relations = question(client, at=0)["question"]["relations"]
    assert relations == [{"subject": 0, "object": 1, "predicate": "on"}]
    assert client.get("/judge/r", follow_redirects=False).headers["location"] == "/recall/r"


def test_boxes_of_a_question_stand_for_all_pairs_of_the_image(client):
    draw(client, boxes=2, count=5)
    asked = question(client)
    indices = values_of(asked["question"]["objects"], "index")
    assert len(indices) == 2
    other = next(index for index in range(4) if index not in indices)
    assert (
        "between two boxes"
        in answer(client, asked, [(indices[0], "on", other)], status=400)["error"]
    )
    plan = client.app.state.freshness.viewer.judgements.recall_plans["r"]
    assert set(values_of(plan.questions, "weight")) == {6.0}


def test_what_is_no_answer_and_plans_that_cannot_be_drawn_are_refused(client, run):
    draw(client)
    before = (run / JUDGEMENTS).read_bytes()
    pair = {"subject": 0, "object": 1}
    for values, status, message in (
        ({"plan": "none"}, 404, "no such plan"), ({"image_id": "lonely"}, 404, "does not ask"),
        ({"relations": [{"subject": 0, "object": 0, "predicate": "on"}]}, 400, "two boxes"),
        ({"relations": [{**pair, "predicate": " on"}]}, 400, "one line"), ({"relations": [pair]}, 400, "predicate"),
        ({"relations": [{**pair, "predicate": "x" * 201}]}, 400, "200"), ({"relations": "all"}, 400, "relations"),
        ({"run": "another"}, 409, "another run"),
    ):  # fmt: skip
        assert (
            message in answer(client, question(client), [], status=status, changes=values)["error"]
        )
    assert (run / JUDGEMENTS).read_bytes() == before
    assert "expected 1 to" in draw(client, 422, count=0, id="none")
    assert "2 or more" in draw(client, 422, boxes=1, id="none")
    assert (
        client.get("/api/recall/none").status_code == client.get("/recall/none").status_code == 404
    )


@pytest.mark.parametrize("simulate", [plans, parts_of_all])
def test_intervals_contain_the_truth(simulate):
    for name, data, covered in simulate(simulations=120, only=2):
        assert covered > 0.88, (name, data)


def test_no_more_relations_are_promised_than_exist():
    """Also where images or relations are hard for both people, which no estimate can know of."""
    for name, data, over, named, bound, _ in people(simulations=60):
        assert over <= 0.13, (name, data)  # 5 of 100, and three standard errors
        assert named - 0.02 <= bound <= 1.02, (name, data)


def test_two_people_show_how_many_relations_exist_at_least():
    numbers = np.array([6, 6, 6, 6]), np.array([2, 2, 2, 2]), np.array([1, 1, 1, 1])
    completeness = recapture(("anna", "ben"), *numbers)
    assert (completeness.both, completeness.one) == (24, 12)
    assert 36 <= completeness.at_least < completeness.if_independent.total < 40
    assert completeness.share_at_most == 36 / completeness.at_least
    [bound] = completeness.describe(estimate_total=False)
    assert f"{completeness.at_least} relations or more exist" in bound
    assert "hard to see for both" in bound
    assert "about" not in bound
    assert "about 37 exist" in list(completeness.describe(estimate_total=True))[1]
    nothing = np.zeros(4, int)
    assert recapture(("anna", "ben"), nothing, nothing, nothing) is None
