"""The identity of a run: everything that decides its labels. A changed identity is another run.

Settings that only distribute work (actors, batch sizes, devices) are not part of it. The content of annotation files
and models is. A setting that did not exist in older versions is part of it only where it changes labels, so that runs
of those versions keep their identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpipe.recipe import ADDED_SETTINGS, CaptionConfig, Recipe, TagConfig
from sgpipe.stages.parse.stage import model_version
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils import __version__
from sgpipe.utils.hashing import file_sha256

_DISTRIBUTION = {"resources", "batch_size", "device"}
_MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.model")


def identity(recipe: Recipe, indexes: Mapping[str, SourceIndex]) -> dict[str, Any]:
    """Everything that decides the labels, as plain nested values."""
    parts: dict[str, Any] = {"sgpipe": __version__, "seed": recipe.seed, "format": recipe.source.format}
    parts["source"] = {
        split: {key: index.meta.get(f"{key}_sha256") for key in ("annotations", "captions")}
        for split, index in indexes.items()
    }
    parts["drawn"] = recipe.source.synthetic
    if recipe.source.format == "folder":
        parts["detect"] = recipe.detect.model_dump(mode="json", exclude=_DISTRIBUTION)
        parts["detect"]["detector"] = _model(recipe.detect.detector)
    for stage in ("caption", "parse", "pair", "tag"):
        parts[stage] = getattr(recipe, stage).model_dump(mode="json", exclude=_DISTRIBUTION)
    parts["parse"]["model"] = model_version(recipe.parse.model)
    if recipe.caption.captioner is None:
        parts["caption"] = {"captioner": None}
    else:
        parts["caption"] |= {"captioner": _model(recipe.caption.captioner), "dtype": _dtype(recipe.caption)}
        for name in _without_effect(recipe.caption):
            del parts["caption"][name]
    parts["tag"] |= {"tagger": _model(recipe.tag.tagger), "dtype": _dtype(recipe.tag)}
    for name in ("synonyms", "prior"):
        path = getattr(recipe.pair, name)
        parts["pair"][name] = file_sha256(path) if path and path.is_file() else None
    return parts


def _without_effect(config: CaptionConfig) -> list[str]:
    """The added settings that change no caption: those that are off, and all of them with beam search."""
    added = {key.removeprefix("caption."): off for key, off in ADDED_SETTINGS.items()}
    return [name for name, off in added.items() if config.decoding == "beam" or getattr(config, name) == off]


def _dtype(config: CaptionConfig | TagConfig) -> str:
    """What "auto" resolves to: half precision needs a GPU, and Ray shows GPUs only to actors that ask for them."""
    return config.dtype if config.dtype != "auto" else f"auto on a {'GPU' if config.resources.gpus else 'CPU'}"


def _model(name: str | None) -> str | None:
    """A hub id unchanged; a folder as the hash of its configuration, vocabulary and weights."""
    if name is None or not Path(name).is_dir():
        return name
    digest = hashlib.sha256()
    files = {path for pattern in _MODEL_FILES for path in Path(name).glob(pattern)}
    for path in sorted(files):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return f"sha256:{digest.hexdigest()[:16]}"
