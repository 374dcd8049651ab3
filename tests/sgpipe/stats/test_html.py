"""The report of an audit as one page, as JSON, as tables, and as a sheet of images."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from sgpipe.plots import Line, Plot
from sgpipe.records import Attribute, Box
from sgpipe.stats.audit import Audit, compare
from sgpipe.stats.measures import measure
from sgpipe.stats.report import render
from sgpipe.stats.samples import open_samples, write_sheet
from sgpipe.stats.tables import tables
from sgpipe.storage.index import open_run
from tests.sgpipe.stats.forms import assert_forms_agree
from tests.sgpipe.stats.runs import PERSON, invoke, judge, labelled_records, make_shards, scene
from tests.sgpipe.training.data.runs import make_run, plain_record
from tests.values import values_of

EVIL = "<script>alert('&')</script>"
TURNED = "on \u202edeppils\u202c"
HEBREW = "\u05e2\u05dc"


def test_tables_json_and_page_say_the_same(tmp_path):
    assert_forms_agree(make_shards(tmp_path / "run", labelled_records(60, seed=3)), tmp_path)


def test_the_page_is_one_file_and_shows_markup_as_text(tmp_path):
    evil = scene(
        "0", [(0, EVIL, 1, 0.9)], [PERSON, Box(EVIL, 2, (50, 50, 50, 50))], [EVIL], dataset=EVIL
    )
    evil.objects[1].attributes = [Attribute(EVIL, 0)]
    make_run(tmp_path / "run", [evil], run={"name": EVIL})
    invoke("stats", tmp_path / "run", "--html", tmp_path / "r.html", "--compare", tmp_path / "run")
    parser = HTMLParser()
    elements = []
    parser.handle_starttag = lambda tag, attributes: elements.append((tag, dict(attributes)))
    parser.feed((tmp_path / "r.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in elements]
    assert tags.count("script") == 1
    assert not {"iframe", "object", "embed", "base"} & set(tags)
    places = [
        value
        for _, attributes_of in elements
        for key, value in attributes_of.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert all(value.startswith(("#", "data:")) for value in places)
    assert sum(value.startswith("data:image/jpeg") for value in places) == 1
    assert not any(key.startswith("on") for _, attributes_of in elements for key in attributes_of)
    policy = next(
        attributes_of["content"]
        for tag, attributes_of in elements
        if tag == "meta" and "http-equiv" in attributes_of
    )
    assert policy.startswith("default-src 'none'")


def test_findings_follow_from_the_measures(tmp_path):
    good = [scene(str(n), [(0, "near", 1, 0.9), (1, "beside", 2, 0.9)]) for n in range(4)]
    assert (
        Audit(measure(make_shards(tmp_path / "good", good))).findings[-1].text
        == "No problems found."
    )
    bad = [scene(str(n), [(0, "near", 0, 0.9)]) for n in range(2)] + [
        scene("9"),
        scene("8"),
        scene("7"),
    ]
    bad[2].fail("load", "gone")
    findings = Audit(measure(make_shards(tmp_path / "bad", bad))).findings
    training = [finding for finding in findings if finding.question == "Can I train on it?"]
    assert values_of(training, "grade") == ["fair", "fair"]
    assert "20% of the images are error rows" in training[0].text
    assert "objects related to themselves (100.0% of relations)" in training[1].text
    none = Audit(
        measure(make_shards(tmp_path / "none", [scene("0", [(0, "near", 1, 0.01)])]))
    ).findings
    assert none[-1].text.startswith("No: no relation has a confidence")
    assert Audit(measure(make_shards(tmp_path / "empty", []))).findings[-1].grade == "bad"


def test_two_runs_are_compared(tmp_path):
    before = measure(make_shards(tmp_path / "a", [scene("0", [(0, "on", 1), (0, "near", 2)])]))
    after = measure(
        make_shards(
            tmp_path / "b", [scene("0", [(0, "on", 1), (2, "at", 0), (1, "at", 1)]), scene("1")]
        )
    )
    changes = compare(before, after)
    counts = {
        rows[0]: rows[1:] for rows in tables(Audit(after, comparison=changes))["comparison"][0].rows
    }
    assert counts["images"] == ("1", "2", "+1 (+100%)")
    assert counts["relations"] == ("2", "3", "+1 (+50%)")
    assert counts["captions"] == ("0", "0", "–")
    assert list(changes.predicates) == ["at", "near", "on"]
    assert (changes.gained, changes.lost) == (1, 1)
    assert len(tables(Audit(after, comparison=compare(after, after)))["comparison"]) == 3
    # no faults in either
    assert len(tables(Audit(before, comparison=compare(before, before)))["comparison"]) == 2
    assert changes.health == {"objects related to themselves": (0, 1 / 3)}


def test_the_page_has_plots_of_counts_also_where_nothing_has_a_confidence(tmp_path):
    names = ["What a threshold keeps", "The long tail", "Distribution of confidences"]
    for confidence, shown in ((0.9, names), (None, names[1:2])):
        root = make_shards(
            tmp_path / str(confidence),
            [scene("0", [(0, "on", 1, confidence), (1, "at", 2, confidence)])],
        )
        invoke("stats", root, "--html", tmp_path / "r.html")
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert re.findall(r'class="plot"[^>]*aria-label="([^"]+)"', page) == shown
        assert "the 1 most frequent: 50%" in page


def test_a_run_without_labels_says_so_in_all_forms(tmp_path):
    failed = scene("0")
    failed.fail("load", "gone")
    bare = scene("0", objects=[])
    nothing = "There are no relations or captions to check."
    boxless = "1 of 17 health checks found problems."
    for name, record, quality in (("failed", failed, nothing), ("bare", bare, boxless)):
        findings = assert_forms_agree(make_shards(tmp_path / name, [record]), tmp_path)["findings"]
        texts = [
            finding["text"] for finding in findings if finding["question"] == "How good is it?"
        ]
        assert texts == [quality]
        assert "bad" in [
            finding["grade"] for finding in findings if finding["question"] == "Can I train on it?"
        ]


def test_text_that_runs_the_other_way_turns_nothing_round(tmp_path):
    """In pages it is isolated, by <bdi> or, where no element can be, by Unicode's isolates."""
    objects = [
        PERSON,
        Box(f"{HEBREW}\u202e", 2, (50, 50, 50, 50)),
        Box(TURNED, 3, (10, 60, 50, 50)),
    ]
    record = scene(TURNED, [(0, TURNED, 1, 0.9), (2, HEBREW, 0, 0.8)], objects, [TURNED], HEBREW)
    make_run(tmp_path / "run", [record], run={"name": f"{HEBREW}{TURNED}"})
    other = make_shards(tmp_path / HEBREW, [scene("0", [(0, "near", 1)])])
    judge(tmp_path / "run", 2, lambda question: "right", "predicates")
    invoke(
        "stats",
        tmp_path / "run",
        "--html",
        tmp_path / "r.html",
        "--compare",
        other,
        "--truth",
        tmp_path / "run",
    )
    assert_not_turned((tmp_path / "r.html").read_text(encoding="utf-8"))
    plot = Plot(TURNED, "step", "loss", [Line([(1.0, 1.0)], ["step 1: 1.000"])])
    cells = {
        "titles": [TURNED],
        "rows": [[HEBREW, TURNED]],
        "steps": [(TURNED, HEBREW, "1 s")],
        "plots": [plot],
    }
    assert_not_turned(
        render("reproduction", {"title": f"{HEBREW}{TURNED}", "note": TURNED, **cells})
    )


