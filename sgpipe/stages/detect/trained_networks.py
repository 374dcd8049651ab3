"""A trained ParSeDA or ParSeD in a folder: loading it, and the image size it was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rlip_model.model import ParSeD, ParSeDA, TripletDetector
from rlip_model.pretrained import CheckpointError
from rlip_model.text import TokenizerError
from sgpipe.errors import UserError

_KINDS: dict[str, type[TripletDetector]] = {"rlip_parseda": ParSeDA, "rlip_parsed": ParSeD}
_SIDES = (800, 1333)


def load_detector(model: Path) -> TripletDetector:
    """A ParSeDA or ParSeD in a folder, or the best one of a training's folder.

    Raises UserError: there is none.
    """
    folder = network_folder(model)
    if not folder.exists():  # not to be taken for the name of a model on a hub
        raise UserError(f"there is no folder {model}; name that of a trained network")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind == "rlip_tagger":
        raise UserError(f"{model} is an R-Tagger, which needs boxes: use it with `sgpipe generate --tagger`")
    try:
        return _KINDS.get(str(kind), ParSeDA).from_pretrained(folder).eval()
    except (CheckpointError, TokenizerError) as reason:
        raise UserError(str(reason)) from None


def network_folder(model: Path) -> Path:
    """The folder itself, or of a training's the best network, or the last one."""
    places = (model, model / "best", model / "last")
    return next((place for place in places if (place / "config.json").is_file()), model)


def trained_sides(model: Path) -> tuple[int, int]:
    """The size of images that a training validated with; 800 and 1333 if it is not known."""
    folder = network_folder(model).resolve()
    for place in (folder, *folder.parents[:2], model):
        try:
            data = yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8"))["data"]
            return int(data["short_side"]), int(data["long_side"])
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
            continue
    return _SIDES
