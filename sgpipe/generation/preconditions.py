"""What a recipe needs before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

from sgpipe.errors import UserError, existing_file, existing_folder, existing_model
from sgpipe.recipe import WHOLE, Recipe
from sgpipe.utils.devices import ANY_NUMBER, check_devices


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError: data or a model is missing, or options contradict each other; the message names the option."""
    _check_data(recipe)
    for name in ("detect", "caption", "tag"):
        stage = getattr(recipe, name)
        names = (f"{name}.device", f"{name}.resources.gpus")
        check_devices(stage.device, stage.resources.gpus, ANY_NUMBER, names)
    if recipe.source.format == "folder" and recipe.detect.detector is None:
        raise UserError("no detector: give --detector FOLDER_OR_ID, an object detector of transformers")
    if recipe.tag.tagger is None:
        raise UserError("no tagger: give --tagger FOLDER (`sgpipe convert` makes one from an official checkpoint)")
    without = [name for name, split in recipe.source.splits.items() if split.captions is None]
    if without and recipe.caption.captioner is None and recipe.pair.candidates == "captions":
        raise UserError(f"no captions{_of(without)}: give --captioner or --captions")
    _check_paths(recipe)


def _check_data(recipe: Recipe) -> None:
    splits = recipe.source.splits
    if splits and recipe.source.synthetic is not None:
        raise UserError("the miniworld generates its own images; to label others, use another recipe, such as coco")
    if not splits and recipe.source.synthetic is None:
        raise UserError("the recipe names no data: give --images and --annotations, or --root")
    unannotated = [name for name, split in splits.items() if split.annotations is None]
    if unannotated and recipe.source.format != "folder":
        raise UserError(f"no boxes{_of(unannotated)}: give --annotations, or use the recipe folder")
    if len(unannotated) < len(splits) and recipe.source.format == "folder":
        raise UserError("the recipe is for images without annotations (source.format: folder); omit --annotations")


def _of(splits: Sequence[str]) -> str:
    """Which splits; nothing if the user named none, so that all images are one."""
    if list(splits) == [WHOLE]:
        return ""
    return f" for the {'split' if len(splits) == 1 else 'splits'} {', '.join(splits)}"


def _check_paths(recipe: Recipe) -> None:
    """Everything that the recipe names, before a folder is made for what comes of it."""
    source, pair = recipe.source, recipe.pair
    for split in source.splits.values():
        existing_folder(source.path(split.images))
    files = [path for split in source.splits.values() for path in (split.annotations, split.captions)]
    for path in (*files, source.image_data):
        if path is not None:
            existing_file(source.path(path))
    for path in (pair.synonyms, pair.prior):
        if path is not None:
            existing_file(path)
    if source.ground_truth is not None:
        existing_folder(source.path(source.ground_truth))
    for model in (recipe.detect.detector, recipe.caption.captioner, recipe.tag.tagger):
        if model is not None:
            existing_model(model)
