"""Models as a recipe names them: packaged ones, folders of trainings, and what their
configurations say.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from filecmp import cmp
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator

from sgpipe.errors import EngineError, UserError
from sgpipe.files.model_cache import local_model

MINIWORLD = "MINIWORLD"  # in a recipe: the packaged model of the miniworld
PackagedModel = Literal["captioner", "tagger", "parseda"]
DEFAULT_SIDES = (800, 1333)
"""Short and maximum long side, in pixels, of the images that a network reads, as published."""

_SGPIPE = Path(__file__).parents[1]
PACKAGED_LAYOUT = _SGPIPE / "stages" / "tag" / "layout" / "weights"
_WEIGHTS = "model.safetensors"


def packaged_model(name: PackagedModel) -> Path:
    """Return the folder of a packaged model, for `from_pretrained`; its README says how it was
    made.
    """
    return _SGPIPE / "miniworld" / "weights" / name


def network_folder(model: Path) -> Path:
    """Return the folder itself, or the best or last checkpoint in the folder of a training."""
    folders = (model, model / "best", model / "last")
    return next((folder for folder in folders if (folder / "config.json").is_file()), model)


def model_name(model: str) -> str:
    """Return MINIWORLD for this word in any letters, unless a folder of that name has a model;
    others unchanged.
    """
    is_folder = (network_folder(Path(model)) / "config.json").is_file()
    return MINIWORLD if model.upper() == MINIWORLD and not is_folder else model


def named_model(model: str, packaged: PackagedModel | None) -> str:
    """Return the folder of the packaged model for its name, of a training its best network; others
    unchanged.
    """
    if packaged is not None and model_name(model) == MINIWORLD:
        return str(packaged_model(packaged))
    folder = network_folder(Path(model))
    return model if folder == Path(model) else str(folder.resolve())


ModelName = Annotated[str, AfterValidator(model_name)]


def layout_folder(model: str | None) -> Path:
    """Return the folder of a layout model, fetched if it is elsewhere; None: of the packaged one.
    Raises as `local_model`.
    """
    return PACKAGED_LAYOUT if model is None else Path(local_model(model))


def is_layout_model(model: str) -> bool:
    """Return whether a model is one of `sgpipe train layout`, by its configuration."""
    return "subject_classes" in known_settings(model)


def known_settings(model: str | None) -> dict[str, Any]:
    """Return the settings of a network in a folder, in a store or on the hub; {} for one that is
    not there.
    """
    with suppress(UserError, EngineError):
        return _config_json(model)
    return {}


def _config_json(model: str | None) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        folder = network_folder(Path(local_model(str(model), config_only=True)))
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        return settings if isinstance(settings, dict) else {}
    return {}


def trained_sides(model: str) -> tuple[int, int] | None:
    """Return the sides of a network's validation images, short and long, or None. Raises as
    `local_model`.
    """
    return image_sides(_config_json(model))


def image_sides(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    match settings.get("image_sides"):
        case [int(short), int(long)]:
            return short, long
    return None


def is_miniworld(model: str | None) -> bool:
    """Return whether a model is a packaged one, by its name, its folder or as a copy."""
    with suppress(OSError):
        if model_name(str(model)) == MINIWORLD:
            return True
        weights = network_folder(Path(str(model))) / _WEIGHTS
        for name in get_args(PackagedModel):
            if cmp(weights, packaged_model(name) / _WEIGHTS, shallow=False):
                return True
    return False
