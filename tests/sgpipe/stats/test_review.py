import json
import re
from collections import Counter

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.stats.review import measure_verdicts, write_review
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
    found = measure_verdicts(tmp_path / "v.json", "drawn", 0.9, THRESHOLDS)
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
    found = measure_verdicts(tmp_path / "v.json", "drawn", 0.9, THRESHOLDS)
    assert (found.judged, found.open, found.precision, found.suggested) == (0, 10, None, None)
    result = CliRunner().invoke(app, ["stats", str(run), "--verdicts", str(tmp_path / "v.json"), "--json"])
    assert json.loads(result.stdout)["verdicts"]["precision"] is None


def test_what_is_no_export_is_refused(run, tmp_path):
    file = tmp_path / "v.json"
    with pytest.raises(UserError, match="cannot be read"):
        measure_verdicts(file, "drawn", 0.9, THRESHOLDS)
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
            measure_verdicts(file, "drawn", 0.9, THRESHOLDS)


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
