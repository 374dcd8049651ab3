import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.stats.review import write_review
from sgpipe.stats.verdicts import Verdicts, measure_verdicts
from sgpipe.storage.database import open_run
from tests.sgpipe.stats.runs import make_shards, scene

THRESHOLDS = (0.0, 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """300 relations of confidence 0.6 (a third of them "near"), 40 of 0.15, 5 without."""
    names = ("near", "on", "at")
    records = [scene(f"a{n}", [(0, names[n % 3], 1, 0.6)]) for n in range(300)]
    records += [scene(f"b{n}", [(0, "on", 1, 0.15)]) for n in range(40)]
    records += [scene(f"c{n}", [(0, "on", 1)]) for n in range(5)]
    return make_shards(tmp_path_factory.mktemp("review") / "run", records)


def written(run, file, count: int, seed: int = 0) -> dict:
    with open_run(run) as database:
        write_review(database, file, count, seed)
    page = file.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="review">(.*?)</script>', page, re.DOTALL).group(1)
    )


def measured(run, file, target: float = 0.9) -> Verdicts:
    with open_run(run) as database:
        return measure_verdicts(database, file, target, THRESHOLDS)


def test_bands_get_equal_shares_and_predicates_their_proportion(run, tmp_path):
    review = written(run, tmp_path / "r.html", 65)
    assert [(b["start"], b["relations"], b["sampled"]) for b in review["bands"]] == [
        (None, 5, 5), (0.1, 40, 30), (0.5, 300, 30)
    ]  # fmt: skip
    counts = Counter(question["band"] for question in review["questions"])
    assert counts == {0: 5, 1: 30, 2: 30}
    sure = Counter(question["predicate"] for question in review["questions"] if question["band"] == 2)
    assert sure == {"near": 10, "on": 10, "at": 10}
    assert len({(q["image_id"], q["predicate"]) for q in review["questions"]}) == 65


