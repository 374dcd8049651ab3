import errno
import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sgpipe.records import NO_OBJECT, Box, from_table
from sgpipe.sources.corrected import Corrections
from sgpipe.stats.certificate_rounds import extend
from sgpipe.stats.population import settings_for
from sgpipe.storage.index import Index
from sgpipe.storage.judgement_lines import Judgement
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.storage.shards import read_file
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import EVIL, attributes, open_client, record
from tests.values import values_of

RELATION = {"split": "val", "image_id": "a", "subject": 0, "object": 1, "predicate": "riding"}
OTHER = {**RELATION, "subject": 1, "object": 0, "predicate": "next to"}
LEADING = {**RELATION, "predicate": "leading"}  # which the run lacks
ANSWERS = {
    "A": {"change": {"action": "add"}}, "R": {"judgement": "right"}, "W": {"judgement": "wrong"},
    "U": {"judgement": "unsure"}, "C": {"change": {"action": "predicate", "predicate": "beside"}},
    "X": {"change": {"action": "swap"}}, "D": {"change": {"action": "delete"}},
}  # fmt: skip
Place = tuple[int, int, str]

STEP = st.tuples(
    st.sampled_from(["anna", "ben"]), st.booleans(), st.sampled_from([*ANSWERS, "Z", "A"])
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    alone = [Box("person", 1, (2, 2, 8, 8)), Box(NO_OBJECT, 0, (0, 0, 0, 0))]
    records = [
        record("a", (0, "riding", 1, 0.9), (1, "next to", 0, 0.3)),
        record("nothing", (0, "smiling", 1, 0.5), objects=alone),
        record("odd", (0, "above", 1, 1.5), (0, "below", 1, float("nan")), (0, "above", 1, 0.5)),
        *(record(f"n{number}", (0, "near", 1, number / 100)) for number in range(40)),
    ]
    root = tmp_path_factory.mktemp("judging") / "run"
    make_run(root, records)
    index = Index(root)
    yield index
    index.close()


@pytest.fixture
def client(index: Index, tmp_path: Path) -> TestClient:
    return open_client(index, tmp_path)


def send(
    client: TestClient,
    id: str = "1",
    relation: dict = RELATION,
    status: int = 200,
    **values: object,
) -> dict:
    answer = (
        values
        if values.keys() & {"judgement", "change", "undoes"}
        else {"judgement": "right", **values}
    )
    response = client.post("/api/judgements", json={"id": id, **relation, **answer})
    assert response.status_code == status, response.text
    return response.json()


def lines(folder: Path) -> list[dict]:
    file = folder / JUDGEMENTS
    return list(map(json.loads, file.read_text().splitlines())) if file.exists() else []


def test_an_answer_is_in_the_file_with_what_the_run_says(client, tmp_path):
    stored = send(client, judgement="right", subject_category="lie", confidence=0.1)
    assert lines(tmp_path) == [stored]
    assert {
        **RELATION,
        "by": "anna",
        "run": "drawn",
        "judgement": "right",
        "plan": None,
    }.items() <= stored.items()
    assert (stored["subject_category"], stored["object_category"]) == ("person", "horse")
    assert stored["confidence"] == pytest.approx(0.9)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stored["at"])
    assert send(client, judgement="wrong") == stored  # the same id
    assert len(lines(tmp_path)) == 1


def place_of(relation: dict) -> Place:
    return relation["subject"], relation["object"], relation["predicate"]


def left_by(key: str, place: Place) -> set[Place]:
    """What an answer of somebody who is sure leaves of a relation."""
    subject, object_, predicate = place
    changed = {
        "C": (subject, object_, "beside"),
        "X": (object_, subject, predicate),
        "A": place,
        "R": place,
    }
    return {changed[key]} if key in changed else set()


