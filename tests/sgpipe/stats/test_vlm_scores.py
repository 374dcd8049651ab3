"""The scores of a vision-language model in the audit."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sgpipe.errors import UserError
from sgpipe.stats.calibrate import calibrate, judge_by_truth
from sgpipe.stats.measures import measure
from sgpipe.stats.precision import area_under_roc
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.storage.shards import VLM_SCORE, read_file, write_copy
from tests.sgpipe.stats.forms import assert_forms_agree, invoke
from tests.sgpipe.stats.judging import judge
from tests.sgpipe.stats.runs import make_shards, scene


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run of 20 images with scores that are mostly right, and its ground truth."""
    true = [scene(str(n), [(0, "holding", 2), (1, "near", 2)]) for n in range(20)]
    predicted = [
        scene(str(n), [(0, "holding", 2, 0.9), (1, "near" if n % 2 else "under", 2, 0.3), (0, "near", 1, 0.4)])
        for n in range(20)
    ]
    run = make_shards(tmp_path / "run", predicted)
    manifest = Manifest.load(run)
    [shard] = manifest.shards
    scores = [[0.95, 0.75 if n % 2 else 0.25, None if n == 7 else 0.15] for n in range(20)]
    column = pa.array(scores, pa.list_(pa.float32()))
    table = read_file(run / shard.file).append_column(VLM_SCORE, column)
    manifest.commit(write_copy(run, shard, table))
    return run, make_shards(tmp_path / "truth", true)


def test_how_probable_it_finds_relations(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = measure(runs[0]).vlm_score
    assert (found.scored, found.unscored) == (59, 1)
    assert found.likely == pytest.approx(30 / 59)
    assert found.mean == pytest.approx((20 * 0.95 + 10 * 0.75 + 10 * 0.25 + 19 * 0.15) / 59)
    assert 0 < found.correlation < 1
    assert measure(runs[1]).vlm_score is None
    assert_forms_agree(runs[0], tmp_path)
    assert "Vision-language model: 51% of 59 relations have a probability of 0.50 or more" in invoke(runs[0]).stdout


def test_ground_truth_says_how_good_it_is(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report = json.loads(invoke(runs[0], "--truth", runs[1], "--json", "--html", tmp_path / "r.html").stdout)
    found = report["ground_truth"]["vlm_score"]
    assert (found["judged"], found["auc"]) == (59, 1.0)
    assert found["confidence_auc"] == pytest.approx((20 * 30 + 10 * 0 + 10 * 10 / 2) / (30 * 30))
    expected = (20 * 0.05 + 10 * 0.25 + 10 * 0.25 + 19 * 0.15) / 59
    assert found["calibration_error"] == pytest.approx(expected, abs=1e-6)
    assert [part["precision"]["judged"] for part in found["reliability"]] == [19, 10, 10, 20]
    sentence = (
        "Vision-language model, judged by ground truth on 59 relations: a correct relation has a higher score than an "
        "incorrect one in 100.0% of pairs (AUC)"
    )
    for text in ((tmp_path / "r.html").read_text(encoding="utf-8"), invoke(runs[0], "--truth", runs[1]).stdout):
        assert sentence in text
        assert re.search(r"0.9 to 1.0.*?0.95.*?100.0% \(83.9% to 100.0%, of 20\)", text, re.DOTALL)
    assert_forms_agree(runs[0], tmp_path, "--truth", runs[1])


def test_people_say_how_good_it_is(runs: tuple[Path, Path]) -> None:
    right = lambda question: question.predicate in ("holding", "near") and question.object_category == "cup"  # noqa: E731
    judge(runs[0], 60, lambda question: "right" if right(question) else "wrong")
    found = json.loads(invoke(runs[0], "--judgements", "own", "--json").stdout)["judgements"]["vlm_score"]
    assert (found["judged"], found["auc"]) == (59, 1.0)
    assert "Vision-language model, judged by people on 59" in invoke(runs[0], "--judgements", "own").stdout


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
    run = make_shards(tmp_path / "run", records)
    manifest = Manifest.load(run)
    manifest.run["identity"] = {"tag": {"method": "overlap"}, "pair": {}}
    manifest.rewrite()
    text = invoke(run).stdout
    assert "Nothing scored the relations: every candidate pair whose boxes overlap is related" in text
    assert "how sure the tagger is" not in text
    with pytest.raises(UserError, match="has no scores to calibrate: every candidate pair whose boxes overlap"):
        calibrate(run, judge_by_truth(run, GroundTruth(truth)))
