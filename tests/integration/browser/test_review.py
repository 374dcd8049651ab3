"""The review page in a browser."""

import pytest
from playwright.sync_api import expect

from sgpipe.stats.review import write_review
from sgpipe.stats.verdicts import measure_verdicts
from sgpipe.storage.database import open_run
from tests.integration.browser.conftest import reload_until
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import make_run

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("review")
    make_run(root / "run", [scene(str(n), [(0, EVIL if n else "on", 1, 0.3)]) for n in range(4)])
    with open_run(root / "run") as database:
        assert write_review(database, root / "review.html", 4) == (4, 0)
    return root / "review.html"


def reload_until_judged(page, answers):
    reload_until(page, lambda: page.locator("progress").evaluate("bar => bar.value") == answers)


def test_answers_by_key_are_kept_and_exported(open_page, page_file, tmp_path):
    page = open_page(page_file)
    for key in ("r", "w", "ArrowLeft", "u", "R"):  # the second answer is changed
        page.keyboard.press(key)
    page.get_by_role("button", name="Wrong").click()
    expect(page.locator("#status")).to_have_text("4 of 4, 4 judged: export them now")
    reload_until_judged(page, 4)
    with page.expect_download() as download:
        page.keyboard.press("e")
    download.value.save_as(tmp_path / "verdicts.json")
    with open_run(page_file.parent / "run") as database:
        found = measure_verdicts(database, tmp_path / "verdicts.json", 0.8, (0.2,))
    assert (found.judged, found.unsure, found.open) == (3, 1, 0)
    assert (found.bands[0].precision.correct, found.bands[0].precision.judged) == (2, 3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_resumes_where_it_was_and_fits_a_phone(open_page, page_file, scheme):
    page = open_page(page_file, width=360, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("w")
    expect(page.locator("#status")).to_have_text("2 of 4, 1 judged")
    reload_until_judged(page, 1)
    expect(page.locator("#status")).to_have_text("2 of 4, 1 judged")
    expect(page.locator(".question:visible")).to_have_count(1)
    page.get_by_role("button", name="Previous").click()
    expect(page.locator("[data-answer=wrong]")).to_have_attribute("aria-pressed", "true")