def expected_relations(
    history: list[tuple[str, str, Place, str]], run: set[Place]
) -> tuple[set[Place], set[Place]]:
    """What the image has by all answers `(id, person, place, key)` that count, and which additions
    a page shows.
    """
    expected = set()
    shown = set()
    for place in run | {place for _, _, place, _ in history}:
        of_place = [(by, key) for _, by, at, key in history if at == place]
        latest = dict(of_place).values()
        sure = [left_by(key, place) for key in latest if key != "U"]
        is_sure = len(sure) == len(latest) > 0
        is_denied = any(place not in left for left in sure)
        stands = any(key == "A" for _, key in of_place)
        if is_sure and sure[0] == sure[-1]:
            expected |= sure[0]
        elif is_sure and all(place not in left for left in sure):
            pass  # both call it wrong, and differ on what is right
        elif place in run or (stands and not is_denied):
            expected.add(place)
        if place not in run and (any(sure) if is_sure else stands):
            shown.add(place)
    return expected, shown


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, max_size=12))
@example(steps=[("anna", True, "A"), ("anna", True, "R")])
@example(steps=[("anna", True, "A"), ("anna", True, "U"), ("ben", True, "U")])
@example(steps=[("anna", True, "A"), ("ben", True, "U")])
@example(steps=[("anna", False, "C"), ("ben", False, "X")])
@example(steps=[("anna", False, "W"), ("ben", False, "U")])
@example(steps=[("anna", True, "A"), ("anna", True, "C")])
@example(steps=[("anna", True, "A"), ("anna", True, "X"), ("ben", True, "X")])
@example(steps=[("anna", True, "A"), ("ben", True, "R"), ("anna", True, "Z")])
def test_an_added_relation_stays_until_it_is_deleted_undone_or_wrong(
    index, tmp_path_factory, steps
):
    folder = tmp_path_factory.mktemp("keys")
    client = open_client(index, folder)
    run = {place_of(RELATION), place_of(OTHER)}
    history: list[tuple[str, str, Place, str]] = []
    was_added = False
    for number, (by, new, key) in enumerate(steps):
        relation = LEADING if new else RELATION
        if key == "Z":
            entries_of_person = [entry for entry in history if entry[1] == by]
            if entries_of_person:
                send(client, f"z{number}", by=by, undoes=entries_of_person[-1][0])
                history.remove(entries_of_person[-1])
            continue
        status = 200 if (key == "A") == new or (new and was_added) else 409 if key == "A" else 404
        send(client, str(number), relation, status, by=by, **ANSWERS[key])
        was_added |= new and key == "A"
        if status == 200:
            history.append((str(number), by, place_of(relation), key))
    expected, shown = expected_relations(history, run)
    states = client.get("/api/judgements?split=val&image_id=a").json()["relations"]
    assert {place_of(state) for state in states if state["added"]} == shown
    log = JudgementLog(folder / JUDGEMENTS, index.fingerprint)
    table = read_file(index.files.storage / index.files.manifest.shards[0].file)
    [record, *_] = from_table(Corrections(log.current(), "majority").apply(table, Counter()))
    assert set(values_of(record.relations, "subject", "object", "predicate")) == expected


