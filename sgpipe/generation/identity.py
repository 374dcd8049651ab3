"""The identity of a run: everything that decides its labels, with the content of models and annotation files.

A changed identity is another run. Settings that only distribute work (actors, batch sizes, devices) do not count.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from sgpipe.files.locations import content_id, text_sha256
from sgpipe.recipe import SERVED, Recipe
from sgpipe.stages.caption.captioner import settings_of
from sgpipe.stages.parse.stage import parser_identity
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils import __version__
from sgpipe.utils.hashing import model_sha256

STAGES = ("detect", "caption", "parse", "ground", "pair", "tag")
AUTO_ON_CPU = "auto on a CPU"
_DISTRIBUTION = {"resources", "batch_size", "device", "requests"}
_OF_SAMPLING = ("repetition_penalty", "top_k")
_OF_MARKS = {"model", "endpoint", "max_marks", "samples", "temperature", "dtype"}
_OF_RTAGGER = {"short_side", "long_side", "group_size", "chunk", "vocabulary"}


def identity(recipe: Recipe, indexes: Mapping[str, SourceIndex], sharing: Collection[str] = ()) -> dict[str, Any]:
    """Return what decides the labels, as plain values; `sharing`: stages that share this machine's GPUs unasked."""
    parts: dict[str, Any] = {"sgpipe": __version__, "seed": recipe.seed, "format": recipe.source.format}
    parts["source"] = source_identity(indexes)
    parts["miniworld"] = recipe.source.synthetic
    if recipe.detects:
        parts["detect"] = recipe.detect.model_dump(mode="json", exclude=_DISTRIBUTION)
        parts["detect"]["detector"] = model_sha256(recipe.detect.detector)
    recipe = recipe.model_copy(update={"caption": settings_of(recipe.caption)})
    for stage in ("caption", "parse", "pair", "tag"):
        parts[stage] = settings_of_stage(recipe, stage)
    parts["parse"]["model"] = parser_identity(recipe.parse)
    if recipe.caption.captioner is None:
        parts["caption"] = {"captioner": None}
    else:
        parts["caption"] |= _model(recipe, "caption", "captioner", sharing)
        if recipe.caption.decoding == "beam":
            for key in _OF_SAMPLING:
                del parts["caption"][key]
    parts["tag"] |= _model(recipe, "tag", "tagger", sharing)
    if recipe.tag.method != "rtagger" or recipe.tag.vocabulary == "dataset":
        del parts["tag"]["vocabulary_others"]
    else:
        parts["tag"]["seed"] = recipe.seed
    if recipe.tag.method != "rtagger":
        parts["tag"] = {name: value for name, value in parts["tag"].items() if name not in _OF_RTAGGER}
    if recipe.tag.method == "clip":  # which computes in float32
        del parts["tag"]["dtype"]
    if not recipe.tag.scores:
        parts["tag"] = {"method": recipe.tag.method}
    elif recipe.tag.calibration is None:
        del parts["tag"]["calibration"], parts["tag"]["precision"]
    else:
        content_id(recipe.tag.calibration)
        parts["tag"]["calibration"] = text_sha256(recipe.tag.calibration)
    if recipe.pair.marks:
        parts["pair"] |= {**_model(recipe, "pair", "model", sharing), "seed": recipe.seed}
    else:
        parts["pair"] = {name: value for name, value in parts["pair"].items() if name not in _OF_MARKS}
    if recipe.source.format != "run":
        del parts["pair"]["equivalents"], parts["pair"]["known"]
    for name in {"synonyms", "prior", "equivalents"} & parts["pair"].keys():
        path, parts["pair"][name] = getattr(recipe.pair, name), None
        if path is not None:
            with suppress(FileNotFoundError, IsADirectoryError):  # a pair stage that does not run needs no file
                parts["pair"][name] = text_sha256(path)
    if recipe.ground.detector is not None:
        parts["ground"] = settings_of_stage(recipe, "ground")
        parts["ground"] |= {name: parts["pair"][name] for name in ("synonyms", "loose")}
        parts["ground"]["detector"] = model_sha256(recipe.ground.detector)
    return parts


def source_identity(indexes: Mapping[str, SourceIndex]) -> dict[str, Any]:
    """Return the content of the annotation and caption files of each split, or the run that is extended."""
    return {
        split: {key: index.meta.get(f"{key}_sha256") for key in ("annotations", "captions")}
        | {key: index.meta[key] for key in ("run",) if key in index.meta}
        for split, index in indexes.items()
    }


def settings_of_stage(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return the settings of a stage that decide its labels; models by name, files by path."""
    settings: dict[str, Any] = getattr(recipe, stage).model_dump(mode="json", exclude=_DISTRIBUTION)
    if settings.get("endpoint") is not None:
        settings["endpoint"] = SERVED
    return settings


def _model(recipe: Recipe, stage: str, setting: str, sharing: Collection[str]) -> dict[str, str | None]:
    """Return the content of a model's files, of a served one its name, and its `dtype`."""
    config = getattr(recipe, stage)
    name, dtype = getattr(config, setting), config.dtype
    if config.endpoint is not None:
        return {setting: name, "dtype": SERVED}
    if dtype == "auto":  # half precision needs a GPU, and actors that ask for no GPU see none
        dtype = "auto on a GPU" if stage in sharing or config.resources.gpus else AUTO_ON_CPU
    return {setting: model_sha256(name), "dtype": dtype}
