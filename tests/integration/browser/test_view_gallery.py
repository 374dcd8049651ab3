"""The gallery of `sgpipe view` in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.integration.browser.conftest import accessibility_faults, view_server
from tests.sgpipe.view.gallery_run import EVIL, make_gallery_run
from tests.values import values_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = make_gallery_run(tmp_path_factory.mktemp("view") / "run")
    with view_server(run, "--read-only") as (url, _):
        yield url


def test_a_search_is_narrowed_by_keyboard_and_mouse(visit, server):
    page = visit(f"{server}/")
    page.keyboard.press("/")
    page.keyboard.type("person riding *")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=person+riding+*")
    total = page.locator("#total")
    expect(total).to_have_text("3 relations in 3 images")
    box = page.locator(".histogram").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.66, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + 20)
    page.mouse.up()
    page.wait_for_url("**low=0.65**")
    expect(total).to_have_text("2 relations in 2 images")
    page.get_by_label("Order").select_option("-confidence")
    page.wait_for_url("**order=-confidence**")
    expect(page.locator(".card .confidence")).to_have_text(["0.70", "0.90"])
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url("**/image/val/a?**relation=0-1-riding")
    page.go_back()
    expect(total).to_have_text("2 relations in 2 images")


def test_cards_are_judged_by_key(visit, tmp_path: Path):
    run = make_gallery_run(tmp_path / "run")
    with view_server(run, "--as", "anna") as (url, _):
        page = visit(f"{url}/?q=riding")
        page.keyboard.press("ArrowRight")
        for number, key in enumerate("rwu"):
            page.keyboard.press(key)
            page.locator(".card").nth(number).locator(".chip.judged").wait_for()
        page.keyboard.press("z")
        page.locator(".chip.judged.unsure").wait_for(state="detached")
        page.reload()
        expect(page.locator(".chip.judged:visible")).to_have_text(["right", "wrong"])
        page.context.close()  # it would complain that the server is gone
    lines = map(json.loads, (run / "judgements.jsonl").read_text().splitlines())
    judgements = values_of(lines, "by", "judgement")
    assert judgements == [("anna", judgement) for judgement in ("right", "wrong", "unsure", None)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_and_axe_finds_nothing_serious(visit, server, scheme):
    searches = (
        f'?q="very long"&predicate={EVIL}',
        "?q=person riding *&low=0.5",
        "?q=ridin",
        "?status=error",
    )
    for path in ("/", *(f"/{search}" for search in searches)):
        page = visit(f"{server}{path}", scheme=scheme)
        for width in (390, 768, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert accessibility_faults(page) == [], path
        page.context.close()
