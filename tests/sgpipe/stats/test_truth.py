import json

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.stats.ground_truth import KnownTruth, measure_truth
from tests.sgpipe.stats.runs import make_shards, scene

THRESHOLDS = (0.2, 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A truth of 20 images, and a run that is right where it is sure, and half right where it is not."""
    folder = tmp_path_factory.mktemp("truth")
    true = [scene(str(n), [(0, "holding", 2), (1, "near", 2)]) for n in range(20)]
    said = [
        scene(str(n), [(0, "holding", 2, 0.9), (1, "near" if n % 2 else "under", 2, 0.3), (0, "near", 1, 0.05)])
        for n in range(20)
    ]
    return make_shards(folder / "run", said), make_shards(folder / "truth", true)


def truth_of(run, truth, *numbers):
    return measure_truth(run, KnownTruth(truth), *numbers)


def test_thresholds_that_reach_a_precision(runs):
    found = truth_of(*runs, 0.2, 0.9, THRESHOLDS)
    assert (found.images, found.relations) == (20, 60)
    assert (found.precision.right, found.precision.judged) == (30, 40)
    assert found.recall == 30 / 40
    assert found.suggested.threshold == pytest.approx(0.9)
    assert found.suggested.kept == 20
    assert truth_of(*runs, 0.2, 0.7, THRESHOLDS).suggested.kept == 40
    assert [choice.kept for choice in found.curve] == [40, 20]
    rows = {row.predicate: row for row in found.predicates}
    assert rows["holding"].suggested.kept == 20
    assert rows["near"].suggested.kept == 10  # right at 0.3, wrong at 0.05
    assert rows["under"].suggested is None
    bins = [(round(part.confidence, 2), part.precision.value) for part in found.reliability]
    assert bins == [(0.05, 0.0), (0.3, 0.5), (0.9, 1.0)]


def test_it_is_in_all_three_forms(runs, tmp_path):
    options = ["stats", *map(str, (runs[0], "--truth", runs[1], "--precision", "0.9"))]
    said = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)["truth"]
    assert said["suggested"]["kept"] == 20
    terminal = CliRunner().invoke(app, [*options, "--html", str(tmp_path / "r.html")]).stdout
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (terminal, page):
        assert "75.0% (59.8% to 85.8%, of 40)" in text
        assert "Of confidence 0.900 or more, at least 90% are right: 20 of the judged relations." in text
    assert "Are confidences what they claim?" in page


def test_a_run_without_a_confident_relation(tmp_path, runs):
    weak = make_shards(tmp_path / "weak", [scene(str(n), [(0, "holding", 2, 0.01)]) for n in range(20)])
    found = truth_of(weak, runs[1], 0.2, 0.9, THRESHOLDS)
    assert found.precision.value is None
    result = CliRunner().invoke(app, ["stats", str(weak), "--truth", str(runs[1]), "--json"])
    assert "NaN" not in result.stdout
    assert json.loads(result.stdout)["truth"]["related_precision"] is None


def test_other_images_and_odd_targets_are_refused(tmp_path, runs):
    stranger = make_shards(tmp_path / "stranger", [scene("999", [(0, "near", 1)])])
    with pytest.raises(UserError, match="no image in common"):
        truth_of(runs[0], stranger, 0.2, 0.9, THRESHOLDS)
    with pytest.raises(UserError, match="precision 2"):
        truth_of(*runs, 0.2, 2, THRESHOLDS)


def test_visual_genome_is_the_truth_of_coco(tmp_path, runs):
    """Its own numbers of the images are others; image_data.json knows which are COCO's."""
    true = [scene(str(n + 900), [(0, "holding", 2), (1, "near", 2)], dataset="visual_genome") for n in range(10)]
    genome = make_shards(tmp_path / "genome", true)
    items = [{"image_id": n + 900, "coco_id": n if n < 6 else None, "width": 320, "height": 240} for n in range(10)]
    (tmp_path / "image_data.json").write_text(json.dumps(items))
    options = ["stats", str(runs[0]), "--truth", str(genome), "--json"]
    assert "--image-data" in CliRunner().invoke(app, options).stderr
    result = CliRunner().invoke(app, [*options, "--image-data", str(tmp_path / "image_data.json")])
    assert json.loads(result.stdout)["truth"]["images"] == 6
