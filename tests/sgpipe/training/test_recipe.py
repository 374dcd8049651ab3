import pytest
import torch

from rlip_model.presets import preset
from rlip_model.settings import Augmentation
from sgpipe.errors import UserError
from sgpipe.training.data.scan import scan_training
from sgpipe.training.job import TrainingJob
from sgpipe.training.recipe import (
    TrainRecipe,
    WorkersConfig,
    load_train_recipe,
    shards_options,
    train_recipe_folder,
)
from sgpipe.training.run import _identity
from sgpipe.utils.hashing import differences
from tests.factories import make_calibration
from tests.sgpipe.training.data.runs import make_run, plain_record
from tests.values import values_of

# What was published, of Swin-T where the scripts differ: epochs, drop after, rate of the rest (a
# tenth for backbone and text encoder), images per step, queries, labels, quality labels,
# pseudo-labels, subjects classified.
PUBLISHED = {
    "tagger": (20, 15, 1e-4, 32, 200, "sampled", True, True, True),
    "pretrain": (20, 15, 1.41e-4, 64, 200, "sampled", True, True, True),
    "hico": (20, 15, 1e-4, 32, 128, "full", True, False, True),
    "hico-fewshot-1": (10, 7, 1e-4, 32, 200, "full", True, False, False),
    "hico-fewshot-10": (10, 7, 1e-4, 32, 200, "full", True, False, False),
    "hico-uc-rf": (20, 15, 1e-4, 32, 128, "full", True, False, True),
    "hico-uc-nf": (10, 7, 1e-4, 32, 128, "full", True, False, True),
    "vcoco": (20, 15, 1e-4, 32, 200, "full", False, False, True),
    "openimages": (20, 15, 1e-4, 32, 200, "full", True, False, True),
}
NAMES = sorted(values_of(train_recipe_folder().glob("*.yaml"), "stem"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_are_trained_as_published(name):
    epochs, drop, rate, batch, queries, labels, quality, pseudo, subjects = PUBLISHED[name]
    recipe = load_train_recipe(name)
    kind = "tagger" if name == "tagger" else "parseda"
    network = preset(kind, recipe.model.backbone, **recipe.model.config)
    options = recipe.optimisation
    assert (recipe.model.kind, network.num_queries, network.subject_class) == (
        kind,
        queries,
        subjects,
    )
    assert (network.gating, network.verb_query, network.dropout, network.drop_path) == (
        "VXAc",
        "vanilla_MBF",
        0,
        0.2,
    )
    assert kind == "parseda" or (network.box_noise, network.label_noise) == (0.4, 0.2)
    assert (recipe.data.labels, recipe.loss.quality_labels, recipe.loss.pseudo_labels) == (
        labels,
        quality,
        pseudo,
    )
    assert (options.epochs, options.lr_drop, options.batch) == (epochs, drop, batch)
    assert (options.lr, options.lr_backbone, options.lr_text) == pytest.approx(
        (rate, rate / 10, rate / 10)
    )
    assert (options.weight_decay, options.clip_norm, options.schedule) == (1e-4, 0.1, "step")
    assert (options.warmup, options.ema, options.frozen) == (0, 0, ())


@pytest.mark.parametrize("name", NAMES)
def test_settings_shared_by_all_recipes(name):
    recipe = load_train_recipe(name)
    assert recipe.name == name
    assert load_train_recipe(str(train_recipe_folder() / f"{name}.yaml")) == recipe
    assert (recipe.data.threshold, recipe.data.short_side, recipe.data.long_side) == (
        0.2,
        800,
        1333,
    )
    strategies = (recipe.data.object_strategy, recipe.data.relation_strategy)
    assert (recipe.data.negative_texts, *strategies) == (500, "frequency", "frequency")
    crops = {"crop_probability": 0.5, "crop_short_sides": (400, 500, 600), "crop_range": (384, 600)}
    changes = {
        "flip": 0.5,
        "jitter": 0.4,
        "short_sides": (*range(480, 801, 32),),
        "long_side": 1333,
    }
    assert recipe.data.augment == Augmentation(**changes, **crops)


def test_folders_of_shards_have_weights(tmp_path):
    images = tmp_path / "images"
    assert shards_options(["vg", "coco@0.5", "a@b@2"], images) == [
        {"shards": "vg", "images": images},
        {"shards": "coco", "images": images, "weight": "0.5"},
        {"shards": "a@b", "images": images, "weight": "2"},
    ]
    (tmp_path / "vg@2").mkdir()
    assert shards_options([f"{tmp_path}/vg@2", f"{tmp_path}/vg@2@3"], None) == [
        {"shards": f"{tmp_path}/vg@2", "images": None},
        {"shards": f"{tmp_path}/vg@2", "images": None, "weight": "3"},
    ]
    for weight in ("0", "nan", "much"):
        with pytest.raises(UserError, match=r"data\.train\.0\.weight"):
            load_train_recipe("pretrain", {"data.train": shards_options([f"vg@{weight}"], None)})


def test_label_texts_are_those_of_one_gpu_as_published():
    groups = {name: load_train_recipe(name).data.text_group for name in NAMES}
    assert {name: group for name, group in groups.items() if group} == {"pretrain": 4, "tagger": 4}
    assert all(
        load_train_recipe(name).data.labels == "full" for name, group in groups.items() if not group
    )
    assert {load_train_recipe(name, miniature=True).data.text_group for name in NAMES} == {None}


def test_a_training_with_another_calibration_is_another_one(tmp_path):
    shards = make_run(tmp_path / "run", [plain_record("a", confidence=0.9)])
    files = [
        make_calibration(tmp_path / f"{n}.json", {"run": "drawn"}, offset=float(n)) for n in (0, 1)
    ]
    (tmp_path / "copy.json").write_bytes(files[0].read_bytes())
    identities = []
    for file in (*files, tmp_path / "copy.json", None):
        recipe = TrainRecipe.model_validate({"data": {"train": [shards], "calibration": file}})
        identities.append(
            _identity(TrainingJob(recipe, tmp_path, scan_training(recipe.data), None))
        )
    first, second, copy, without = identities
    assert copy == first
    assert [line.partition(":")[0] for line in differences(first, second)] == ["data.calibration"]
    assert without["data"]["calibration"] is None


def test_a_worker_without_gpus_computes_on_the_cpu_of_a_machine_with_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray Train has chosen the first GPU by then, so that hiding it is too late."""
    from sgpipe.training.workers import worker_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_device(WorkersConfig(count=2)) == torch.device("cpu")
    assert worker_device(WorkersConfig(count=2, gpus=1, device="cpu")) == torch.device("cpu")