def assert_not_turned(page: str) -> None:
    page = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    page = re.sub(r'(value|data-\w+)="[^"]*"', "", page)  # not shown
    assert "<bdi>" in page
    page = re.sub(r"<bdi>[^<]*</bdi>|\u2068[^<\u2069]*\u2069", "", page)
    assert not [
        part for part in re.split(r"\s{2,}|[<>]", page) if HEBREW in part or "\u202e" in part
    ]


def run_of(root, confidences, **options):
    make_run(
        root,
        [plain_record(str(n), confidence=c) for n, c in enumerate(confidences)],
        rows=3,
        **options,
    )
    return root


def opened(root, count, *images):
    """The ids of the sampled images, and of those that can be opened."""
    with open_run(root) as database:
        samples = list(open_samples(database, count, 0.2, *images))
    return [record.image_id for record, _ in samples], [
        record.image_id for record, image in samples if image
    ]


def test_samples_are_evenly_spaced_among_images_with_relations_and_others_fill_up(tmp_path):
    root = run_of(tmp_path / "run", [0.9, 0.1, 0.2, None, 0.3, 0.0, 0.5, 0.6])
    for count, ids in ((2, "04"), (6, "023467"), (7, "0123467"), (2**63, "01234567")):
        assert opened(root, count)[0] == [*ids]


@pytest.mark.parametrize("embedded", [True, False])
def test_images_are_found_where_they_are_and_missing_ones_are_none(tmp_path, embedded):
    root = run_of(
        tmp_path / "a [b] *",
        [0.9, 0.9, 0.9],
        embedded=embedded,
        spoilt={"1": b"no image", "2": None},
    )
    assert opened(root, 3)[1] == ["0"]
    (tmp_path / "moved").mkdir()
    Image.new("RGB", (24, 16), "red").save(tmp_path / "moved" / "1.png")
    assert opened(root, 3, tmp_path / "moved")[1] == ["1"]


def test_the_sheet_is_an_image_with_a_card_for_each_image(tmp_path):
    root = run_of(tmp_path / "run", [0.9] * 5)
    with open_run(root) as database:
        assert write_sheet(database, tmp_path / "sheet.png", open_samples(database, 4, 0.2)) == (
            4,
            0,
        )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 480
        assert sheet.height > 2 * 320
    assert sorted(values_of(tmp_path.iterdir(), "name")) == ["run", "sheet.png"]
