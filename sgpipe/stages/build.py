"""Build the stages of a recipe. Those with models are imported when they are built: a finished run builds none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import Recipe
from sgpipe.stages.base import LoadStage, Stage
from sgpipe.stages.pair import PairStage


def build_stages(recipe: Recipe, roots: Mapping[str, ImagePlace], names: Iterable[str]) -> list[Stage]:
    """The stages that label records with boxes, in order.

    Args:
        roots: where the images of each split are.
        names: every class that a box can have.
    """
    from sgpipe.stages.caption.stage import CaptionStage
    from sgpipe.stages.parse.stage import ParseStage

    names = list(dict.fromkeys(names))
    first: Stage
    if recipe.caption.captioner is None:
        first = LoadStage(roots, recipe.parse.resources)
    else:
        first = CaptionStage(recipe.caption, roots, recipe.seed)
    return [
        first,
        ParseStage(recipe.parse),
        PairStage(recipe.pair, _synonyms(recipe), names),
        _tag_stage(recipe, roots, names),
    ]


def _tag_stage(recipe: Recipe, roots: Mapping[str, ImagePlace], names: Sequence[str]) -> Stage:
    if not recipe.tag.scores:
        from sgpipe.stages.tag.methods import AssumedStage

        return AssumedStage(recipe.tag, roots)
    if recipe.tag.method != "rtagger":
        from sgpipe.stages.tag.stage import ScoredStage

        return ScoredStage(recipe.tag, roots, recipe.pair)
    from sgpipe.stages.tag.stage import TagStage

    return TagStage(recipe.tag, roots, names, recipe.pair)


def with_classes(stages: Sequence[Stage], recipe: Recipe, names: Sequence[str]) -> list[Stage]:
    """The stages of `build_stages`, which are set up, for boxes of other classes; they share the loaded models."""
    from sgpipe.stages.tag.stage import TagStage

    pair = PairStage(recipe.pair, _synonyms(recipe), names)
    pair.setup()
    replaced: list[Stage] = []
    for stage in stages:
        if isinstance(stage, TagStage):
            stage = stage.with_classes(names)
        replaced.append(pair if isinstance(stage, PairStage) else stage)
    return replaced


def _synonyms(recipe: Recipe) -> str:
    """The dataset whose synonyms are used."""
    return "objects365" if recipe.source.format == "objects365" else "coco"
