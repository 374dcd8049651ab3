import json

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.stats.precision import measure_against_ground_truth
from sgpipe.storage.run_folder import GroundTruth
from tests.sgpipe.stats.runs import make_shards, scene

THRESHOLDS = (0.2, 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ground truth of 20 images, and a run whose confident relations are correct, and half of the others."""
    folder = tmp_path_factory.mktemp("truth")
    true = [scene(str(n), [(0, "holding", 2), (1, "near", 2)]) for n in range(20)]
    predicted = [
        scene(str(n), [(0, "holding", 2, 0.9), (1, "near" if n % 2 else "under", 2, 0.3), (0, "near", 1, 0.05)])
        for n in range(20)
    ]
    return make_shards(folder / "run", predicted), make_shards(folder / "truth", true)


def compare(run, truth, *numbers):
    return measure_against_ground_truth(run, GroundTruth(truth), *numbers)


def test_thresholds_that_reach_a_precision(runs):
    found = compare(*runs, 0.2, 0.9, THRESHOLDS)
    assert (found.images, found.relations) == (20, 60)
    assert (found.precision.correct, found.precision.judged) == (30, 40)
    assert found.recall == 30 / 40
    assert found.suggested.threshold == pytest.approx(0.9)
    assert found.suggested.kept == 20
    assert not found.sure  # 20 of 20 show 84 %
    assert [compare(*runs, 0.2, target, THRESHOLDS).suggested.kept for target in (0.8, 0.5)] == [20, 40]
    assert [choice.kept for choice in found.curve] == [40, 20]
    rows = {row.predicate: row for row in found.predicates}
    assert rows["holding"].suggested is rows["near"].suggested is rows["under"].suggested is None
    rows = {row.predicate: row.suggested for row in compare(*runs, 0.2, 0.7, THRESHOLDS).predicates}
    assert (rows["holding"].kept, rows["near"].kept, rows["under"]) == (20, 10, None)  # near: wrong at 0.05
    bins = [(round(part.confidence, 2), part.precision.value) for part in found.reliability]
    assert bins == [(0.05, 0.0), (0.3, 0.5), (0.9, 1.0)]


def test_it_is_in_all_three_forms(runs, tmp_path):
    options = ["stats", *map(str, (runs[0], "--truth", runs[1], "--precision", "0.9"))]
    predicted = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)["ground_truth"]
    assert predicted["suggested"]["kept"] == 20
    terminal = CliRunner().invoke(app, [*options, "--html", str(tmp_path / "r.html")]).stdout
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (terminal, page):
        assert "75.0% (58.3% to 86.6%, of 40)" in text
        assert "No threshold is shown to reach a precision of 90%. One of 0.900 keeps 20 judged relations" in text
    assert "Calibration" in page


def test_a_run_without_a_confident_relation(tmp_path, runs):
    weak = make_shards(tmp_path / "weak", [scene(str(n), [(0, "holding", 2, 0.01)]) for n in range(20)])
    found = compare(weak, runs[1], 0.2, 0.9, THRESHOLDS)
    assert found.precision.value is None
    result = CliRunner().invoke(app, ["stats", str(weak), "--truth", str(runs[1]), "--json"])
    assert "NaN" not in result.stdout
    assert json.loads(result.stdout)["ground_truth"]["related_precision"] is None
