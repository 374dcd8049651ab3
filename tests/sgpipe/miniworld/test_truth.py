import json
import shutil
from collections import Counter

import pytest
from typer.testing import CliRunner

from sgpipe.cli import app
from sgpipe.miniworld.scene import random_scene
from sgpipe.miniworld.truth import import_truth
from sgpipe.miniworld.world import draw_world
from sgpipe.shards.folder import RunFolder
from sgpipe.shards.read import iter_records

IMAGES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    place = RunFolder(tmp_path_factory.mktemp("run"))
    world = place.root / "world"
    draw_world(world, IMAGES, 3, "test-compositional")
    assert place.truth is None
    import_truth(world, "test_compositional", place.truth_place)
    return place


def test_shards_hold_all_that_is_true_and_all_that_was_composed(folder):
    scenes = [random_scene(3, "test-compositional", number) for number in range(IMAGES)]
    for root, implied_too in ((folder.truth.everything, True), (folder.truth.wanted, False)):
        records = list(iter_records(root))
        assert len(records) == IMAGES
        for scene, record in zip(scenes, records, strict=True):
            facts = [fact[:3] for fact in scene.facts if implied_too or not fact.implied]
            assert Counter((r.subject, r.predicate, r.object) for r in record.relations) == Counter(facts)
            assert [box.category for box in record.objects] == [thing.kind for thing in scene.things]
            assert record.split == "test_compositional"


def test_it_can_be_made_again_of_other_pictures(folder, tmp_path):
    for seed in (1, 2):
        draw_world(tmp_path / "world", 2, seed)
        import_truth(tmp_path / "world", "val", tmp_path / "truth")
        first = next(iter_records(tmp_path / "truth" / "true"))
        assert [box.category for box in first.objects] == [thing.kind for thing in random_scene(seed, "val", 0).things]


def test_commands_find_the_truth_in_the_run(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder.truth.wanted, run)
    blind = CliRunner().invoke(app, ["eval", "labels", "--pred", str(run)])
    assert blind.exit_code == 2
    assert "give --truth" in blind.stderr
    shutil.copytree(folder.truth_place, RunFolder(run).truth_place)
    result = CliRunner().invoke(app, ["eval", "labels", "--pred", str(run), "--json", str(tmp_path / "scores.json")])
    assert result.exit_code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["counts"]["images compared"] == IMAGES
    assert scores["summary"]["precision at 0.2"] == scores["summary"]["recall at 0.2"] == 1
    report = CliRunner().invoke(app, ["stats", str(run)])
    assert f"By the truth of {IMAGES} images, 100.0%" in report.stdout
