"""Drawn images of a run and what is true of them: made whole or not at all, and never those of another run."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.generation.run import generate
from sgpipe.miniworld.scene import random_scene
from sgpipe.recipe import DrawnConfig, load_recipe
from sgpipe.sources.miniworld import draw
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import Drawing, RunFolder
from sgpipe.storage.shards import iter_records, shard_name, write_shard
from sgpipe.utils.console import Progress

CONFIG = DrawnConfig(images=6, seed=3, split="test-compositional")
QUIET = Progress(Console(quiet=True))


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Drawing:
    found = Drawing(tmp_path_factory.mktemp("run") / "drawn")
    draw(CONFIG, found)
    return found


def facts(root: Path) -> list[Counter]:
    return [Counter((r.subject, r.predicate, r.object) for r in record.relations) for record in iter_records(root)]


def true_facts(config: DrawnConfig, implied_too: bool) -> list[Counter]:
    scenes = [random_scene(config.seed, config.split, number) for number in range(config.images)]
    return [Counter(fact[:3] for fact in scene.facts if implied_too or not fact.implied) for scene in scenes]


def test_shards_hold_all_that_is_true_and_all_that_was_composed(drawing):
    assert drawing.settings == CONFIG.model_dump()
    assert facts(drawing.true) == true_facts(CONFIG, implied_too=True)
    assert facts(drawing.composed) == true_facts(CONFIG, implied_too=False)
    for number, record in enumerate(iter_records(drawing.true)):
        scene = random_scene(CONFIG.seed, CONFIG.split, number)
        assert [box.category for box in record.objects] == [thing.kind for thing in scene.things]
        assert record.split == "test_compositional"


def test_other_images_or_half_of_them_are_drawn_over(tmp_path):
    place = Drawing(tmp_path / "drawn")
    for seed in (1, 2):
        config = DrawnConfig(images=3, seed=seed)
        draw(config, place)
        assert facts(place.true) == true_facts(config, implied_too=True)
    (place.world / "scene_graphs.json").unlink()
    (place.world / ".instances.json.123.tmp").touch()
    shutil.rmtree(place.composed / "data")
    draw(config, place)
    assert facts(place.composed) == true_facts(config, implied_too=False)


def labelled(drawing: Drawing, out: Path) -> RunFolder:
    """A run of the drawing's images whose labels are what was composed."""
    folder = RunFolder(out)
    shutil.copytree(drawing.place, folder.drawing.place)
    (out / "data").mkdir()
    run = {"name": "miniworld", "fingerprint": "0", "identity": {"drawn": drawing.settings}}
    manifest = Manifest.create(out, {**run, "images": {"test_compositional": ".sgpipe/drawn/world/images"}})
    split, name = "test_compositional", shard_name("test_compositional", 0, CONFIG.images)
    manifest.commit(write_shard(out, name, split, 0, list(iter_records(drawing.composed)), {}))
    return folder


def test_a_run_of_other_images_is_refused_before_anything_is_touched(drawing, tmp_path):
    folder = labelled(drawing, tmp_path / "run")
    for changes, refusal in (
        ({"source.drawn.seed": 4}, r"\n  drawn.seed: 3 then, 4 now"),
        ({"source.drawn.images": 7}, r"\n  drawn.images: 6 then, 7 now"),
    ):
        recipe = load_recipe("miniworld", {"source.drawn": CONFIG.model_dump(), **changes})
        with pytest.raises(UserError, match=refusal):
            generate(recipe, folder.root, QUIET)
    other = {"source.splits": {"val": {"annotations": "a.json", "images": "b", "captions": "c.json"}}}
    with pytest.raises(UserError, match=r"\n  drawn.* now"):
        generate(load_recipe("coco", {**other, "tag.tagger": "x"}), folder.root, QUIET)
    assert facts(folder.truth.true) == true_facts(CONFIG, implied_too=True)


def test_the_miniworld_is_not_for_other_images():
    other = {"source.splits": {"val": {"annotations": "a.json", "images": "b"}}}
    with pytest.raises(UserError, match="draws its own images"):
        generate(load_recipe("miniworld", other), Path("nowhere"), QUIET)
    assert not Path("nowhere").exists()


def test_commands_find_the_truth_and_the_images_in_a_run_wherever_it_is(drawing, tmp_path):
    labelled(drawing, tmp_path / "run").root.rename(tmp_path / "moved")
    run = str(tmp_path / "moved")
    result = CliRunner().invoke(app, ["eval", "labels", "--pred", run, "--json", str(tmp_path / "scores.json")])
    assert result.exit_code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["counts"]["images compared"] == CONFIG.images
    assert scores["summary"]["precision at 0.2"] == scores["summary"]["recall at 0.2"] == 1
    report = CliRunner().invoke(app, ["stats", run])
    assert f"By the truth of {CONFIG.images} images, 100.0%" in report.stdout
    assert Manifest.load(tmp_path / "moved").image_folders["test_compositional"].is_dir()


def test_without_truth_there_is_nothing_to_compare_with(drawing):
    result = CliRunner().invoke(app, ["eval", "labels", "--pred", str(drawing.composed)])
    assert result.exit_code == 2
    assert "give --truth" in result.stderr