def test_the_same_seed_gives_the_same_sample(run, tmp_path):
    first, again, other = (written(run, tmp_path / "r.html", 30, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["questions"] != other["questions"]
    everything = written(run, tmp_path / "r.html", 9999)
    assert len(everything["questions"]) == 345


def test_verdicts_become_precision_weighted_by_the_bands(run, tmp_path):
    review = written(run, tmp_path / "r.html", 65)
    # All right where sure, none where not, and the annotated ones unsure.
    answer = {0: "unsure", 1: "wrong", 2: "right"}
    review["answers"] = [answer[question["band"]] for question in review["questions"]]
    (tmp_path / "v.json").write_text(json.dumps(review))
    found = measured(run, tmp_path / "v.json")
    assert (found.judged, found.unsure, found.open) == (60, 5, 0)
    assert found.precision == pytest.approx(300 / 340)
    assert found.low < 300 / 340 < found.high
    assert found.high - found.low < 0.25
    assert found.covered == pytest.approx(340 / 345)
    assert [(verdict.precision.correct, verdict.precision.judged) for verdict in found.bands] == [
        (0, 0),
        (0, 30),
        (30, 30),
    ]
    assert found.suggested.threshold == pytest.approx(0.6)
    assert [choice.kept for choice in found.curve] == [60, 30]


def test_an_unjudged_export_says_nothing(run, tmp_path):
    review = written(run, tmp_path / "r.html", 10)
    review["answers"] = [None] * 10
    (tmp_path / "v.json").write_text(json.dumps(review))
    found = measured(run, tmp_path / "v.json")
    assert (found.judged, found.open, found.precision, found.suggested) == (0, 10, None, None)
    result = CliRunner().invoke(app, ["stats", str(run), "--verdicts", str(tmp_path / "v.json"), "--json"])
    assert json.loads(result.stdout)["verdicts"]["precision"] is None


def test_what_is_no_export_is_refused(run, tmp_path):
    file = tmp_path / "v.json"
    with pytest.raises(UserError, match="cannot be read"):
        measured(run, file)
    review = written(run, tmp_path / "r.html", 10)
    [question, *_] = review["questions"]
    for content, reason in (
        ("{", "--review`.*the file: Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("[]", "was not exported"),
        (json.dumps(review), "was not exported"),
        (json.dumps(review | {"answers": ["right"]}), "was not exported"),
        (json.dumps(review | {"answers": ["maybe"] * 10}), "answers.0: Input should be 'right', 'wrong' or 'unsure'"),
        (json.dumps(review | {"answers": [["right"]] * 10}), "answers.0"),
        (
            json.dumps(review | {"answers": [None] * 10, "questions": [question | {"confidence": "high"}] * 10}),
            "questions.0.confidence",
        ),
        (json.dumps(review | {"answers": [None] * 10, "bands": []}), "was not exported"),
        (json.dumps(review | {"answers": [None] * 10, "fingerprint": "x"}), "another run"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=reason):
            measured(run, file)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> dict:
    return written(run, tmp_path_factory.mktemp("exported") / "r.html", 20)


@pytest.mark.parametrize("key", ["relations", "start", "confidence"])
@pytest.mark.parametrize("value", [-5, 0.15, 1e308, None])
def test_an_export_that_contradicts_itself_is_refused(run, exported, tmp_path, key, value):
    """Confidences beyond 1, bands with fewer relations than questions, and bands that overlap."""
    review = exported
    parts = "questions" if key == "confidence" else "bands"
    if (key, value) == ("relations", None):
        pytest.skip("files may lack it")
    changed = [part | {key: value} for part in review[parts]]
    (tmp_path / "v.json").write_text(json.dumps(review | {"answers": ["right"] * 20, parts: changed}))
    with pytest.raises(UserError, match="was not exported"):
        measured(run, tmp_path / "v.json")


def test_a_run_without_relations(tmp_path):
    root = make_shards(tmp_path / "run", [scene()])
    result = CliRunner().invoke(app, ["stats", str(root), "--review", "5", "--review-file", str(tmp_path / "r.html")])
    assert result.exit_code == 2
    assert "contains no relations to review" in result.stderr


def test_a_review_and_a_report_in_one_command(run, tmp_path):
    files = tmp_path / "review.html", tmp_path / "report.html"
    options = ["--review", "5", "--review-file", str(files[0]), "--html", str(files[1])]
    assert CliRunner().invoke(app, ["stats", str(run), *options]).exit_code == 0
    assert all(file.is_file() for file in files)


def test_a_small_band_that_was_judged_as_often_as_a_large_one_does_not_count_as_much(tmp_path):
    """116 of 123 relations are of confidence below 0.1, but few of the judged ones."""
    records = [scene(f"a{n}", [(0, f"p{n % 3}", 1, 0.004 + n / 2000)]) for n in range(116)]
    records += [scene(f"b{n}", [(0, "on", 1, 0.3 + n / 10)]) for n in range(7)]
    root = make_shards(tmp_path / "run", records)
    review = written(root, tmp_path / "r.html", 12)
    low = [number for number, question in enumerate(review["questions"]) if question["confidence"] < 0.1]
    review["answers"] = ["wrong" if number in low[:-2] else "right" for number in range(len(review["questions"]))]
    (tmp_path / "v.json").write_text(json.dumps(review))
    found = measured(root, tmp_path / "v.json", 0.8)
    truth = (116 * 2 / len(low) + 7) / 123
    assert found.precision == pytest.approx(truth)
    for choice in (*found.curve, found.suggested):
        if choice is not None:  # what pools the judged relations says 9 of 12
            assert choice.precision.value == pytest.approx(truth) or choice.threshold >= 0.05
    assert found.suggested is None or found.suggested.threshold > 0.05
    predicates = {row.predicate: row.precision for row in found.predicates}
    assert predicates["on"].value == 1
    assert predicates["on"].high == 1
    text = CliRunner().invoke(app, ["stats", str(root), "--verdicts", str(tmp_path / "v.json")]).stdout
    assert f"the precision of the run is {truth:.1%}" in text
    assert "of 100% of the run" not in text


def test_a_suggested_threshold_selects_the_relations_that_it_counts(tmp_path):
    rng = random.Random(4)
    confidences = [min(rng.random() ** 2 + 0.0004, 1.0) for _ in range(400)] + [0.7, 0.7, 0.3]
    root = make_shards(tmp_path / "run", [scene(str(n), [(0, "on", 1, c)]) for n, c in enumerate(confidences)])
    review = written(root, tmp_path / "r.html", 150)
    review["answers"] = ["right" if rng.random() < q["confidence"] + 0.2 else "wrong" for q in review["questions"]]
    (tmp_path / "v.json").write_text(json.dumps(review))
    for target in (0.3, 0.6, 0.8):
        options = ["--verdicts", str(tmp_path / "v.json"), "--precision", str(target)]
        text = " ".join(CliRunner().invoke(app, ["stats", str(root), *options]).stdout.split())
        threshold, kept, correct = re.search(
            r"hreshold of ([\d.]+) keeps (\d+) of 403 relations; at least (\d+)%", text
        ).groups()
        assert sum(np.float32(c) >= np.float32(float(threshold)) for c in confidences) == int(kept)
        assert int(correct) == 100 * target
        choice = measured(root, tmp_path / "v.json", target).suggested
        assert (choice.text, choice.relations) == (threshold, int(kept))
        assert choice.precision.low >= target
        out = CliRunner().invoke(
            app, ["export", str(root), "--to", "rlipv2", "--out", str(tmp_path / threshold), "--threshold", threshold]
        )
        assert out.exit_code == 0, out.output
        assert f"({403 - int(kept)})" in out.stdout


def test_unsure_and_open_answers_and_bands_without_verdicts_are_told(run, tmp_path):
    review = written(run, tmp_path / "r.html", 65)
    answer = {0: None, 1: "right", 2: "right"}
    review["answers"] = [answer[question["band"]] for question in review["questions"]]
    first = next(n for n, question in enumerate(review["questions"]) if question["band"] == 2)
    review["answers"][first] = "unsure"
    (tmp_path / "v.json").write_text(json.dumps(review))
    found = measured(run, tmp_path / "v.json")
    assert found.precision == 1
    assert found.low < found.high == 1
    assert found.covered == pytest.approx(340 / 345)
    assert found.if_unsure_wrong == pytest.approx((40 + 300 * 29 / 30) / 340)
    assert found.if_unsure_right == 1
    text = CliRunner().invoke(app, ["stats", str(run), "--verdicts", str(tmp_path / "v.json")]).stdout
    assert "the precision of the judged bands, 99% of the run, is 100.0%" in text
    assert "1 unsure answer does not count: with all of them wrong the precision would be 97." in text
    assert "5 questions have no answer" in text


def test_a_file_without_the_sizes_of_its_bands_is_weighted_by_the_run(run, tmp_path):
    review = written(run, tmp_path / "r.html", 65)
    review["answers"] = ["right" if question["band"] == 2 else "wrong" for question in review["questions"]]
    (tmp_path / "v.json").write_text(json.dumps(review))
    complete = measured(run, tmp_path / "v.json")
    assert complete.sized
    for band in review["bands"]:
        del band["relations"], band["sampled"]
    (tmp_path / "v.json").write_text(json.dumps(review))
    assert not measured(run, tmp_path / "v.json").sized
    assert measured(run, tmp_path / "v.json").precision == complete.precision
    del review["bands"]
    for question in review["questions"]:
        del question["band"]
    (tmp_path / "v.json").write_text(json.dumps(review))
    found = measured(run, tmp_path / "v.json")
    assert (found.precision, found.curve) == (complete.precision, complete.curve)
    text = CliRunner().invoke(app, ["stats", str(run), "--verdicts", str(tmp_path / "v.json")]).stdout
    assert "The file does not say how many relations each band had" in text


def test_bands_that_were_not_sampled_are_not_covered(run, tmp_path):
    review = written(run, tmp_path / "r.html", 2)
    assert [band["sampled"] for band in review["bands"]] == [0, 1, 1]
    review["answers"] = ["right", "wrong"]
    (tmp_path / "v.json").write_text(json.dumps(review))
    assert measured(run, tmp_path / "v.json").covered == pytest.approx(340 / 345)
    review["bands"] = [band for band in review["bands"] if band["sampled"]]  # as older pages wrote it
    for question in review["questions"]:
        question["band"] -= 1
    (tmp_path / "v.json").write_text(json.dumps(review))
    assert measured(run, tmp_path / "v.json").covered == pytest.approx(340 / 345)


def test_a_run_that_has_grown_keeps_the_weights_of_the_page(tmp_path):
    records = [scene(f"a{n}", [(0, "on", 1, 0.05 if n < 90 else 0.9)]) for n in range(100)]
    before = make_shards(tmp_path / "before", records)
    after = make_shards(tmp_path / "after", [*records, *(scene(f"b{n}", [(0, "on", 1, 0.9)]) for n in range(50))])
    review = written(before, tmp_path / "r.html", 20)
    review["answers"] = ["right" if question["confidence"] > 0.5 else "wrong" for question in review["questions"]]
    (tmp_path / "v.json").write_text(json.dumps(review))
    assert measured(after, tmp_path / "v.json").precision == pytest.approx(0.1)
    text = CliRunner().invoke(app, ["stats", str(after), "--verdicts", str(tmp_path / "v.json")]).stdout
    assert "The run had 100 relations when the page was written and has 150 now" in text