def test_an_answer_is_taken_back_by_its_person_only(client):
    send(client, "1", judgement="wrong")
    send(client, "2", {}, undoes="1", by="ben", status=409)
    undo = send(client, "3", {}, undoes="1")
    assert {**RELATION, "undoes": "1", "judgement": None}.items() <= undo.items()
    assert client.get("/api/judgements?split=val&image_id=a").json()["relations"] == []
    send(client, "4", {}, undoes="3", status=404)
    send(client, "5", {}, undoes="none", status=404)


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        ({"judgement": "perhaps"}, 400, "not a judgement: judgement"),
        ({"judgement": "right", "change": {"action": "swap"}}, 400, "either a judgement"),
        ({"id": "a/b"}, 400, "not a judgement: id"), ({"by": "x" * 201}, 400, "not a judgement: by"),
        ({"subject": "0"}, 400, "not a judgement: subject"), ({"further": 1}, 400, "not a judgement: further"),
        ({"image_id": "b"}, 404, "no such image"), ({"subject": 9}, 404, "no such image or boxes"),
        ({"predicate": "near"}, 404, "no such relation"), ({"plan": "p"}, 404, "no such plan"),
        ({"run": "another"}, 409, "another run"), ({"change": {"action": "add"}}, 409, "already"),
        ({"object": 0, "change": {"action": "add"}}, 400, "another object"),
        ({"predicate": " on", "change": {"action": "add"}}, 400, "outer spaces"),
        ({"predicate": "o\nn", "change": {"action": "add"}}, 400, "one line"),
        ({"predicate": "x" * 201, "change": {"action": "add"}}, 400, "200 characters"),
        ({"change": {"action": "predicate", "predicate": "a\u202eb"}}, 400, "one line"),
        ({"change": {"action": "predicate"}}, 400, "not a judgement: change"),
        ({"image_id": "nothing", "predicate": "smiling", "change": {"action": "swap"}}, 400, "cannot be swapped"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused_and_not_written(client, tmp_path, values, status, message):
    answer = values if values.keys() & {"judgement", "change"} else {"judgement": "right", **values}
    response = client.post("/api/judgements", json={"id": "1", **RELATION, **answer})
    assert (response.status_code, message in response.json()["error"]) == (
        status,
        True,
    ), response.text
    assert not lines(tmp_path)


def test_a_full_disk_is_told_and_the_answer_can_be_sent_again(client, tmp_path, monkeypatch):
    def fail(number: int, descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        for number, status in ((errno.ENOSPC, 507), (errno.EIO, 503)):
            patch.setattr(os, "fsync", partial(fail, number))
            assert send(client, status=status)["error"].startswith(os.strerror(number))
            assert lines(tmp_path) == []
    stored = send(client)
    assert lines(tmp_path) == [stored]


def plan(client: TestClient, status: int = 201, **values: object) -> dict:
    response = client.post("/api/plans", json={"kind": "bands", "count": 20, "seed": 1, **values})
    assert response.status_code == status, response.text
    return response.json()


def test_a_plan_asks_until_all_is_answered_and_says_how_precise_it_is(client, tmp_path):
    drawn = plan(client, id="p", kind="search", search="predicate=near")
    assert plan(client, id="p", kind="search", seed=2) == drawn  # the same id
    for kind in ("bands", "recall"):
        assert "another kind (search)" in plan(client, 409, id="p", kind=kind)["error"]
    assert len(lines(tmp_path)) == 1
    assert sum(values_of(drawn["strata"], "relations")) == 40
    for number in range(20):
        state = client.get("/api/plans/p").json()
        assert state["open"] == 20 - number
        assert state["more"] > 0
        question = state["question"]
        relation = {name: question[name] for name in RELATION}
        stored = send(
            client, str(number), relation, plan="p", judgement="right" if number % 4 else "wrong"
        )
        assert (stored["plan"], stored["stratum"]) == ("p", question["stratum"])
    state = client.get("/api/plans/p").json()
    assert (state["question"], state["open"], state["precision"]["judged"]) == (None, 0, 20)
    assert state["precision"]["low"] < state["precision"]["value"] < state["precision"]["high"]
    assert client.get("/judge/p", follow_redirects=False).headers["location"] == "/judge#p"
    drawn = plan(
        client, id="few", kind="search", search="predicate=near&low=0.2&high=0.3", count=100
    )
    assert (
        sum(values_of(drawn["strata"], "relations"))
        == sum(values_of(drawn["strata"], "sampled"))
        == 11
    )
    assert {question[4] for question in lines(tmp_path)[-1]["questions"]} == {"near"}
    assert plan(client, kind="predicates")["strata"][0]["name"] == "near"
    assert client.get("/api/plans/none").status_code == client.get("/judge/none").status_code == 404


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        ({"id": "certificate-0123456789ab-0"}, 400, "id"), ({"kind": "all"}, 400, "kind"),
        ({"count": "20"}, 400, "count"), ({"count": 0}, 422, "expected 1 to 10,000"), ({"seed": -1}, 400, "seed"),
        ({"run": "another"}, 409, "another run"),
        ({"kind": "search", "search": "predicate=near&low=0.9"}, 422, "no relations"),
        ({"kind": "search", "search": 'q="a caption"'}, 422, "images"),
        ({"kind": "search", "search": "low=x"}, 422, "low"),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_drawn_are_refused(client, tmp_path, values, status, message):
    response = client.post("/api/plans", json={"kind": "bands", **values})
    assert (response.status_code, message in response.json()["error"]) == (
        status,
        True,
    ), response.text
    assert not lines(tmp_path)


def test_the_page_of_plans(client, index, tmp_path):
    assert "There is no plan yet" in client.get("/judge").text
    plan(client, id="p", by=EVIL)
    send(client, "1", judgement="right")
    send(client, "2", judgement="wrong", by=EVIL)
    with (tmp_path / JUDGEMENTS).open("a") as file:
        for verdict in ("right", "wrong"):  # by other programs, which need not name the classes
            line = {
                **OTHER,
                "id": verdict,
                "at": "",
                "by": verdict,
                "run": index.fingerprint,
                "judgement": verdict,
            }
            file.write(f"{json.dumps(line)}\n")
        file.write("torn")
    page = client.get("/judge?predicate=near&q=riding").text
    assert "2 conflicts" in page
    assert EVIL not in page
    assert "1 problem in the file of judgements" in page
    assert 'value="search" checked' in page
    assert attributes(page, 'data-search="([^"]*)"') == ["q=riding&predicate=near"]
    assert "/image/val/a?relation=0-1-riding" in attributes(page, 'href="([^"]*)"')
    question = client.get("/judge/p?by=ben", follow_redirects=False)
    assert question.status_code == 303
    assert re.fullmatch(r"/image/val/\w+\?plan=p&relation=\d-\d-\w+", question.headers["location"])
    assert client.get(question.headers["location"]).status_code == 200
    assert client.get('/judge?q="unfinished').status_code == 422
    assert "cannot be sampled" in client.get('/judge?q="a caption"').text


def test_a_certificate_goes_on_round_after_round(client, tmp_path):
    response = client.post(
        "/api/plans", json={"kind": "certificate", "precision": 0.5, "by": "bob"}
    )
    assert response.status_code == 201
    name = response.json()["plan"]
    asked = []
    for _ in range(60):
        state = client.get(f"/api/plans/{name}?by=bob").json()
        question = state["question"]
        if question is None:
            break
        key = {field: question[field] for field in RELATION}
        assert key not in asked
        asked.append(key)
        assert send(client, f"q{len(asked)}", key, by="bob", plan=name)["plan"] is not None
    assert values_of(state["groups"], "share") == [1]
    planned = sum(len(line["questions"]) for line in lines(tmp_path) if "questions" in line)
    # nothing is asked in vain once all is certified
    assert (state["open"], len(asked) < planned) == (
        0,
        True,
    )
    page = client.get("/judge").text
    assert "A certificate: precision 0.5 (0.95 confidence)</h2>" in page
    assert "<code>sgpipe certify RUN --precision 0.5</code>" in page
    assert "certified, all predicates" in page
    assert client.post("/api/plans", json={"kind": "certificate", "precision": 2}).status_code in (
        400,
        422,
    )
    send(client, "undo", {}, by="bob", undoes="q1")
    assert client.get(f"/api/plans/{name}?by=bob").json()["open"] > 0


def test_the_command_of_a_certificate_has_all_settings_that_are_not_usual(client, index, tmp_path):
    log = JudgementLog(tmp_path / JUDGEMENTS, index.fingerprint)
    unusual = {"confidence": 0.99, "threshold": 0.1, "by": "predicate", "prediction": "none"}
    for changes in ({}, unusual, {"by": "predicate", "is_separate": True}):
        extend(index, settings_for(index, precision=0.9, **changes), log, "anna")
    page = client.get("/judge").text
    titles = ["(0.95 confidence)"]
    titles.append(
        "(0.99 confidence, all predicates together), of relations of confidence 0.1 or more"
    )
    titles.append("(0.95 confidence, each predicate by itself)")
    assert re.findall("<h2>A certificate: precision 0.9 (.*)</h2>", page) == titles
    options = [
        "",
        " --confidence 0.99 --by predicate --threshold 0.1 --prediction none",
        " --by predicate --each",
    ]
    assert re.findall("<code>sgpipe certify RUN --precision 0.9(.*)</code>", page) == options


def test_people_who_agree(client):
    plan(client, id="p", count=50)
    for by in ("anna", "bob"):
        for judgement, relation in (("right", RELATION), ("wrong", OTHER)):
            send(client, f"{by}{judgement}", relation, by=by, judgement=judgement, plan="p")
    sentence = "Two or more people judged 2 relations; Krippendorff's alpha is 1.00."
    assert html.unescape(client.get("/judge").text).count(sentence) == 2
    assert client.get("/api/plans/p").json()["about_answers"] == sentence


def test_answers_that_came_too_fast_are_remarked(client, index, tmp_path):
    plan(client, id="p", count=50)
    assert "within" not in client.get("/api/plans/p").json()["about_answers"]
    log = JudgementLog(tmp_path / JUDGEMENTS, index.fingerprint)
    questions = log.plans["p"].questions[:16]
    for number, question in enumerate(questions):
        line = question.key._asdict() | {
            "id": f"fast{number}",
            "at": f"2026-12-02T10:00:0{number % 3}Z",
            "by": "eve",
        }
        line |= {
            "run": index.fingerprint,
            "judgement": "right",
            "plan": "p",
            "stratum": question.stratum,
        }
        log.append(Judgement(**line))
    sentence = f"eve gave {len(questions)} answers within 5 seconds"
    assert sentence in client.get("/api/plans/p").json()["about_answers"]
    assert sentence in html.unescape(client.get("/judge").text)


def test_bodies_that_are_no_json_objects_are_refused(client):
    for body in ("", "[]", "{", '{"id": NaN}', '"x"'):
        response = client.post(
            "/api/judgements", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400


def test_doubts_are_asked_and_right_adds_what_the_run_lacks(tmp_path: Path) -> None:
    rider = Box("person", 1, (110, 40, 50, 110))
    horse = Box("horse", 2, (80, 90, 120, 110))
    boxes = [rider, horse, Box("person", 1, (2, 150, 12, 30)), Box("cup", 3, (300, 5, 8, 8))]
    make_run(tmp_path / "run", [scene("a", [(2, "holding", 3)], boxes)])
    client = open_client(tmp_path / "run", tmp_path)
    plan = client.post("/api/plans", json={"kind": "doubts", "count": 4}).json()
    asked = next(line for line in lines(tmp_path) if "questions" in line)["questions"]
    assert [question[2:5] for question in asked] == [[2, 3, "holding"], [0, 1, "ride"]]
    page = client.get(f"/api/image/val/a?plan={plan['plan']}&relation=0-1-ride").json()
    assert page["chosen"] == "0-1-ride"
    [proposed] = page["proposed"]
    assert proposed["probability"] > 0.8
    assert client.get("/api/image/val/a").json()["proposed"] == []
    missing = {**RELATION, "predicate": "ride"}
    send(client, "0", missing, status=404)  # nobody asked
    changed = {"action": "predicate", "predicate": "leading"}
    send(client, "1", missing, status=409, plan=plan["plan"], change=changed)
    stored = send(client, "2", missing, plan=plan["plan"], judgement="right")
    assert (stored["judgement"], stored["change"]["action"]) == (None, "add")
    wrong = {**RELATION, "subject": 2, "object": 3, "predicate": "holding"}
    send(client, "3", wrong, plan=plan["plan"], judgement="wrong")
    progress = client.get(f"/api/plans/{plan['plan']}").json()
    assert progress["open"] == 0
    states = JudgementLog(tmp_path / JUDGEMENTS, "drawn").current()
    assert {state.key.predicate: state.state for state in states} == {
        "ride": "right",
        "holding": "wrong",
    }
    assert "Doubts of the layout model" in client.get("/judge").text
