"""The identity of a run: everything that decides its labels. A changed identity is another run.

Settings that only distribute work (actors, batch sizes, devices) are not part of it. The content of annotation files
and models is. Runs of earlier versions keep their identity, which lacks the settings that were added since.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sgpipe.files.stored_files import stamp_stored, stored_sha256
from sgpipe.recipe import ADDED_SETTINGS, PUBLISHED_SETTINGS, SERVED, CaptionConfig, Config, Recipe, TagConfig
from sgpipe.stages.caption.captioner import settings_of
from sgpipe.stages.parse.stage import parser_identity
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils import __version__
from sgpipe.utils.hashing import model_sha256

STAGES = ("detect", "caption", "parse", "pair", "tag")
AUTO_ON_CPU = "auto on a CPU"
_DISTRIBUTION = {"resources", "batch_size", "device", "requests"}
# Runs of earlier versions do not name these settings: as they are by default, they are not part of an identity.
_ADDED_SINCE = {
    "caption": ("endpoint", "system", "compile"),
    "parse": ("parser", "endpoint"),
    "tag": ("method", "endpoint", "compile"),
}
_OF_RTAGGER = {"short_side", "long_side", "group_size", "chunk"}


def identity(recipe: Recipe, indexes: Mapping[str, SourceIndex], sharing: Collection[str] = ()) -> dict[str, Any]:
    """Everything that decides the labels, as plain nested values.

    Args:
        sharing: the stages that share the GPUs of this machine, though the recipe does not ask for them.
    """
    parts: dict[str, Any] = {"sgpipe": __version__, "seed": recipe.seed, "format": recipe.source.format}
    parts["source"] = source_identity(indexes)
    parts["miniworld"] = recipe.source.synthetic
    if recipe.source.format == "folder":
        parts["detect"] = recipe.detect.model_dump(mode="json", exclude=_DISTRIBUTION)
        parts["detect"]["detector"] = model_sha256(recipe.detect.detector)
    recipe = recipe.model_copy(update={"caption": settings_of(recipe.caption)})
    for stage in ("caption", "parse", "pair", "tag"):
        parts[stage] = _settings(getattr(recipe, stage), _ADDED_SINCE.get(stage, ()))
    parts["parse"]["model"] = parser_identity(recipe.parse)
    if recipe.caption.captioner is None:
        parts["caption"] = {"captioner": None}
    else:
        parts["caption"] |= {
            "captioner": _model(recipe.caption, "captioner"),
            "dtype": _dtype(recipe.caption, "caption" in sharing),
        }
        if recipe.caption.decoding == "beam":
            for key in ADDED_SETTINGS:  # of sampling
                del parts["caption"][key.removeprefix("caption.")]
    parts["tag"] |= {"tagger": _model(recipe.tag, "tagger"), "dtype": _dtype(recipe.tag, "tag" in sharing)}
    if recipe.tag.method != "rtagger":
        parts["tag"] = {name: value for name, value in parts["tag"].items() if name not in _OF_RTAGGER}
    if recipe.tag.method == "clip":  # which computes in float32
        del parts["tag"]["dtype"]
    if not recipe.tag.scores:
        parts["tag"] = {"method": recipe.tag.method}
    elif recipe.tag.calibration is None:  # runs of earlier versions do not name it
        del parts["tag"]["calibration"], parts["tag"]["precision"]
    else:
        stamp_stored(recipe.tag.calibration)
        parts["tag"]["calibration"] = stored_sha256(recipe.tag.calibration)
    for name in ("synonyms", "prior"):
        path, parts["pair"][name] = getattr(recipe.pair, name), None
        if path is not None:
            with suppress(FileNotFoundError, IsADirectoryError):  # a pair stage that does not run needs no file
                parts["pair"][name] = stored_sha256(path)
    return parts


def source_identity(indexes: Mapping[str, SourceIndex]) -> dict[str, Any]:
    """The content of the annotation and caption files of each split."""
    return {
        split: {key: index.meta.get(f"{key}_sha256") for key in ("annotations", "captions")}
        for split, index in indexes.items()
    }


def settings_of_stage(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What the recipe says of a stage, by which the same models need not be there any more."""
    return _settings(getattr(recipe, stage), ())


def _settings(config: Config, added: Sequence[str]) -> dict[str, Any]:
    default = {name for name in added if getattr(config, name) == type(config).model_fields[name].default}
    settings = config.model_dump(mode="json", exclude=_DISTRIBUTION | default)
    if settings.get("endpoint") is not None:
        settings["endpoint"] = SERVED
    return settings


def in_todays_settings(before: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run that an earlier version may have started, with the settings that were added since, off."""
    if not _samples(before):
        return dict(before)
    off = {key.removeprefix("caption."): value for key, value in ADDED_SETTINGS.items()}
    return {**before, "caption": {**off, **before["caption"]}}


def as_started(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """The recipe with which a run that an earlier version started goes on: without what packaged recipes got since."""
    if not _samples(before):
        return recipe
    off = {}
    for key, value in ADDED_SETTINGS.items():
        name = key.removeprefix("caption.")
        if name not in before["caption"] and getattr(recipe.caption, name) == PUBLISHED_SETTINGS[key]:
            off[name] = value
    return recipe.model_copy(update={"caption": recipe.caption.model_copy(update=off)}) if off else recipe


def _samples(identity: Mapping[str, Any]) -> bool:
    """Whether the captions of a run are sampled."""
    return identity.get("caption", {}).get("decoding") == "nucleus"


def _model(config: CaptionConfig | TagConfig, setting: str) -> str | None:
    """The content of a model's files; of a served one its name."""
    name: str | None = getattr(config, setting)
    return model_sha256(name) if config.endpoint is None else name


def _dtype(config: CaptionConfig | TagConfig, on_gpu: bool) -> str:
    """What "auto" resolves to: half precision needs a GPU, and actors that ask for no GPU see none."""
    if config.endpoint is not None:
        return SERVED
    if config.dtype != "auto":
        return config.dtype
    return "auto on a GPU" if on_gpu or config.resources.gpus else AUTO_ON_CPU
