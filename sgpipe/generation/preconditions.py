"""What a recipe needs before anything is written."""

from __future__ import annotations

from sgpipe.errors import UserError
from sgpipe.recipe import Recipe
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
        raise UserError(f"no captions for {', '.join(without)}: give --captioner or --captions")


def _check_data(recipe: Recipe) -> None:
    splits = recipe.source.splits
    if splits and recipe.source.synthetic is not None:
        raise UserError(
            "the miniworld generates its own images; to label others, name a recipe: sgpipe generate coco …"
        )
    if not splits and recipe.source.synthetic is None:
        raise UserError("the recipe names no data: give --images and --annotations, or --root")
    unannotated = [name for name, split in splits.items() if split.annotations is None]
    if unannotated and recipe.source.format != "folder":
        raise UserError(
            f"no boxes for {', '.join(unannotated)}: give --annotations, or label a folder: generate folder"
        )
    if len(unannotated) < len(splits) and recipe.source.format == "folder":
        raise UserError("the recipe is for images without annotations (source.format: folder); omit --annotations")
