"""The gallery and the page of an image: what is found is shown, and where relations come from."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from sgpipe.recipe import PairConfig
from sgpipe.records import NO_OBJECT, Box, Caption, Pair, Record, Relation, Triplet
from sgpipe.stages.pair import PairStage
from sgpipe.storage.index import IndexedImage, RecordView
from sgpipe.storage.judgement_lines import Judgement
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.view.image_page import MOST_RELATIONS, compare_images, image_values, match_objects
from sgpipe.view.pages import image_url
from sgpipe.view.provenance import Provenance
from tests.sgpipe.stats.runs import CUP, DOG, PERSON, scene
from tests.sgpipe.view.gallery_run import EVIL, STRANGE, attributes, make_gallery_run, open_client
from tests.values import values_of

RUN = {"identity": {"pair": {"candidates": "captions"}, "tag": {"threshold": 0.05}}}
MAN = Triplet("young man", "riding", "horses", "man", "horse", "ride", 0)
BOXES = [Box("person", 1, (0, 0, 9, 9)), Box("horse", 2, (5, 5, 9, 9)), Box("dog", 3, (7, 7, 9, 9))]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return open_client(make_gallery_run(tmp_path_factory.mktemp("view") / "run"))


def get(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def cards(page: str) -> list[str]:
    """The sentences of the cards."""
    texts = re.findall(
        r'<span class="sentence[^"]*">(.*?)</span>\s*(?:<span class="caption"|</a>)',
        page,
        re.DOTALL,
    )
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split()) for text in texts]


def test_each_relation_is_a_card_with_its_drawing(client: TestClient) -> None:
    page = get(client, "/?q=person+riding+*")
    assert cards(page) == ["person riding horse"] * 3
    assert attributes(page, r'class="number confidence"[^>]*>([^<]+)') == ["0.90", "0.70", "0.60"]
    assert page.count('<polygon class="head"') == 3
    assert '<rect class="subject" x="2.0" y="2.0" width="8.0" height="8.0"/>' in page
    assert "3</span> relations" in page


def test_all_pages_together_show_every_hit_once(client: TestClient) -> None:
    links = ["/?predicate=near&order=-confidence"]
    seen = []
    while links:
        page = get(client, links[0])
        seen.append(attributes(page, r'<span class="id" title="val/([^"]+)"'))
        links = attributes(page, r'rel="next" href="([^"]+)"')
    assert [image for shown in seen for image in shown] == [
        f"n{number}" for number in range(1, 100)
    ]
    assert len(seen) == 3


def test_facets_add_and_remove_a_value(client: TestClient) -> None:
    page = get(client, "/?predicate=riding")
    both = attributes(page, r'<a href="([^"]+)" >\s*<span class="value"><bdi>near<')[0]
    assert both == "/?predicate=riding&predicate=near"
    page = get(client, both)
    assert "102</span> relations" in page
    assert "/?predicate=riding" in attributes(page, r'<a class="chip" href="([^"]+)"')
    chosen = attributes(
        page, r'<a href="([^"]+)" aria-current="true">\s*<span class="value"><bdi>near<'
    )
    assert chosen == ["/?predicate=riding"]


@pytest.mark.parametrize(
    "path",
    [f"/?predicate={EVIL}", f"/?q='{EVIL}'", "/?status=error", f'/?q="{EVIL}"', f"/?q={EVIL}"],
)
def test_nothing_from_the_data_is_read_as_html(client: TestClient, path: str) -> None:
    page = get(client, path)
    assert "&lt;script&gt;alert(" in page
    assert (
        re.sub(r'<script (type="module" )?src="/static/\w+\.js">', "", page).count("<script") == 0
    )


def test_a_bug_is_one_line_for_the_browser(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("sgpipe.view.gallery.search", fail)
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    quiet = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False)
    answer = quiet.get("/")
    assert (answer.status_code, "internal error: KeyError" in answer.text) == (500, True)
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_judgements_of_another_server_are_in_the_next_search(client: TestClient) -> None:
    assert 'class="chip judged right"' not in get(client, "/?q=riding")
    of_relation = {
        "split": "val",
        "image_id": "a",
        "subject": 0,
        "object": 1,
        "predicate": "riding",
    }
    by_bob = {
        "id": "1",
        "at": "2026-11-26T09:00:00Z",
        "by": "bob",
        "run": "drawn",
        "judgement": "right",
    }
    root = client.app.state.freshness.viewer.index.root
    JudgementLog(root / JUDGEMENTS, "drawn").append(
        Judgement.model_validate({**of_relation, **by_bob})
    )
    assert get(client, "/?q=riding").count('class="chip judged right"') == 1


@pytest.mark.parametrize("path", ["/", "/judge", "/image/val/a", "/api/neighbours/val/a"])
@pytest.mark.parametrize("values", [list(map(str, range(2000))), ["x" * 20_000]])
def test_a_search_of_very_many_values_is_refused(
    client: TestClient, path: str, values: list[str]
) -> None:
    answer = client.get(path, params=[("predicate", value) for value in values])
    assert (answer.status_code, len(answer.content) < 10_000) == (422, True)


def values(
    record: Record, clip_score: Any = None, chosen: str | None = None, vlm_score: Any = None
) -> dict[str, Any]:
    scores = {"clip_score": clip_score or [], "vlm_score": vlm_score or []}
    image = IndexedImage(0, "coco", "val", "a", "a.jpg", 1, 1, False, None, "data/val.parquet", 7)
    shown = image_values(RecordView(record, image, scores), RUN, chosen)
    return json.loads(json.dumps(shown, allow_nan=False))


def test_everything_that_the_page_shows_is_there() -> None:
    record = scene(
        "a/b",
        [(0, "on", 1, 0.4), (0, "near", 1, 0.9), (2, "under", 1)],
        captions=["a man on a dog"],
    )
    record.triplets = [Triplet("man", "on", "dog", "man", "dog", "on", 0, "person", "dog")]
    record.pairs = [Pair(0, 1, ["on", "near", "with"]), Pair(1, 0, ["on"])]
    shown = values(
        record, clip_score=[{"score": 0.31}, None, None], vlm_score=[0.75, float("nan"), None]
    )
    assert shown["image"]["photo"] == "/photo/val/a/b"
    assert values_of(shown["relations"], "key") == ["2-1-under", "0-1-near", "0-1-on"]
    on = shown["relations"][2]
    assert (on["rank"], on["stated"], on["clip_score"], on["vlm_score"]) == (
        2,
        [0],
        {"score": 0.31},
        0.75,
    )
    assert values_of(shown["relations"][:2], "vlm_score") == [None, None]
    assert values_of(shown["candidates"]["0-1"], "predicate") == ["near", "on", "with"]
    assert "1-0" not in shown["candidates"]  # only pairs with relations
    assert set(values_of(shown["graph"]["edges"], "key")) == {"2-1-under", "0-1-near", "0-1-on"}
    assert (shown["total"], shown["why"]) == (3, None)


def test_of_very_many_relations_the_most_confident_and_the_chosen_one_are_there() -> None:
    boxes = [Box("person", 1, (i % 300, i % 200, 9, 9)) for i in range(500)]
    relations = [(i % 500, f"p{i}", (i + 1) % 500, i / 5000) for i in range(MOST_RELATIONS + 500)]
    shown = values(scene("0", relations, boxes), chosen="3-4-p3")
    assert (len(shown["relations"]), shown["total"]) == (MOST_RELATIONS + 1, MOST_RELATIONS + 500)
    assert shown["relations"][-1]["key"] == shown["graph"]["edges"][-1]["key"] == "3-4-p3"
    assert len(json.dumps(shown)) < 2_000_000


@pytest.mark.parametrize(
    "record",
    [
        scene("0", objects=()), scene("0", [(0, "smile", 1)], [PERSON, Box(NO_OBJECT, 0, (0, 0, 0, 0))]),
        scene("0", [(0, "on", 0, 0.5)]), scene("0", [(0, "on", 1, math.inf)]),
        scene("0", [(0, "on", 1, 0.5)], [PERSON, Box("dog", 2, (1, math.nan, 5, 5))]),
        Record("0", "d", "val", "x.jpg", 0, 0, [PERSON, DOG], relations=[Relation(0, 1, "on")]),
        scene("0", [(0, "on", 1, 0.5)], captions=["x" * 10_000]),
    ],
)  # fmt: skip
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
    first_relations = [
        Relation(0, 1, "on", 0.5),
        Relation(0, 1, "near", 0.5),
        Relation(2, 0, "by", 0.1),
    ]
    second_relations = [Relation(1, 0, "on", 0.7), Relation(0, 1, "near", 0.2)]
    first = Record("", "", "", "", 9, 9, [PERSON, DOG, CUP], relations=first_relations)
    second = Record(
        "", "", "", "", 9, 9, [moved(DOG, 1), moved(PERSON, 1)], relations=second_relations
    )
    assert compare_images(first, second) == (
        [(first_relations[0], second_relations[0])],
        first_relations[1:],
        second_relations[1:],
    )


def page_values(client: TestClient, path: str) -> dict[str, Any]:
    """The values that a page is drawn from, which are those of its JSON answer."""
    page = client.get(f"/image{path}")
    assert page.status_code == 200, page.text
    [script] = re.findall(
        r'<script type="application/json" id="values">(.*?)</script>', page.text, re.DOTALL
    )
    answered = client.get(f"/api/image{path}").json()
    assert json.loads(script) == answered
    return answered


def test_a_page_leads_on_within_its_search(client: TestClient) -> None:
    shown = page_values(client, "/val/a?q=person+riding+*&relation=0-1-riding&after=x")
    assert shown["chosen"] == "0-1-riding"
    assert (shown["previous"], shown["next"]) == (
        None,
        "/image/val/gone?q=person+riding+%2A&relation=0-1-riding",
    )
    assert shown["gallery"] == "/?q=person+riding+%2A"
    beside = client.get("/api/neighbours/val/gone?q=person+riding+*&relation=0-1-riding").json()
    assert beside["previous"] == "/image/val/a?q=person+riding+%2A&relation=0-1-riding"


def test_names_with_markup_are_text_and_reach_their_page(client: TestClient) -> None:
    path = image_url("val", STRANGE).removeprefix("/image")
    shown = page_values(client, path)
    assert shown["relations"][0]["predicate"] == EVIL
    assert EVIL not in client.get(f"/image{path}").text


def test_an_image_that_the_run_does_not_have_is_not_found(client: TestClient) -> None:
    assert client.get("/image/val/nothing").status_code == 404
    assert client.get("/api/image/val/nothing").json() == {
        "error": "the run has no image 'nothing' in 'val'"
    }


def test_predicates_are_suggested_by_how_often_they_occur(client: TestClient) -> None:
    suggested = client.get("/api/predicates?prefix=ne").json()
    assert suggested == [{"predicate": "near", "count": 99}, {"predicate": "next to", "count": 1}]


def header(imported: str | None = None, **pair: object) -> dict[str, Any]:
    """The header of an imported run, or of a generated one with these settings of the pair
    stage.
    """
    return {
        "identity": {"import": imported} if imported else {"pair": pair, "tag": {"threshold": 0.05}}
    }


def paired(triplets: list[Triplet], **settings: object) -> Record:
    """A record with the pairs that the pair stage finds."""
    captions = [Caption("a young man riding horses"), Caption("a dog near a horse")]
    record = Record(
        "0", "coco", "val", "0.jpg", 20, 20, list(BOXES), captions, list(map(replace, triplets))
    )
    stage = PairStage(PairConfig(**settings), "coco", [])
    stage.setup()
    [record_with_pairs] = stage([record])
    return record_with_pairs


@pytest.mark.parametrize("match", ["head", "substring"])
def test_a_candidate_leads_back_to_the_triplets_that_state_it(match: str) -> None:
    spelled = replace(MAN, predicate="Riding  On")
    record = paired([MAN, spelled, replace(MAN, caption=1)], match=match)
    provenance = Provenance(record, header(candidates="captions", match=match))
    stated = {}
    for pair in record.pairs:
        for predicate in pair.predicates:
            relation = Relation(pair.subject, pair.object, predicate, 0.5)
            stated[predicate] = provenance.stating(relation)
            number = 2 if predicate == "riding" else 1
            assert (
                provenance.explain(relation)
                == f"Stated by {number} of 2 captions for these two classes."
            )
    assert stated == {"riding": [0, 2], "riding on" if match == "head" else "Riding  On": [1]}


def test_with_candidates_of_the_whole_image_a_pair_may_carry_what_is_said_of_others() -> None:
    record = paired([MAN], candidates="image")
    provenance = Provenance(record, header(candidates="image", match="head"))
    relation = Relation(0, 1, "riding", 0.9)
    other = Relation(2, 1, "riding", 0.1)
    assert (provenance.stating(relation), provenance.stating(other)) == ([0], [0])
    assert "pair.candidates: image" in provenance.explain(other)


@pytest.mark.parametrize(
    ("run", "confidence", "origin"),
    [
        (header(candidates="captions", restrict="group"), 0.4, "candidate of another pair"),
        (header(imported="visual_genome"), None, "It is annotated"),
        (header(imported="rlip"), 0.4, "does not say"),
        ({}, 0.4, "does not say"),
    ],
)
def test_a_relation_that_no_caption_states_says_so(
    run: dict[str, Any], confidence: float | None, origin: str
) -> None:
    record = Record(
        "0", "vg", "val", "0.jpg", 20, 20, list(BOXES), relations=[Relation(0, 1, "on", confidence)]
    )
    provenance = Provenance(record, run)
    assert origin in provenance.explain(record.relations[0])
    [candidate] = provenance.candidates[0, 1]
    values = {"own": False, "relation": True, "rank": None if confidence is None else 1}
    assert candidate == {"predicate": "on", "confidence": confidence, **values}


def test_candidates_are_ranked_by_confidence_and_those_without_come_last() -> None:
    record = paired([replace(MAN, predicate=text) for text in ("riding", "on", "near", "at")])
    scores = (("on", 0.2), ("near", 0.7), ("near", 0.6), ("by", None))
    record.relations = [Relation(0, 1, predicate, confidence) for predicate, confidence in scores]
    candidates = Provenance(record, header(candidates="captions")).candidates[0, 1]
    assert [tuple(candidate.values()) for candidate in candidates] == [
        ("near", 0.7, 1, True, True),
        ("on", 0.2, 2, True, True),
        ("by", None, None, True, False),
        ("riding", None, None, False, True),
        ("at", None, None, False, True),
    ]


def test_what_a_caption_implies_is_a_statement() -> None:
    boxes = [Box("person", 1, (0, 0, 9, 9)), Box("skis", 35, (5, 5, 9, 9))]
    pairs = [Pair(0, 1, ["skiing on"])]
    captions = [Caption("snow"), Caption("A skier.")]
    record = Record("0", "coco", "val", "0.jpg", 20, 20, boxes, captions, pairs=pairs)
    for loose, origin in (
        (True, "Implied by 1 of 2 captions for these two"),
        (False, "The run does not say"),
    ):
        provenance = Provenance(record, header(candidates="captions", match="head", loose=loose))
        assert provenance.explain(Relation(0, 1, "skiing on", 0.5)).startswith(origin)
        assert values_of(provenance.statements, "caption", "implied") == [(1, True)] * loose


def test_the_settings_are_those_of_the_last_run_that_has_them() -> None:
    identity = header(candidates="image", match="head")["identity"]
    record = paired([MAN], candidates="image")
    other = header(candidates="captions", match="head")["identity"]
    for run, says in (
        ({"origin": [{"import": "vg"}], "identity": identity}, "pair.candidates: image"),
        ({"origin": [other, identity], "identity": {"scored": "x"}}, "pair.candidates: image"),
        ({"origin": [identity], "identity": other}, "does not say"),
        (header(candidates="captions", known=3), "was extended often has it"),
        ({"identity": {"pair": 3}}, "does not say"), ({"origin": [None], "identity": {}}, "does not say"),
        ({"identity": {"pair": {"candidates": [], "match": {}}}}, "does not say"),
    ):  # fmt: skip
        assert says in Provenance(record, run).explain(Relation(2, 1, "riding", 0.1))
