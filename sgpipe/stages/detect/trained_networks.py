"""Load a trained ParSeDA or ParSeD from a folder, and read the image size it was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rlip_model.model import ParSeD, ParSeDA, TripletDetector
from rlip_model.pretrained import CheckpointError
from rlip_model.text import TokenizerError
from sgpipe.errors import UserError

_KINDS: dict[str, type[TripletDetector]] = {"rlip_parseda": ParSeDA, "rlip_parsed": ParSeD}
_DEFAULT_SIDES = (800, 1333)


def load_detector(model: Path) -> TripletDetector:
    """Load a ParSeDA or ParSeD from its folder, or the best checkpoint from the folder of a training.

    Raises UserError: the folder has no such network.
    """
    folder = network_folder(model)
    if not folder.exists():  # otherwise the name would be looked up on the hub
        raise UserError(f"no folder {model}; expected the folder of a trained network")
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
    """The folder itself, or the best or last checkpoint in the folder of a training."""
    folders = (model, model / "best", model / "last")
    return next((folder for folder in folders if (folder / "config.json").is_file()), model)


def trained_sides(model: Path) -> tuple[int, int]:
    """Short and long side in pixels of the images in validation; 800 and 1333 if the recipe is missing."""
    checkpoint = network_folder(model).resolve()
    for folder in (checkpoint, *checkpoint.parents[:2], model):
        try:
            data = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["data"]
            return int(data["short_side"]), int(data["long_side"])
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
            continue
    return _DEFAULT_SIDES
