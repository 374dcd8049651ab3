"""The page of plans of `sgpipe view` in a browser."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgpipe.storage.judgements import JUDGEMENTS
from tests.integration.browser.conftest import accessibility_faults, view_server
from tests.sgpipe.view.gallery_run import EVIL, make_gallery_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gallery_run(tmp_path_factory.mktemp("view") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[str]:
    with view_server(run, "--as", "anna") as (url, _):
        yield url


def answers(run: Path) -> list[dict]:
    return [line for line in map(json.loads, (run / JUDGEMENTS).read_text().splitlines()) if "verdict" in line]


def press(page: Any, key: str, has_worked: Callable[[], bool]) -> None:
    """Press a key; again if nothing has come of it, as the page was on its way to the next image."""
    for _ in range(10):
        page.keyboard.press(key)
        for _ in range(30):
            page.wait_for_timeout(100)
            if has_worked():
                return
    raise AssertionError(f"{key} does nothing")


def post(page: Any, path: str, body: dict[str, object]) -> None:
    script = """([path, body]) => fetch(path, { method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body) }).then((response) => response.ok)"""
    assert page.evaluate(script, [path, body])


def test_a_search_is_sampled_and_judged_by_keyboard_and_its_precision_followed(visit, server, run):
    page = visit(f"{server}/?predicate=near")
    page.get_by_role("link", name="Judge a sample").click()
    page.wait_for_url("**/judge?predicate=near")
    assert page.get_by_label("this search: predicate near").is_checked()
    page.get_by_label("Judging as").fill("ben")
    page.get_by_label("Questions").fill("5")
    page.get_by_label("Seed").fill("1")
    page.get_by_role("button", name="Draw the sample").click()
    page.wait_for_url("**/image/val/n**plan=**")
    heights = set()
    for left in range(5, 0, -1):
        page.locator("#precision", has_text=f"Plan: {left} question").wait_for()
        heights.add(page.locator(".judge-bar").bounding_box()["height"])
        press(page, "w" if left == 3 else "r", lambda: len(answers(run)) == 6 - left)  # noqa: B023
    page.locator("#precision", has_text="Plan: 0 questions").wait_for()
    assert len(heights) == 1  # the buttons stay where they are
    said = answers(run)
    assert [(each["verdict"], each["by"], each["plan"] is None) for each in said] == [
        ("wrong" if number == 2 else "right", "ben", False) for number in range(5)
    ]
    page.goto(f"{server}/judge")
    card = page.locator(".plan")
    card.get_by_text("5 answered, 0 unsure, 0 open").wait_for()
    assert card.locator("[data-show=value]").inner_text().endswith("%")
    assert "95% interval" in card.locator("[data-show=interval]").inner_text()
    card.locator("[data-show=more]", has_text="until ±3%").wait_for()
    assert card.locator("[data-go]").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_people_can_use_it(visit, server, run, scheme):
    page = visit(f"{server}/judge?predicate={EVIL}", scheme=scheme)
    post(page, "/api/plans", {"kind": "predicates", "count": 30, "seed": 1, "id": "evil", "by": EVIL})
    relation = {"split": "val", "image_id": "a", "subject": 0, "object": 1, "predicate": "riding"}
    for by, verdict in (("anna", "wrong"), ("ben", "right")):
        post(page, "/api/judgements", {**relation, "id": by, "by": by, "verdict": verdict})
    page.reload()
    page.locator("[data-show=more]", has_text="until").first.wait_for()
    assert page.get_by_role("region", name="Conflicts").get_by_text("anna: wrong; ben: right").is_visible()
    assert accessibility_faults(page) == []


@pytest.mark.parametrize("width", [390, 768, 1920])
def test_nothing_is_wider_than_the_screen(visit, server, width):
    page = visit(f"{server}/judge?q=riding", width)
    for details in page.locator("details").all():
        details.evaluate("(element) => { element.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
