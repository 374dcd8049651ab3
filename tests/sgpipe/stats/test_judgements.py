import random
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.stats.judgements import JudgementMeasures, measure_judgements
from sgpipe.storage.index import open_run
from tests.sgpipe.stats.judging import judge
from tests.sgpipe.stats.runs import make_shards, scene


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """300 relations of confidence 0.6 (a third of them "near"), 40 of 0.15, 5 without."""
    names = ("near", "on", "at")
    records = [scene(f"a{n}", [(0, names[n % 3], 1, 0.6)]) for n in range(300)]
    records += [scene(f"b{n}", [(0, "on", 1, 0.15)]) for n in range(40)]
    records += [scene(f"c{n}", [(0, "on", 1)]) for n in range(5)]
    return make_shards(tmp_path_factory.mktemp("judged") / "run", records)


def measured(run, file, target: float = 0.9) -> JudgementMeasures:
    with open_run(run) as database:
        return measure_judgements(database, file, target, (0.0, 0.5))


def report(run, *options: object) -> str:
    command = ["stats", str(run), "--judgements", "own", *map(str, options)]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"}).stdout


def test_judgements_become_precision_weighted_by_the_bands(run):
    # All right where sure, none where not, and the annotated ones unsure.
    answer = {0: "unsure", 1: "wrong", 2: "right"}
    found = measured(run, judge(run, 65, lambda question: answer[question.stratum]))
    assert (found.judged, found.unsure, found.open) == (60, 5, 0)
    assert found.precision == pytest.approx(300 / 340)
    assert found.low < 300 / 340 < found.high
    assert found.high - found.low < 0.25
    assert found.covered == pytest.approx(340 / 345)
    assert [(row.precision.correct, row.precision.judged) for row in found.bands] == [(0, 0), (0, 30), (30, 30)]
    assert found.suggested.threshold == pytest.approx(0.6)
    assert [choice.kept for choice in found.curve] == [60, 30]


def test_a_small_band_that_was_judged_as_often_as_a_large_one_does_not_count_as_much(tmp_path):
    """116 of 123 relations are of confidence below 0.1, but few of the judged ones."""
    records = [scene(f"a{n}", [(0, f"p{n % 3}", 1, 0.004 + n / 2000)]) for n in range(116)]
    records += [scene(f"b{n}", [(0, "on", 1, 0.3 + n / 10)]) for n in range(7)]
    root = make_shards(tmp_path / "run", records)
    low = []
    found = measured(root, judge(root, 12, lambda q: "right" if q.confidence > 0.1 else low.append(q) or "wrong"), 0.8)
    file = judge(root, 12, lambda q: "wrong" if q in low[:-2] else "right")
    found = measured(root, file, 0.8)
    truth = (116 * 2 / len(low) + 7) / 123
    assert found.precision == pytest.approx(truth)
    for choice in (*found.curve, found.suggested):
        if choice is not None:  # what pools the judged relations says 9 of 12
            assert choice.precision.value == pytest.approx(truth) or choice.threshold >= 0.05
    assert (found.predicates["on"].value, found.predicates["on"].high) == (1, 1)
    text = report(root)
    assert f"the precision of the run is {truth:.1%}" in text
    assert "of 100% of the run" not in text


def test_a_suggested_threshold_selects_the_relations_that_it_counts(tmp_path):
    rng = random.Random(4)
    confidences = [min(rng.random() ** 2 + 0.0004, 1.0) for _ in range(400)] + [0.7, 0.7, 0.3]
    root = make_shards(tmp_path / "run", [scene(str(n), [(0, "on", 1, c)]) for n, c in enumerate(confidences)])
    file = judge(root, 150, lambda question: "right" if rng.random() < question.confidence + 0.2 else "wrong")
    for target in (0.3, 0.8):
        text = " ".join(report(root, "--precision", target).split())
        threshold, kept, correct = re.search(
            r"hreshold of ([\d.]+) keeps (\d+) of 403 relations; at least (\d+)%", text
        ).groups()
        assert sum(np.float32(c) >= np.float32(float(threshold)) for c in confidences) == int(kept)
        assert int(correct) == 100 * target
        choice = measured(root, file, target).suggested
        assert (choice.text, choice.relations) == (threshold, int(kept))
        assert choice.precision.low >= target
        out = CliRunner().invoke(
            app, ["export", str(root), "--to", "rlipv2", "--out", str(tmp_path / threshold), "--threshold", threshold]
        )
        assert out.exit_code == 0, out.output
        assert f"({403 - int(kept)})" in out.stdout


def test_unsure_and_open_questions_and_strata_that_nobody_judged_are_told(run):
    first = []

    def decide(question):
        if question.stratum == 2 and not first:
            first.append(question)
            return "unsure"
        return {0: None, 1: "right", 2: "right"}[question.stratum]

    found = measured(run, judge(run, 65, decide))
    assert found.precision == 1
    assert found.low < found.high == 1
    assert found.covered == pytest.approx(340 / 345)
    assert found.if_unsure_wrong == pytest.approx((40 + 300 * 29 / 30) / 340)
    assert found.if_unsure_right == 1
    text = report(run)
    assert "the precision of the judged bands, 99% of the run, is 100.0%" in text
    assert "1 unsure judgement does not count: with all of them wrong the precision would be 97." in text
    assert "5 questions are open" in text


def test_a_run_that_has_grown_keeps_the_weights_of_the_plan(tmp_path):
    records = [scene(f"a{n}", [(0, "on", 1, 0.05 if n < 90 else 0.9)]) for n in range(100)]
    before = make_shards(tmp_path / "before", records)
    after = make_shards(tmp_path / "after", [*records, *(scene(f"b{n}", [(0, "on", 1, 0.9)]) for n in range(50))])
    file = judge(before, 20, lambda question: "right" if question.confidence > 0.5 else "wrong")
    shutil.copy(file, after / file.name)
    assert measured(after, after / file.name).precision == pytest.approx(0.1)
    assert "The run had 100 relations when the plan was made and has 150 now" in report(after)
