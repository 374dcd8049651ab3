"""The page of plans of `sgpipe view` in a browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sgpipe.storage.judgement_lines import RelationKey
from sgpipe.storage.judgements import JUDGEMENTS
from tests.integration.browser.conftest import accessibility_faults, view_server
from tests.sgpipe.view.gallery_run import EVIL, make_gallery_run
from tests.values import values_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gallery_run(tmp_path_factory.mktemp("view") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[str]:
    with view_server(run, "--as", "anna") as (url, _):
        yield url


def lines(run: Path, kind: str) -> list[dict]:
    """The lines of the file of judgements that have this field."""
    return [
        line
        for line in map(json.loads, (run / JUDGEMENTS).read_text().splitlines())
        if line.get(kind)
    ]


def test_a_search_is_sampled_and_judged_by_keyboard_and_its_precision_followed(visit, server, run):
    page = visit(f"{server}/?predicate=near")
    page.get_by_role("link", name="Judge a sample").click()
    page.wait_for_url("**/judge?predicate=near")
    expect(page.get_by_label("this search: predicate near")).to_be_checked()
    page.get_by_label("Judging as").fill("ben")
    page.get_by_label("Questions", exact=True).fill("5")
    page.get_by_label("Seed").fill("1")
    page.get_by_role("button", name="Draw the sample").click()
    page.wait_for_url("**/image/val/n**plan=**")
    heights = set()
    for left in range(5, 0, -1):  # the precision follows once the next question is there
        expect(page.locator("#precision")).to_contain_text(f"Plan: {left} question")
        heights.add(page.locator(".judge-bar").bounding_box()["height"])
        page.keyboard.press("w" if left == 3 else "r")
    expect(page.locator("#precision")).to_contain_text("Plan: 0 questions")
    assert len(heights) == 1  # the buttons stay where they are
    answers = [
        (line["judgement"], line["by"], line["plan"] is None) for line in lines(run, "judgement")
    ]
    assert answers == [("wrong" if number == 2 else "right", "ben", False) for number in range(5)]
    page.goto(f"{server}/judge")
    card = page.locator(".plan")
    expect(card.locator("[data-show=counts]")).to_have_text("5 judged, 0 unsure, 0 open")
    expect(card.locator("[data-show=value]")).to_have_text(re.compile(r"\d%$"))
    expect(card.locator("[data-show=interval]")).to_contain_text("95% interval")
    expect(card.locator("[data-show=more]")).to_contain_text("until ±3%")
    expect(card.locator("[data-go]")).to_be_hidden()


def test_what_holds_between_boxes_is_named_by_keyboard_and_what_the_run_has_stays_hidden(
    visit, server, run
):
    page = visit(f"{server}/judge")
    page.get_by_label("recall, blind").check()
    page.get_by_label("Questions", exact=True).fill("3")
    page.get_by_label("Seed").fill("2")
    page.get_by_role("button", name="Draw the sample").click()
    page.wait_for_url("**/recall/*")
    expect(page.locator("#about")).to_contain_text("Question 1 of 3")
    expect(page.locator(".stage .box-name")).to_have_count(3)
    assert accessibility_faults(page) == []
    page.keyboard.type("1 rid")
    expect(page.locator("#suggested")).to_have_text("Tab: riding")
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    page.keyboard.type("2 near 9")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("numbered from 1 to 3")
    page.keyboard.press("Escape")
    page.keyboard.type("2 far from 1")
    page.keyboard.press("Enter")
    expect(page.locator("#named li")).to_have_count(2)
    page.keyboard.press("Backspace")
    expect(page.locator("#named li")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("Question 2 of 3")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#named li")).to_have_text(re.compile("1 person riding 2 horse"))
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("Question 2 of 3")
    page.keyboard.type("-")
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("Question 3 of 3")
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("Question 2 of 3, 1 open")
    answers = [
        line
        for line in lines(run, "plan")
        if line["plan"] == page.url.split("/")[-1] and "images" not in line
    ]
    named = values_of(answers, "relations")
    assert named == [[{"subject": 0, "object": 1, "predicate": "riding"}]] * 2 + [None, []]
    page.get_by_role("link", name="Plans").click()
    expect(page.locator(".plan", has_text="Recall, blind")).to_contain_text("2 of")


def test_a_certificate_is_answered_by_keyboard_until_all_is_certified(visit, server, run):
    page = visit(f"{server}/judge")
    page.get_by_label("for a certificate").check()
    expect(page.get_by_label("Questions", exact=True)).to_be_hidden()
    page.get_by_label("Precision", exact=True).fill("0.5")
    page.get_by_role("button", name="Draw the sample").click()
    page.wait_for_url("**/image/**plan=certificate**")
    counter = page.locator("#precision")
    plan = page.url.split("plan=")[1].split("&")[0]
    expect(counter).to_have_text(
        re.compile("^Certificate: .*; [0-9]+ questions left in this round$")
    )
    [first] = lines(run, "certificate")
    # the first round, but for one, by another person
    for number, question in enumerate(first["questions"][:-1]):
        key = dict(zip(RelationKey._fields, question[:5], strict=True))
        line = {**key, "id": f"c{number}", "by": "cleo", "judgement": "right", "plan": plan}
        assert page.request.post(f"{server}/api/judgements", data=line).ok
    page.goto(f"{server}/judge/{plan}")
    page.wait_for_selector("body[data-ready=true]")
    expect(counter).to_contain_text("1 question left")
    for _ in range(40):
        address = page.url
        progress = counter.text_content()
        page.keyboard.press("r")
        expect(counter).not_to_have_text(progress)
        if "all is certified" in counter.text_content():
            break
        page.wait_for_url(lambda url, address=address: url != address)
    expect(page.locator("#status")).to_contain_text("Nothing is left to ask")
    page.goto(f"{server}/judge")
    card = page.locator(".plan", has_text="A certificate: precision 0.5")
    expect(card).to_contain_text("sgpipe certify RUN --precision 0.5")
    expect(card.locator("[data-show=groups]")).to_contain_text("certified, all predicates")
    expect(card.locator("[data-go]")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_people_can_use_it(visit, server, run, scheme):
    page = visit(f"{server}/judge?predicate={EVIL}", scheme=scheme)
    evil = {"kind": "predicates", "count": 30, "seed": 1, "id": "evil", "by": EVIL}
    assert page.request.post(f"{server}/api/plans", data=evil).ok
    relation = {"split": "val", "image_id": "a", "subject": 0, "object": 1, "predicate": "riding"}
    for by, judgement in (("anna", "wrong"), ("ben", "right")):
        line = {**relation, "id": by, "by": by, "judgement": judgement}
        assert page.request.post(f"{server}/api/judgements", data=line).ok
    page.reload()
    expect(page.locator("#evil [data-show=more]")).to_contain_text("until")
    expect(
        page.get_by_role("region", name="Conflicts").get_by_text("anna: wrong; ben: right")
    ).to_be_visible()
    assert accessibility_faults(page) == []
