"""The audit of what `sgpipe generate` labels: the drawn world, and real images of COCO."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe import miniworld
from sgpipe.cli.main import app
from sgpipe.stats.audit import audit
from sgpipe.storage.index import open_run
from sgpipe.storage.run_folder import RunFolder
from tests.sgpipe.stats.agreement import (
    assert_forms_agree,
    assert_thresholds_are_numpys,
    assert_totals_are_pyarrows,
    read,
)

pytestmark = pytest.mark.slow

TAGGER = Path(miniworld.__file__).parent / "weights" / "tagger"


def generate(out, *options):
    result = CliRunner().invoke(app, ["generate", *map(str, options), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture(scope="module")
def coco(oracle, tmp_path_factory):
    """24 of 79 images are there."""
    folder = oracle / "data" / "coco_mini"
    files = {"images": "images_val2017", "annotations": "instances_val2017.json", "captions": "captions_val2017.json"}
    options = [part for name, file in files.items() for part in (f"--{name}", folder / file)]
    return generate(tmp_path_factory.mktemp("coco") / "run", "coco", *options, "--tagger", TAGGER)


@pytest.mark.parametrize("name", ["drawn", "coco"])
def test_all_forms_agree_with_each_other_and_with_pyarrow(name, request, tmp_path):
    root = request.getfixturevalue(name)
    rows = read(root)
    assert rows.num_rows == {"drawn": 200, "coco": 79}[name]
    assert_forms_agree(root, tmp_path)
    assert_totals_are_pyarrows(root, rows)
    assert_thresholds_are_numpys(root, rows)


def test_the_default_labels_are_healthy_and_good_by_the_ground_truth(drawn):
    with open_run(drawn) as database:
        found = audit(database, ground_truth=RunFolder(drawn).ground_truth)
    assert [check.name for check in found.measures.health if check.count] == []
    assert found.ground_truth.precision.low > 0.9
    assert found.ground_truth.recall > 0.8
    assert found.ground_truth.suggested.kept == found.ground_truth.relations > 300
    assert [finding.text for finding in found.findings][-1] == "No problems found."
