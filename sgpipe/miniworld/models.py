"""The trained models of the drawn world that ship with sgpipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sgpipe.recipe import Recipe

MINIWORLD = "MINIWORLD"  # names them in recipes

NetworkName = Literal["tagger", "parseda"]
ModelName = Literal["captioner"] | NetworkName


def packaged_model(name: ModelName) -> Path:
    """The folder of a packaged model, for `from_pretrained`; its README says how it was made and how good it is."""
    return Path(__file__).parent / "weights" / name


def with_packaged_models(recipe: Recipe) -> Recipe:
    """The recipe with folders in the places of models that it calls MINIWORLD."""
    detect, caption, tag = recipe.detect, recipe.caption, recipe.tag
    if detect.detector == MINIWORLD:
        detect = detect.model_copy(update={"detector": str(packaged_model("parseda"))})
    if caption.captioner == MINIWORLD:
        caption = caption.model_copy(update={"captioner": str(packaged_model("captioner"))})
    if tag.tagger == MINIWORLD:
        tag = tag.model_copy(update={"tagger": str(packaged_model("tagger"))})
    return recipe.model_copy(update={"detect": detect, "caption": caption, "tag": tag})
