"""The image page of `sgpipe view` in a browser: what it shows, judging and correcting, failing
servers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from sgpipe.records import NO_OBJECT, Box, Caption, Pair, Record, Triplet
from tests.integration.browser.conftest import (
    accessibility_faults,
    eventually,
    mentions,
    shows,
    view_server,
)
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import make_run
from tests.values import values_of

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"
LONG = "a very long story of a man " * 370 + "and a man riding a horse"
MAN = Box("person", 1, (20, 30, 100, 160))
HORSE = Box("horse", 2, (90, 80, 180, 140))
DOG = Box("dog", 3, (240, 20, 60, 50))
NOTHING = Box(NO_OBJECT, 0, (0, 0, 0, 0))
IMAGES = 22


def record(
    image_id: str, *relations: tuple[int, str, int, float | None], **changes: object
) -> Record:
    return replace(scene(image_id, relations, (MAN, HORSE, DOG)), **changes)


def odd_records() -> list[Record]:
    """Rows that a page must cope with."""
    failed = record("failed", (0, "on", 1, 0.5))
    failed.fail("caption", f"image cannot be read {EVIL}")
    crowd = [Box("person", 1, (3 * (i % 100), 10 * (i // 100), 20, 30)) for i in range(500)]
    return [
        failed,
        record("evil", (0, EVIL, 1, 0.5), objects=[Box(EVIL, 1, MAN.bbox), HORSE], captions=[Caption(EVIL)]),
        record("crowd", *((i, "near", (i * 7 + 1) % 500, i / 500) for i in range(500)), objects=crowd),
        record("smile", (0, "smile", 1, None), objects=[MAN, NOTHING]), record("itself", (0, "holding", 0, 0.5)),
        record("empty", captions=[Caption("a sky")]), record("boxless", objects=[]),
        record("gone", (0, "on", 1, 0.5)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image") / "run"
    stated = {
        "captions": [Caption("A young man riding horses in a field."), Caption(LONG)],
        "triplets": [
            Triplet("man", "riding", "horses", "man", "horse", "ride", 0, "person", "horse"),
            Triplet("man", "riding", "horse", "man", "horse", "ride", 1, "person", "horse"),
            Triplet("horses", "in", "field", "horse", "field", "in", 0, "horse", None),
        ],
        "pairs": [Pair(0, 1, ["riding", "on", "next to"]), Pair(0, 2, ["riding"])],
    }
    relations = (0, "on", 1, 0.4), (0, "riding", 2, 0.2)
    common = [
        record(f"i{n}", (0, "riding", 1, 0.9 - n / 100), *relations, **stated)
        for n in range(IMAGES)
    ]
    identity = {"pair": {"candidates": "captions", "match": "head"}, "tag": {"threshold": 0.05}}
    make_run(
        root,
        [*common, *odd_records()],
        run={"name": f"mini {EVIL}", "identity": identity},
        spoilt={"gone": None},
    )
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image") / "other"
    moved = Box("person", 1, (22, 31, 100, 160))
    records = [
        record("i0", (1, "riding", 0, 0.6), (2, "near", 0, 0.3), objects=[HORSE, moved, DOG])
    ]
    make_run(root, records, run={"name": "earlier", "fingerprint": "earlier"})
    return root


@pytest.fixture(scope="module")
def server(run: Path, other: Path) -> Iterator[str]:
    with view_server(run, str(other), "--read-only") as (url, _):
        yield url


@pytest.fixture
def judging(run: Path) -> Iterator[str]:
    """A server that takes answers, from a run without any."""
    (run / "judgements.jsonl").unlink(missing_ok=True)
    with view_server(run, "--as", "anna") as (url, _):
        yield url


def open_image(visit: Any, server: str, image: str, params: str = "", **options: object) -> Any:
    page = visit(f"{server}/image/val/{image}{params}", **options)
    page.wait_for_selector("body[data-ready]")
    return page


def lines(run: Path) -> list[dict[str, Any]]:
    return list(
        map(json.loads, (run / "judgements.jsonl").read_text(encoding="utf-8").splitlines())
    )


def test_a_relation_is_shown_with_where_it_comes_from(visit, server):
    page = open_image(visit, server, "i3", "?q=person+riding+*&relation=0-1-riding")
    shows(page, "#provenance h2", "person riding horse")
    mentions(page, "#provenance dl", "0.87, number 1 of 2 of this pair")
    statement = page.locator(".statement").first
    expect(statement.locator("p mark")).to_have_text(["man", "riding", "horses"])
    expect(statement).to_contain_text("horses → horse (head noun “horse”)", use_inner_text=True)
    expect(statement).to_contain_text("man → person (synonym)", use_inner_text=True)
    second = page.locator(".statement p").nth(1).inner_text()
    assert second.endswith("man riding a horse")
    assert len(second) < 400  # of ten thousand characters, those around the words
    rows = page.locator("#provenance tbody tr")
    expect(rows).to_have_text(["riding 0.87", "on 0.40", "next to not kept"], use_inner_text=True)
    expect(page.locator(".edge.lit .link")).not_to_have_count(0)
    expect(page.locator(".stage .box-name")).to_have_count(2)
    expect(page.locator("#graph .edge.lit")).to_have_count(2)  # its line and its text
    page.locator("#captions details.fold summary").click()
    expect(page.locator("#captions details.fold p")).to_have_text(LONG, use_inner_text=True)


def test_the_image_is_zoomed_and_moved(visit, server):
    page = open_image(visit, server, "i0", "?relation=0-2-riding")
    stage = page.locator(".stage").first
    window = lambda: list(map(float, stage.get_attribute("viewBox").split()))  # noqa: E731
    eventually(window, [0, 0, 320, 240])
    page.keyboard.press("+")
    eventually(lambda: window()[2], pytest.approx(320 / 1.5))
    before = window()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 120, steps=3)
    page.mouse.up()
    eventually(lambda: (window()[0] > before[0], window()[1] > before[1]), (True, True))
    shows(page, "#sentence", "person riding dog")  # a drag is no click
    button = page.get_by_role("button", name="Whole image").first
    for show_all in (
        lambda: page.keyboard.press("0"),
        lambda: page.keyboard.press("f"),
        button.click,
    ):
        show_all()  # "f": the two boxes need all of it
        eventually(window, [0, 0, 320, 240])
        page.keyboard.press("+")
        eventually(lambda: window()[2], pytest.approx(320 / 1.5))


def test_two_runs_stand_side_by_side_with_what_differs(visit, server):
    page = open_image(visit, server, "i0")
    for number, heading in enumerate(
        ["+ Only in this run (2)", "− Only in other (1)", "= In both (1)"], 1
    ):
        shows(page, f"#comparison section:nth-child({number}) h3", heading)
    expect(page.locator("#comparison section")).to_have_count(3)
    shows(page, "#comparison section:nth-child(3) li", "person riding horse 0.90 | 0.60")
    expect(page.locator(".stage")).to_have_count(2)
    other = page.locator(".viewport").nth(1)
    expect(other.locator(".edge.lit")).to_have_count(1)  # the same relation, other numbers
    page.locator("#comparison section:nth-child(2) button").click()
    expect(other.locator(".edge-name")).to_have_text("\u2068near (only here)\u2069")
    page = open_image(visit, server, "i1")
    shows(page, "#comparison p", "It does not have this image.")


def test_odd_rows_are_shown(visit, server):
    expected = {
        "failed": "on", "evil": EVIL, "crowd": "near", "smile": "It is annotated", "itself": "holding",
        "empty": "It has no relations: no triplet in the captions.", "boxless": "no objects", "gone": "on",
    }  # fmt: skip
    for image, text in expected.items():
        page = open_image(visit, server, image)
        mentions(page, "#provenance", text)
        if image == "failed":
            shows(page, "#failed", f"The image failed: caption: image cannot be read {EVIL}")
        if image == "crowd":
            expect(page.locator(".stage .object")).to_have_count(500)
        expect(page.locator("#main script")).to_have_count(1)  # the values
        expect(page.locator("img")).to_have_count(0)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_and_has_no_accessibility_fault(visit, judging, width, scheme):
    page = open_image(visit, judging, "i0", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("r")
    mentions(page, "#status", "Saved")
    assert accessibility_faults(page) == []
    page.keyboard.press("a")
    page.keyboard.press("h")  # the first letter chooses the box
    expect(page.locator("select[name=subject]")).to_have_value("1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert accessibility_faults(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    assert accessibility_faults(page) == []


def judge_all(page: Any, start: int, stop: int) -> None:
    """Judge the first hit of each image by key."""
    for number in range(start, stop):
        shows(page, "#image-id", f"i{number}")
        page.keyboard.press("rwus"[number % 4])
    shows(page, "#image-id", f"i{stop}")


def test_a_search_is_judged_by_keyboard_although_the_server_is_killed(browser, run):
    (run / "judgements.jsonl").unlink(missing_ok=True)
    page = browser.new_context().new_page()
    with view_server(run, "--as", "anna") as (url, process):
        page.goto(url)
        page.keyboard.press("/")
        page.keyboard.type("person riding horse")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=person+riding+horse**")
        page.goto(f"{page.url}&low=0.5")
        page.locator(".card a").first.click()
        page.wait_for_selector("body[data-ready]")
        mentions(page, "#provenance dl", "number 1 of 2")
        judge_all(page, 0, 10)
        process.kill()
        process.wait()
    with view_server(run, "--as", "anna", port=url.rpartition(":")[2]):
        judge_all(page, 10, IMAGES - 1)
        page.keyboard.press("x")
        mentions(page, "#status", "last hit of the search")
        page.keyboard.press("z")
        mentions(page, "#status", "taken back")
        page.keyboard.press("c")
        page.keyboard.type("sitting on")
        page.keyboard.press("Enter")
        mentions(page, "#provenance .answers", "changed to “sitting on”")
    answers = lines(run)
    assert values_of(answers[:-3], "image_id") == [f"i{number}" for number in range(IMAGES - 1)]
    assert (
        values_of(answers[:-3], "judgement")
        == (["right", "wrong", "unsure", "skip"] * 6)[: IMAGES - 1]
    )
    changes = [line["change"] and line["change"]["action"] for line in answers[-3:]]
    assert (changes, answers[-1]["change"]["predicate"]) == (
        ["swap", None, "predicate"],
        "sitting on",
    )
    assert answers[-2]["undoes"] == answers[-3]["id"]
    assert set(values_of(answers, "by")) == {"anna"}
    page.context.close()


def test_a_relation_is_added_by_two_clicks_and_typing(visit, run, judging):
    page = open_image(visit, judging, "i1")
    page.keyboard.press("a")
    page.locator(".stage [data-object='2']").click(position={"x": 5, "y": 5}, force=True)
    page.locator(".stage [data-object='1']").click(position={"x": 100, "y": 100}, force=True)
    page.keyboard.type("rid")
    page.locator("datalist option[value=riding]").wait_for(state="attached")
    page.keyboard.press("Control+A")
    page.keyboard.type("barking  at")
    page.keyboard.press("Enter")
    shows(page, "#sentence", "dog barking at horse")  # soon after it is saved
    [line] = lines(run)
    assert (line["subject"], line["object"], line["predicate"]) == (2, 1, "barking at")
    assert (line["change"]["action"], line["confidence"]) == ("add", None)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    shows(page, "#sentence", "dog barking at horse")
    mentions(page, "#provenance", "added by hand")


def test_answers_that_are_not_saved_are_kept_and_sent_again(browser, run, judging):
    page = browser.new_context().new_page()
    page.goto(f"{judging}/image/val/i2")
    page.wait_for_selector("body[data-ready]")
    full = {"status": 507, "json": {"error": "not saved: No space left on device"}}
    # not those with parameters
    page.route("**/api/judgements", lambda route: route.fulfill(**full))
    page.keyboard.press("r")
    mentions(page, "#unsaved", "No space left on device")
    page.keyboard.press("w")  # goes nowhere: the first answer is not saved
    shows(page, "#sentence", "person riding horse")
    expect(page.locator("[data-act=wrong]")).to_have_attribute("aria-disabled", "true")
    page.reload()
    mentions(page, "#unsaved", "riding")
    assert not (run / "judgements.jsonl").exists()
    page.unroute("**/api/judgements")
    page.get_by_role("button", name="Try again").click()
    mentions(page, "#status", "saved now")
    [line] = lines(run)
    assert (line["image_id"], line["predicate"], line["judgement"]) == ("i2", "riding", "right")
    page.context.close()
