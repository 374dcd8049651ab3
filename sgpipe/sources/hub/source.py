"""A dataset in the hub's form as the source of a run: what its recipe must say, its splits, and their records."""

from __future__ import annotations

from typing import Any

from sgpipe.errors import UserError
from sgpipe.recipe import Recipe, SourceConfig, SplitConfig
from sgpipe.sources.detections import Detections
from sgpipe.sources.hub.files import find_files
from sgpipe.sources.hub.reader import class_table, read_hub


def check_hub(recipe: Recipe) -> None:
    """Raises UserError: the recipe names no dataset, or nothing gives captions."""
    hub = recipe.source.hub
    if hub.dataset is None:
        raise UserError("source.hub.dataset is not set (--dataset)")
    if hub.columns.captions is None and recipe.caption.captioner is None and recipe.pair.candidates != "prior":
        raise UserError("no captions: set caption.captioner (--captioner) or source.hub.columns.captions")


def prepare_hub(source: SourceConfig) -> SourceConfig:
    """The source with its splits, and with the dataset at the commit that it has now.

    Raises as `find_files`.
    """
    files = find_files(source.hub)
    splits = {split: SplitConfig(images=files.root) for split in files.splits}
    hub = source.hub.model_copy(update={"dataset": files.root})
    return source.model_copy(update={"root": None, "splits": splits, "hub": hub})


def stamp_split(source: SourceConfig, split: str) -> dict[str, Any]:
    """What identifies the files and settings that the records of a split are read with."""
    settings = source.hub.model_dump(mode="json", exclude={"split"})
    return {"hub": settings, "contents": find_files(source.hub).stamp(split)}


def read_split(source: SourceConfig, split: str) -> tuple[Detections, dict[str, Any]]:
    """The records of a split, and where they come from. Raises as `read_hub`."""
    files = find_files(source.hub)
    return read_hub(files, split, source.hub, class_table(files, source.hub))
