"""The models that ship with sgpipe match their recipes, are small, can be loaded, and have a model
card.
"""

import shutil

import pytest

from experiments.miniworld.network_quality import (
    ANY_PAIR,
    measure_tagger,
    network_recipe,
    quality_lines,
    quality_rows,
)
from sgpipe.errors import EngineError, UserError
from sgpipe.miniworld.relations import COMPOSITIONAL
from sgpipe.miniworld.scene import WORDINGS
from sgpipe.recipe import (
    MINIWORLD,
    TagConfig,
    hub_models,
    load_recipe,
    miniworld_notes,
    packaged_model,
    recipe_notes,
    size_notes,
    trained_sides,
    with_model_folders,
)
from sgpipe.stages.detect import load_detector
from sgpipe.training.initial_model import CLASSES, make_initial_model
from sgpipe.training.recipe import ModelConfig
from tests.sgpipe.generation.in_process import without_ray
from tests.sgpipe.training.trainings import different
from tests.values import values_of

NETWORKS = ("tagger", "parseda")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_packaged_network_matches_its_recipe(name):
    model = network_recipe(name).model
    network = CLASSES[model.kind].from_pretrained(packaged_model(name))
    assert {key: getattr(network.config, key) for key in model.config} == model.config
    assert trained_sides(str(packaged_model(name))) == (96, 144)
    finite = {name: (wording.finite,) for name, wording in WORDINGS.items() if wording.is_verb}
    assert network_recipe(name).data.wordings == finite
    words = network.tokenizer.get_vocab()
    assert {word for name in WORDINGS for word in name.split()} <= words.keys()


def test_packaged_models_are_noted_on_other_images_whatever_names_them(tmp_path):
    coco = load_recipe("coco")
    drawn = load_recipe("miniworld")
    copied = tmp_path / "copy"
    trained = tmp_path / "training"
    shutil.copytree(packaged_model("tagger"), copied)
    shutil.copytree(packaged_model("parseda"), trained / "best")
    for tagger in (MINIWORLD, str(packaged_model("tagger")), str(copied), str(trained)):
        tag = coco.tag.model_copy(update={"tagger": tagger, "short_side": 96, "long_side": 144})
        recipe = coco.model_copy(update={"tag": tag})
        [note] = recipe_notes(recipe, detects=False, source=recipe.source)
        assert "know only synthetic images" in note
        assert (
            recipe_notes(
                recipe.model_copy(update={"tag": TagConfig(tagger="someone/tagger")}), detects=False
            )
            == []
        )
    assert recipe_notes(drawn, detects=True, source=drawn.source) == []
    assert "know only synthetic images" in recipe_notes(drawn, detects=True)[0]
    assert miniworld_notes([None, str(packaged_model("captioner"))])
    assert not miniworld_notes([None, "facebook/detr-resnet-50", str(tmp_path)])


def test_a_copied_network_states_its_image_sides_and_one_that_does_not_is_noted(tmp_path):
    shutil.copytree(packaged_model("parseda"), copy := tmp_path / "copy")
    assert (trained_sides(str(copy)), size_notes(str(copy))) == ((96, 144), [])
    settings = (copy / "config.json").read_text()
    (copy / "config.json").write_text(settings.replace("image_sides", "sides"))
    assert trained_sides(str(copy)) is None
    recipe = load_recipe("coco", {"detect.detector": str(copy), "ground.detector": str(copy)})
    assert recipe_notes(recipe, detects=True)[1:] == size_notes(str(copy)) != []
    assert (
        "no image_sides, so images are resized to 800 and at most 1333 pixels"
        in size_notes(str(copy))[0]
    )
    assert size_notes("someone/detector") == size_notes(None) == []
    # a store or hub that fails once must not change the size
    with pytest.raises((UserError, EngineError)):
        trained_sides("someone/detector")


def test_a_tagger_that_would_read_images_of_another_size_is_noted():
    recipe = load_recipe("miniworld", {"tag.short_side": 800})
    [note] = recipe_notes(recipe, detects=True, source=recipe.source)
    assert "set tag.short_side (800 now)" in note


