"""Ground truth, and the scores of a vision-language model, in the audit."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sgpipe.errors import UserError
from sgpipe.records import Record
from sgpipe.stats.calibrate import calibrate, judge_by_truth
from sgpipe.stats.ground_truth import measure_against_ground_truth
from sgpipe.stats.measures import measure
from sgpipe.stats.precision import area_under_roc
from sgpipe.storage.index import open_run
from sgpipe.storage.judgement_lines import PlannedQuestion
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.storage.shards import VLM_SCORE, read_file, write_copy
from tests.sgpipe.stats.forms import assert_forms_agree
from tests.sgpipe.stats.runs import invoke, judge, make_shards, scene
from tests.values import values_of

TRUE = [scene(str(n), [(0, "holding", 2), (1, "near", 2)]) for n in range(20)]


def predicted(third: float) -> list[Record]:
    """The first relation of each image is right, and every other time the second; the third never
    is.
    """
    second = {n: "near" if n % 2 else "under" for n in range(20)}
    return [
        scene(str(n), [(0, "holding", 2, 0.9), (1, second[n], 2, 0.3), (0, "near", 1, third)])
        for n in second
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose confident relations are correct, and half of the others; and its ground truth."""
    folder = tmp_path_factory.mktemp("truth")
    return make_shards(folder / "run", predicted(0.05)), make_shards(folder / "truth", TRUE)


def compare(run, truth, threshold, target):
    with open_run(run) as database:
        return measure_against_ground_truth(database, GroundTruth(truth), threshold, target, None)


def test_thresholds_that_reach_a_precision(runs):
    comparison = compare(*runs, 0.2, 0.9)
    assert (comparison.images, comparison.relations) == (20, 60)
    assert (comparison.precision.correct, comparison.precision.judged) == (30, 40)
    assert comparison.suggested is None  # 20 of 20 show 84 %
    assert [compare(*runs, 0.2, target).suggested.kept for target in (0.8, 0.35)] == [20, 60]
    assert compare(*runs, 0.2, 0.8).suggested.threshold == pytest.approx(0.9)
    rows = {row.predicate: row for row in comparison.predicates}
    assert rows["holding"].suggested is rows["near"].suggested is rows["under"].suggested is None
    rows = dict(values_of(compare(*runs, 0.2, 0.6).predicates, "predicate", "suggested"))
    # near: wrong at 0.05
    assert (rows["holding"].kept, rows["near"].kept, rows["under"]) == (
        20,
        10,
        None,
    )
    bins = [(round(part.confidence, 2), part.precision.value) for part in comparison.reliability]
    assert bins == [(0.05, 0.0), (0.3, 0.5), (0.9, 1.0)]


def test_a_run_without_a_confident_relation(tmp_path, runs):
    weak = make_shards(
        tmp_path / "weak", [scene(str(n), [(0, "holding", 2, 0.01)]) for n in range(20)]
    )
    comparison = compare(weak, runs[1], 0.2, 0.9)
    assert comparison.precision.value is None
    result = invoke("stats", weak, "--truth", runs[1], "--json")
    assert "NaN" not in result.stdout
    assert json.loads(result.stdout)["ground_truth"]["precision"]["value"] is None


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, Path]:
    """A run of 20 images with scores that are mostly right, and its ground truth."""
    run = make_shards(tmp_path / "run", predicted(0.4))
    manifest = Manifest.load(run)
    [shard] = manifest.shards
    scores = [[0.95, 0.75 if n % 2 else 0.25, None if n == 7 else 0.15] for n in range(20)]
    column = pa.array(scores, pa.list_(pa.float32()))
    table = read_file(run / shard.file).append_column(VLM_SCORE, column)
    manifest.commit(write_copy(run, shard, table))
    return run, make_shards(tmp_path / "truth", TRUE)


def test_how_probable_it_finds_relations(scored: tuple[Path, Path]) -> None:
    vlm_score = measure(scored[0]).vlm_score
    assert (vlm_score.scored, vlm_score.unscored) == (59, 1)
    assert vlm_score.likely == pytest.approx(30 / 59)
    assert vlm_score.mean == pytest.approx((20 * 0.95 + 10 * 0.75 + 10 * 0.25 + 19 * 0.15) / 59)
    assert 0 < vlm_score.correlation < 1
    assert measure(scored[1]).vlm_score is None


def test_ground_truth_says_how_good_it_is(scored: tuple[Path, Path], tmp_path: Path) -> None:
    report = json.loads(invoke("stats", scored[0], "--truth", scored[1], "--json").stdout)
    vlm_score = report["ground_truth"]["vlm_score"]
    assert (vlm_score["judged"], vlm_score["auc"]) == (59, 1.0)
    assert vlm_score["confidence_auc"] == pytest.approx(
        (20 * 30 + 10 * 0 + 10 * 10 / 2) / (30 * 30)
    )
    expected = (20 * 0.05 + 10 * 0.25 + 10 * 0.25 + 19 * 0.15) / 59
    assert vlm_score["calibration_error"] == pytest.approx(expected, abs=1e-6)
    assert [part["precision"]["judged"] for part in vlm_score["reliability"]] == [19, 10, 10, 20]
    [text] = [
        finding["text"]
        for finding in report["findings"]
        if "model, judged by ground truth" in finding["text"]
    ]
    assert "in 100.0% of pairs" in text
    assert f"calibration error is {expected:.3f}" in text
    assert_forms_agree(scored[0], tmp_path, "--truth", scored[1])


def test_people_say_how_good_it_is(scored: tuple[Path, Path]) -> None:
    def verdict(question: PlannedQuestion) -> str:
        is_right = question.predicate in ("holding", "near") and question.object_category == "cup"
        return "right" if is_right else "wrong"

    judge(scored[0], 60, verdict)
    report = json.loads(invoke("stats", scored[0], "--judgements", "own", "--json").stdout)
    vlm_score = report["judgements"]["vlm_score"]
    assert (vlm_score["judged"], vlm_score["auc"]) == (59, 1.0)


def test_the_area_under_the_curve_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 40).astype(np.float32)
    correct = rng.random(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[correct] for b in scores[~correct]]
    assert area_under_roc(scores, correct) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_roc(scores, np.ones(40, bool)) is None
    assert area_under_roc(scores[:0], correct[:0]) is None


def test_relations_that_nothing_scored_are_called_so(tmp_path: Path) -> None:
    records = [scene(str(n), [(0, "holding", 2, 1.0), (0, "near", 1, 1.0)]) for n in range(60)]
    truth = make_shards(tmp_path / "truth", [scene(str(n), [(0, "holding", 2)]) for n in range(60)])
    run = make_shards(
        tmp_path / "run", records, identity={"tag": {"method": "overlap"}, "pair": {}}
    )
    text = invoke("stats", run).stdout
    assert (
        "Nothing scored the relations: every candidate pair whose boxes overlap is related" in text
    )
    assert "how sure the tagger is" not in text
    with pytest.raises(
        UserError, match="has no scores to calibrate: every candidate pair whose boxes overlap"
    ):
        calibrate(run, judge_by_truth(run, GroundTruth(truth)))
