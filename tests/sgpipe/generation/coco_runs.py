"""Runs on images of COCO's form with random miniature models."""

from pathlib import Path

from sgpipe.recipe import Recipe, load_recipe
from tests.detections import Files

IMAGES = 40
FEW = 6
SMALL = {"tag.short_side": 48, "tag.long_side": 64, "tag.threshold": 0.01}
HIGHER = {"tag.threshold": 0.3}


def split(files: Files) -> dict[str, Path]:
    return {"annotations": files.annotations, "images": files.images, "captions": files.captions}


def recipe(files: Files, models: Path, **changes: object) -> Recipe:
    """Captions of a file."""
    settings = {"source.splits": {"val": split(files)}, "caption.captioner": None, **SMALL}
    return load_recipe("coco", {**settings, "tag.tagger": str(models / "tagger"), **changes})


def captioned(files: Files, models: Path, **changes: object) -> Recipe:
    settings = {
        "caption.captioner": str(models / "captioner"),
        "caption.samples": 2,
        "engine.unit_size": 2,
    }
    return recipe(files, models, **{**settings, **changes})
