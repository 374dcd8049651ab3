"""The whole recipe: its sections, what it leaves open, and the models that its stages load."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from sgpipe.errors import existing_model
from sgpipe.files.model_cache import pin_model
from sgpipe.files.stores import is_uri
from sgpipe.recipe.models import MINIWORLD, is_layout_model, named_model
from sgpipe.recipe.source import SourceConfig
from sgpipe.recipe.stage import StageConfig
from sgpipe.recipe.stages import (
    CaptionConfig,
    DetectConfig,
    GroundConfig,
    PairConfig,
    ParseConfig,
    TagConfig,
)
from sgpipe.utils import LARGEST_SEED
from sgpipe.utils.config_file import Config, load, recipe_folder

STAGES = ("detect", "caption", "parse", "ground", "pair", "tag")  # in their order
_PART = re.compile(r"([1-9]\d*)/([1-9]\d*)")


class EngineConfig(Config):
    """How the work is distributed. Nothing here changes a label."""

    kind: Literal["auto", "ray", "local"] = "auto"
    unit_size: int = Field(
        512, ge=1, description="maximum number of images per work unit, and so per shard"
    )
    address: str | None = Field(
        None, description="Ray cluster to join; null: start one on this machine"
    )
    store: str | None = Field(
        None, description="object store for the shards, such as s3://bucket/labels"
    )
    cpus: int | None = Field(None, ge=1, description="CPUs to use on this machine; null: all")
    machines_timeout: float = Field(
        0,
        ge=0,
        description="seconds to wait until a cluster has machines for the fewest actors",
    )
    allow_skew: bool = Field(
        False,
        description="whether machines of a cluster may have other versions of libraries and drivers",
    )
    max_errors: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of images on which stages may fail, after the first 200; 1: all",
    )
    image_timeout: float | None = Field(
        None, gt=0, description="seconds per image after which a stage has failed; null: never"
    )


def numbers_of_part(part: str) -> tuple[int, int]:
    """Return the numbers of a part of the images: of "3/100", 3 and 100.

    Raises:
        ValueError: it is not of this form, or there are not so many parts.
    """
    match = _PART.fullmatch(part)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f"{part!r} is no part: expected I/N, such as 3/100, with I from 1 to N")
    return int(match[1]), int(match[2])


def _checked_part(part: str) -> str:
    numbers_of_part(part)
    return part


Part = Annotated[str, AfterValidator(_checked_part)]


class Recipe(Config):
    """The data, the models and all settings of a run. Every setting that changes a label is
    here.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]+$")] = Field(
        "sgpipe", description="of the run"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the caption sampling")
    limit: int | None = Field(None, ge=1, description="only the first N images")
    part: Part | None = Field(
        None, description="which of the parts of the images, such as 3/100: the third of 100"
    )
    source: SourceConfig = SourceConfig()
    detect: DetectConfig = DetectConfig()
    caption: CaptionConfig = CaptionConfig()
    parse: ParseConfig = ParseConfig()
    ground: GroundConfig = GroundConfig()
    pair: PairConfig = PairConfig()
    tag: TagConfig = TagConfig()
    engine: EngineConfig = EngineConfig()

    @property
    def detects(self) -> bool:
        """Return whether a detector finds the boxes; otherwise they are given, or only words of
        captions get some.
        """
        return self.source.format == "folder" and self.detect.detector is not None

    @property
    def stages(self) -> dict[str, StageConfig]:
        """Return the section of each stage by its name, in their order."""
        return {name: getattr(self, name) for name in STAGES}

    @property
    def absent(self) -> set[str]:
        """Return the stages that do not run for this recipe."""
        runs = {"detect": self.detects, "ground": self.ground.detector is not None}
        return {name for name, is_run in runs.items() if not is_run}

    @property
    def own_code(self) -> list[str]:
        """Return the names of the code of the user's own that the stages import.

        Raises:
            UserError: `then` has no such name.
        """
        references: list[str] = []
        for section in self.stages.values():
            references += [reference for _, reference in section.own_code]
        return references

    @property
    def needs_captions(self) -> bool:
        """Return whether captions must be given: nothing else states candidates, and no model
        captions.
        """
        return self.caption.captioner is None and self.pair.candidates in ("captions", "image")


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with what it leaves open decided, before anything else reads it.

    `tag.method: auto` is the layout model, the packaged one or that of `tag.tagger`, or else the
    R-Tagger of `tag.tagger`. Candidates by layout are of the model that scores them, unless
    `pair.model` names another one.
    """
    tag = recipe.tag
    pair = recipe.pair
    if tag.method == "auto":
        by_layout = tag.plugin is None and (tag.tagger is None or is_layout_model(tag.tagger))
        tag = tag.model_copy(update={"method": "layout" if by_layout else "rtagger"})
    if pair.layout and pair.model is None and tag.method == "layout":
        pair = pair.model_copy(update={"model": tag.tagger})
    return recipe.model_copy(update={"tag": tag, "pair": pair})


def load_recipe(name: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe of a packaged name or YAML file, with overrides by dotted key; raises
    UserError, as `load`.
    """
    return load(Recipe, name, recipe_folder(), overrides or {})


def models_of(recipe: Recipe, skipped: Collection[str] = ()) -> dict[str, str]:
    """Return the models that stages but `skipped` ones load: not those behind endpoints, nor
    spaCy's, nor code of the user's own.
    """
    models = {}
    for name, config in recipe.stages.items():
        if name not in skipped and config.loaded_model is not None:
            models[name] = config.loaded_model
    return models


def with_model_folders(
    recipe: Recipe, before: Mapping[str, object] | None = None, resumes: bool = True
) -> Recipe:
    """Return the recipe with folders of networks in place of MINIWORLD and of trainings.

    What a training's `best` or `last` is now is used throughout the run, and so are the files that
    a model of an object store has now, and the commit of one of the hub.

    Args:
        before: the identity of the run that is resumed, or of its parent; models of the hub stay at
            its commits.
        resumes: False: `before` is the parent's, from which a revision that the recipe names may
            differ.
    """
    changed = {}
    for name, model in models_of(recipe).items():
        config = recipe.stages[name]
        folder = named_model(model, config.packaged)
        known = json.dumps((before or {}).get(name)) if resumes or "@" not in folder else ""
        changed[name] = config.with_model(pin_model(folder, known))
    return recipe.model_copy(update=changed)


def hub_models(recipe: Recipe, skipped: Collection[str] = ()) -> list[str]:
    """Return the hub ids of the models that stages but `skipped` ones load; none if one is
    open_clip's.

    Raises:
        UserError: as `existing_model`.
    """
    names: list[str] = []
    for name in dict.fromkeys(models_of(recipe, skipped).values()):
        if name != MINIWORLD and not is_uri(name) and not Path(existing_model(name)).exists():
            names.append(name)
    return [] if any(":" in name for name in names) else names
