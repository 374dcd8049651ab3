"""Every training recipe trains with --miniature on shards made by its own importer."""

import json
import math
import random
from pathlib import Path

import pytest
from rich.console import Console

from sgpipe.miniworld.dataset import render_dataset
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.hoi import (
    HICO,
    OPEN_IMAGES,
    VCOCO,
    HoiaSchema,
    hico_interactions,
    hico_source,
    open_images_source,
    vcoco_source,
)
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.scene_graphs import VisualGenome
from sgpipe.training.metrics import read_metrics
from sgpipe.training.recipe import load_train_recipe, train_recipe_folder
from sgpipe.training.run import train
from sgpipe.utils.console import Progress

QUIET = Progress(Console(quiet=True))
IMAGES, BATCH = 4, 2
SHARDS_OF = {
    "tagger": "vg",
    "pretrain": "vg",
    "hico": "hico",
    "hico-fewshot-1": "hico",
    "hico-fewshot-10": "hico",
    "hico-uc-rf": "hico",
    "hico-uc-nf": "hico",
    "vcoco": "vcoco",
    "openimages": "openimages",
}


def fitting_relations(schema: HoiaSchema, category: int) -> list[int]:
    """The relations that an object of this class can have; HICO-DET knows 600 interactions only."""
    if schema is not HICO:
        return list(schema.relations)
    return [relation for relation in schema.relations if (relation, category) in hico_interactions()]


def hoia(scene: dict, schema: HoiaSchema, rng: random.Random) -> dict:
    """A scene as an item of a HOIA file; the first object is a person, other classes and relations are random."""
    ids = {item["object_id"]: place for place, item in enumerate(scene["objects"])}
    boxes = [[item["x"], item["y"], item["x"] + item["w"], item["y"] + item["h"]] for item in scene["objects"]]
    classes = [1, *rng.choices(list(schema.objects), k=len(boxes) - 1)]
    relations = [
        {
            "subject_id": ids[fact["subject_id"]],
            "object_id": ids[fact["object_id"]],
            "category_id": rng.choice(fitting_relations(schema, classes[ids[fact["object_id"]]])),
        }
        for fact in scene["relationships"]
    ]
    if schema.objectless:
        relations.append({"subject_id": 0, "object_id": -1, "category_id": next(iter(schema.relations))})
    return {
        "file_name": f"{scene['image_id']}.jpg",
        "annotations": [{"bbox": box, "category_id": number} for box, number in zip(boxes, classes, strict=True)],
        schema.key: relations,
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, Path]:
    """Shards of the same synthetic images from each format of annotations."""
    root = tmp_path_factory.mktemp("shards")
    render_dataset(root / "drawn", IMAGES, 0)
    images, graphs = root / "drawn" / "images", root / "drawn" / "scene_graphs.json"
    scenes = json.loads(graphs.read_text())
    sources: dict[str, AnnotationSource] = {"vg": VisualGenome(graphs, images, "train").source()}
    for name, schema in (("hico", HICO), ("vcoco", VCOCO), ("openimages", OPEN_IMAGES)):
        path = root / f"trainval_{name}.json"
        path.write_text(json.dumps([hoia(scene, schema, random.Random(name)) for scene in scenes]))
        make = {"hico": hico_source, "vcoco": vcoco_source, "openimages": open_images_source}[name]
        sources[name] = make(path, "train")
    for name, source in sources.items():
        import_annotations(source, images, root / name, QUIET)
    return {name: root / name for name in sources}


def run(name: str, shards: Path, out: Path, **overrides) -> list[dict]:
    options = {
        "data.train": [{"shards": str(shards)}],
        "data.threads": 1,
        "optimisation.batch": BATCH,
        "optimisation.epochs": 1,
        "output.log_every": 1,
        "output.tensorboard": False,
        "workers.device": "cpu",
    }
    train(load_train_recipe(name, options | overrides, miniature=True), out, QUIET)
    return read_metrics(out)


LIKE_ANOTHER = {"hico-fewshot-10", "hico-uc-nf", "hico-uc-rf"}  # except for the number of epochs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] if name in LIKE_ANOTHER else []) for name in SHARDS_OF]
)
def test_a_recipe_trains(shards, tmp_path, name):
    rows = run(name, shards[SHARDS_OF[name]], tmp_path)
    assert [row["step"] for row in rows] == list(range(1, IMAGES // BATCH + 1))
    assert all(math.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)


def test_every_recipe_is_tested():
    assert set(SHARDS_OF) == {path.stem for path in train_recipe_folder().glob("*.yaml")}
