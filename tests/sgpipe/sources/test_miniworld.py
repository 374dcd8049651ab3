"""The miniworld as a source: generated whole or not at all, and never in place of another run's
images.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality import run_quality
from sgpipe.generation.run import generate
from sgpipe.miniworld.scene import random_scene
from sgpipe.recipe import MiniworldConfig, load_recipe
from sgpipe.sources.miniworld import MiniworldFiles
from sgpipe.sources.opening import prepare_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth, RunFolder, ground_truth_of
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import shard_name, write_shard
from tests.sgpipe.sources.test_import_run import QUIET
from tests.values import values_of

CONFIG = MiniworldConfig(images=6, seed=3, split="test-compositional")


@pytest.fixture(scope="module")
def miniworld(tmp_path_factory) -> MiniworldFiles:
    files = MiniworldFiles(tmp_path_factory.mktemp("run") / "drawn")
    files.make(CONFIG)
    return files


def facts(root: Path) -> list[Counter]:
    return [
        Counter(values_of(record.relations, "subject", "predicate", "object"))
        for record in iter_records(root)
    ]


def true_facts(config: MiniworldConfig, implied_too: bool) -> list[Counter]:
    scenes = [random_scene(config.seed, config.split, number) for number in range(config.images)]
    return [
        Counter(fact[:3] for fact in scene.facts if implied_too or not fact.implied)
        for scene in scenes
    ]


def test_shards_have_all_relations_and_the_composed_ones(miniworld):
    assert facts(miniworld.all_relations) == true_facts(CONFIG, implied_too=True)
    assert facts(miniworld.composed_relations) == true_facts(CONFIG, implied_too=False)
    for number, record in enumerate(iter_records(miniworld.all_relations)):
        scene = random_scene(CONFIG.seed, CONFIG.split, number)
        assert values_of(record.objects, "category") == values_of(scene.things, "kind")
        assert record.split == "test_compositional"


def test_incomplete_images_are_replaced(tmp_path):
    files = MiniworldFiles(tmp_path / "drawn")
    config = MiniworldConfig(images=3, seed=2)
    (files.world).mkdir(parents=True)
    (files.world / ".instances.json.123.tmp").touch()
    files.make(config)
    assert facts(files.composed_relations) == true_facts(config, implied_too=False)


def labelled(miniworld: MiniworldFiles, out: Path) -> RunFolder:
    """A run on these images, whose labels are the composed relations."""
    folder = RunFolder(out)
    shutil.copytree(miniworld.root, folder.private / "drawn")
    folder.set_ground_truth(MiniworldFiles(folder.private / "drawn").ground_truth)
    (out / "data").mkdir()
    run = {"name": "miniworld", "fingerprint": "0", "identity": {"miniworld": CONFIG.model_dump()}}
    manifest = Manifest.create(
        out, {**run, "images": {"test_compositional": ".sgpipe/drawn/world/images"}}
    )
    split = "test_compositional"
    name = shard_name("test_compositional", 0, CONFIG.images)
    manifest.commit(
        write_shard(out, name, split, 0, list(iter_records(miniworld.composed_relations)), {})
    )
    return folder


def test_a_run_on_other_images_is_refused_and_nothing_is_changed(miniworld, tmp_path):
    folder = labelled(miniworld, tmp_path / "run")
    recipe = load_recipe(
        "miniworld", {"source.miniworld": CONFIG.model_dump(), "source.miniworld.seed": 4}
    )
    with pytest.raises(UserError, match=r"\n  miniworld.seed: 3 then, 4 now"):
        generate(recipe, folder.root, QUIET)
    assert facts(ground_truth_of(folder.root).relations) == true_facts(CONFIG, implied_too=True)


def test_commands_find_ground_truth_and_images_in_a_moved_run(miniworld, tmp_path):
    labelled(miniworld, tmp_path / "run").root.rename(tmp_path / "moved")
    run = str(tmp_path / "moved")
    result = CliRunner().invoke(
        app, ["eval", "labels", "--pred", run, "--json-file", str(tmp_path / "scores.json")]
    )
    assert result.exit_code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["counts"]["images compared"] == CONFIG.images
    assert scores["summary"]["precision at 0.2"] == scores["summary"]["recall at 0.2"] == 1
    report = CliRunner().invoke(app, ["stats", run])
    assert f"Ground truth of {CONFIG.images} images: the precision of relations" in report.stdout
    assert Manifest.load(tmp_path / "moved").image_roots["test_compositional"].folder.is_dir()


def test_any_source_can_have_ground_truth(miniworld, tmp_path):
    """The miniworld's images as an ordinary COCO dataset, compared with an import of their scene
    graphs.
    """
    folder = RunFolder(labelled(miniworld, tmp_path / "run").root)
    shutil.rmtree(folder.private / "drawn")
    folder.set_ground_truth(GroundTruth(miniworld.all_relations))
    [(_, quality), *_] = run_quality(folder.root).items()
    assert quality.at_threshold.precision == 1
    # recall counts all relations, not only the composed ones
    assert quality.at_threshold.recall < 1
    folder.set_ground_truth(None)
    assert run_quality(folder.root) == {}


def test_a_recipe_names_the_ground_truth_of_its_source(miniworld, tmp_path):
    names = {
        "source.root": tmp_path,
        "source.ground_truth": miniworld.all_relations,
        "source.image_data": "i.json",
    }
    source = load_recipe("coco", names).source
    with pytest.raises(UserError, match=r"no such file: .*i\.json"):
        prepare_source(source, tmp_path / ".sgpipe", print)
    (tmp_path / "i.json").touch()
    prepared, ground_truth = prepare_source(source, tmp_path / ".sgpipe", print)
    assert prepared == source
    assert ground_truth == GroundTruth(miniworld.all_relations, image_data=tmp_path / "i.json")
    with pytest.raises(UserError, match="is not an sgpipe run"):
        prepare_source(
            source.model_copy(update={"ground_truth": tmp_path}), tmp_path / ".sgpipe", print
        )
