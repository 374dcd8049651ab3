"""The gallery over HTTP: what is found is shown, and the whole state is in the address."""

import html
import re

import pytest
from starlette.testclient import TestClient

from sgpipe.storage.judgements import JUDGEMENTS, Judgement, JudgementLog
from sgpipe.view.gallery import PAGE
from tests.sgpipe.view.gallery_run import EVIL, attributes, make_gallery_run, open_client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return open_client(make_gallery_run(tmp_path_factory.mktemp("view") / "run"))


def get(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def cards(page: str) -> list[str]:
    """The sentences of the cards."""
    texts = re.findall(r'<span class="sentence[^"]*">(.*?)</span>\s*(?:<span class="caption"|</a>)', page, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split()) for text in texts]


def test_each_relation_is_a_card_with_its_drawing(client: TestClient) -> None:
    page = get(client, "/?q=person+riding+*")
    assert cards(page) == ["person riding horse"] * 3
    assert attributes(page, r'class="number confidence"[^>]*>([^<]+)') == ["0.90", "0.70", "0.60"]
    assert page.count('<polygon class="head"') == 3
    assert '<rect class="subject" x="2.0" y="2.0" width="8.0" height="8.0"/>' in page
    assert "3</span> relations" in page


def test_a_card_leads_to_its_relation_within_the_search(client: TestClient) -> None:
    [first, *_] = attributes(get(client, "/?q=person+riding+*&low=0.5"), r'<li class="card"[^>]*>\s*<a href="([^"]+)"')
    assert first == "/image/val/a?q=person+riding+%2A&low=0.5&relation=0-1-riding"


def test_the_place_where_a_query_fails_is_marked(client: TestClient) -> None:
    page = get(client, "/?q=person+ridin+*&low=0.2")
    [marked] = attributes(page, r"<mark>([^<]*)</mark>")
    assert marked.startswith("ridin")
    assert 'value="person ridin *"' in page
    assert '<input type="hidden" name="low" value="0.2">' in page  # the corrected query keeps the filters
    assert 'class="card"' not in page


def test_all_pages_together_show_every_hit_once(client: TestClient) -> None:
    path, seen, pages = "/?predicate=near&order=-confidence", [], []
    while path:
        pages.append(get(client, path))
        seen += attributes(pages[-1], r'<span class="id" title="val/([^"]+)"')
        path = next(iter(attributes(pages[-1], r'rel="next" href="([^"]+)"')), "")
    assert seen == [f"n{number}" for number in range(1, 100)]
    assert len(pages) == 3
    back = attributes(pages[2], r'rel="prev" href="([^"]+)"')[0]
    assert attributes(get(client, back), r'<span class="id" title="val/([^"]+)"') == seen[PAGE : 2 * PAGE]


def test_facets_add_and_remove_a_value(client: TestClient) -> None:
    page = get(client, "/?predicate=riding")
    both = attributes(page, r'<a href="([^"]+)" >\s*<span class="value"><bdi>near<')[0]
    assert both == "/?predicate=riding&predicate=near"
    page = get(client, both)
    assert "102</span> relations" in page
    assert attributes(page, r'<a href="([^"]+)" aria-current="true">\s*<span class="value"><bdi>riding<') == [
        "/?predicate=near"
    ]
    assert "/?predicate=riding" in attributes(page, r'<a class="chip" href="([^"]+)"')


@pytest.mark.parametrize(
    "path", [f"/?predicate={EVIL}", f"/?q='{EVIL}'", "/?status=error", f'/?q="{EVIL}"', f"/?q={EVIL}"]
)
def test_nothing_from_the_data_is_read_as_html(client: TestClient, path: str) -> None:
    page = get(client, path)
    assert "&lt;script&gt;alert(" in page
    assert re.sub(r'<script (type="module" )?src="/static/\w+\.js">', "", page).count("<script") == 0


def test_a_bug_is_one_line_for_the_browser(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("sgpipe.view.gallery.search", fail)
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    quiet = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False)
    answer = quiet.get("/")
    assert (answer.status_code, "secret" in answer.text, "internal error: KeyError" in answer.text) == (
        500,
        False,
        True,
    )
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_judgements_of_another_server_are_in_the_next_search(client: TestClient) -> None:
    assert 'class="chip judged right"' not in get(client, "/?q=riding")
    of_relation = {"split": "val", "image_id": "a", "subject": 0, "object": 1, "predicate": "riding"}
    by_bob = {"id": "1", "at": "2026-11-26T09:00:00Z", "by": "bob", "run": "drawn", "judgement": "right"}
    root = client.app.state.freshness.viewer.index.root
    JudgementLog(root / JUDGEMENTS, "drawn").append(Judgement.model_validate({**of_relation, **by_bob}))
    assert get(client, "/?q=riding").count('class="chip judged right"') == 1


@pytest.mark.parametrize("path", ["/", "/judge", "/image/val/a", "/api/neighbours/val/a"])
@pytest.mark.parametrize("values", [[str(number) for number in range(2000)], ["x" * 20_000]])
def test_a_search_of_very_many_values_is_refused(client: TestClient, path: str, values: list[str]) -> None:
    answer = client.get(path, params=[("predicate", value) for value in values])
    assert (answer.status_code, len(answer.content) < 10_000) == (422, True)