def test_recipes_refer_to_packaged_models_by_one_word():
    recipe = with_model_folders(load_recipe("miniworld"))
    assert recipe.caption.captioner == str(packaged_model("captioner"))
    assert recipe.tag.tagger == str(packaged_model("tagger"))
    assert recipe.detect.detector == str(packaged_model("parseda"))
    elsewhere = {
        "tag.tagger": "elsewhere",
        "caption.captioner": None,
        "detect.detector": "elsewhere",
    }
    other = load_recipe("miniworld", elsewhere)
    assert with_model_folders(other) == other
    assert load_recipe("miniworld").tag.tagger == MINIWORLD


@pytest.mark.parametrize("name", ["miniworld", "MINIWORLD"])
def test_packaged_models_have_a_name_wherever_a_model_is_named(name):
    models = {
        "detect.detector": name,
        "ground.detector": name,
        "caption.captioner": name,
        "tag.tagger": name,
    }
    recipe = with_model_folders(load_recipe("coco", models))
    assert recipe.caption.captioner == str(packaged_model("captioner"))
    assert recipe.tag.tagger == str(packaged_model("tagger"))
    assert recipe.detect.detector == recipe.ground.detector == str(packaged_model("parseda"))
    assert hub_models(recipe) == []
    assert isinstance(load_detector(name), CLASSES["parseda"])


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_training_starts_from_a_packaged_model_by_its_name(tmp_path, kind):
    make_initial_model(ModelConfig(kind=kind, init="MINIWORLD"), [], 0, tmp_path / kind)
    start = CLASSES[kind].from_pretrained(tmp_path / kind).state_dict()
    packaged = CLASSES[kind].from_pretrained(packaged_model(kind)).state_dict()
    assert different(start, packaged) == []


def test_no_packaged_model_is_an_rlipv1(tmp_path):
    with pytest.raises(UserError, match="a tagger and a parseda, not a rlipv1"):
        make_initial_model(ModelConfig(kind="rlipv1", init="miniworld"), [], 0, tmp_path)


def test_a_folder_of_images_does_not_hide_the_packaged_models_but_one_of_a_model_does(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniworld").mkdir()
    assert load_recipe("coco", {"tag.tagger": "miniworld"}).tag.tagger == MINIWORLD
    assert load_recipe("coco", {"tag.tagger": "./miniworld"}).tag.tagger == "./miniworld"
    shutil.copytree(packaged_model("tagger"), tmp_path / "miniworld" / "best")
    assert load_recipe("coco", {"tag.tagger": "miniworld"}).tag.tagger == "miniworld"


@pytest.mark.parametrize("names", [["last"], ["best", "last"]])
def test_the_folder_of_a_training_stands_for_its_best_network(tmp_path, names):
    training = tmp_path / "training"
    checkpoint = tmp_path / "training" / "checkpoints" / "1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").touch()
    (training / names[0]).symlink_to("checkpoints/1")
    recipe = with_model_folders(
        load_recipe("miniworld", {"tag.tagger": str(training), "detect.detector": str(training)})
    )
    assert recipe.tag.tagger == recipe.detect.detector == str(checkpoint.resolve())


@pytest.mark.slow
def test_labels_of_new_images_are_good_and_far_better_than_all_matching_pairs():
    folders = packaged_model("captioner"), packaged_model("tagger")
    with without_ray():
        tagger = measure_tagger(*folders, network_recipe("tagger"), 60)
    labels, everything = values_of(tagger.rows[:2], "by_truth")
    assert labels["all"].at_threshold.precision > max(
        0.75, everything["all"].at_threshold.precision + 0.1
    )
    assert labels["composed"].at_threshold.recall > 0.55
    assert tagger.given_pairs["val"] > 0.85
    assert tagger.given_pairs["test-compositional"] > 0.65
    assert len(quality_rows(tagger)) == 1 + 16
    assert len(quality_lines(tagger)) == 2 * 16
    new_combinations = {
        row.labels: row.by_truth["composed"] for row in tagger.rows if row.split == COMPOSITIONAL
    }
    assert new_combinations[ANY_PAIR].at(0.5).recall > 0.4
