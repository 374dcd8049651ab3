"""The report page in a browser."""

import pytest
from playwright.sync_api import expect

from sgpipe.records import Box
from tests.integration.browser.conftest import eventually
from tests.sgpipe.stats.runs import PERSON, invoke, scene
from tests.sgpipe.training.data.runs import make_run

EVIL = "<script>alert(1)</script>"
EVIL_PREDICATE = f'" onmouseover="alert(2)" {EVIL}'


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    records = [
        scene("0", [(0, "on", 1, 0.9), (0, "near", 2, 0.4)], captions=[EVIL, "a dog"]),
        scene("1", [(0, EVIL_PREDICATE, 1, 0.8)], [PERSON, Box(EVIL, 9, (100, 50, 60, 60))]),
        scene("2", [(1, "under", 0, 0.1)]),
        scene("3"),
    ]
    make_run(root / "run", records, run={"name": f"run {EVIL}"})
    invoke("stats", root / "run", "--html", root / "report.html")
    return root / "report.html"


def shown(page) -> dict[str, list[str | None]]:
    """The predicates of the relations that can be seen, by image."""
    cards = {}
    for card in page.locator(".card:visible").all():
        items = card.locator("li[data-relation]:visible").all()
        cards[card.locator("h3").inner_text().split()[1]] = [
            item.get_attribute("data-predicate") for item in items
        ]
    return cards


def test_the_filters_show_what_they_say(visit, report):
    page = visit(report.as_uri(), offline=True)
    evil = EVIL_PREDICATE
    # of 2, it is below 0.2
    eventually(lambda: shown(page), {"0": ["on", "near"], "1": [evil], "2": [], "3": []})
    # a line and a text each
    expect(page.locator(".card:visible .graph .edge:visible")).to_have_count(6)
    page.locator("#by-confidence").fill("0.5")
    eventually(lambda: shown(page), {"0": ["on"], "1": [evil], "2": [], "3": []})
    page.select_option("#by-predicate", "near")
    eventually(lambda: shown(page), {})
    page.get_by_role("button", name="Show all").click()
    eventually(lambda: shown(page), {"0": ["on", "near"], "1": [evil], "2": ["under"], "3": []})
    page.select_option("#by-category", "cup")
    eventually(lambda: shown(page), {"0": ["near"]})
    expect(page.locator("#count")).to_have_text("1 image, 1 relation")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_readable_in_both_schemes(visit, report, scheme):
    page = visit(report.as_uri(), offline=True, width=360, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink, ground = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, ground)]
    assert (brightness[0] > brightness[1]) == (scheme == "dark")
    assert abs(brightness[0] - brightness[1]) > 400
