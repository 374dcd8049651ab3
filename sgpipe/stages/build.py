"""Build the stages of a recipe. Those with models are imported when they are built."""

from collections.abc import Iterable, Mapping

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import Recipe
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.base import LoadStage, Stage
from sgpipe.stages.pair import PairStage, TripletCount


def build_stages(
    recipe: Recipe,
    roots: Mapping[str, ImagePlace],
    classes: Mapping[str, int],
    known: Iterable[TripletCount] | None = None,
) -> list[Stage]:
    """Return the stages that label records with boxes, in order.

    `classes`: the id of every class of a box but for free nouns. `known`: the triplets of the run
    that is extended.
    """
    from sgpipe.stages.caption.stage import CaptionStage
    from sgpipe.stages.parse.stage import ParseStage

    names = list(classes)
    synonyms = "objects365" if recipe.source.format == "objects365" else "coco"
    if recipe.source.format == "run":  # those of the dataset whose classes it has
        official = {name: set(category_names(name).values()) for name in ("coco", "objects365")}
        synonyms = next((name for name, own in official.items() if own.issuperset(names)), "coco")
    first: Stage = LoadStage(roots, recipe.parse.resources, opens=recipe.source.open_images)
    if recipe.caption.captioner is not None:
        first = CaptionStage(recipe.caption, roots, recipe.seed)
    stages = [first, ParseStage(recipe.parse)]
    if recipe.ground.detector is not None:
        from sgpipe.stages.ground import GroundStage

        stages.append(GroundStage(recipe, roots, classes, synonyms))
    # Where nothing scores candidates, all of them become relations: no others then.
    config = recipe.pair if recipe.tag.scores else recipe.pair.model_copy(update={"known": 0})
    of_pair = (config, synonyms, names, known)
    if recipe.pair.marks:
        from sgpipe.stages.marks import MarksStage

        stages.append(MarksStage(*of_pair, roots, recipe.seed))
    elif recipe.pair.layout:
        from sgpipe.stages.layout_pair import LayoutPairStage

        stages.append(LayoutPairStage(*of_pair))
    else:
        stages.append(PairStage(*of_pair))
    if not recipe.tag.scores:
        from sgpipe.stages.tag.methods import AssumedStage

        return [*stages, AssumedStage(recipe.tag, recipe.pair)]
    if recipe.tag.method == "layout":
        from sgpipe.stages.tag.layout.stage import LayoutStage

        return [*stages, LayoutStage(recipe.tag, recipe.pair)]
    from sgpipe.stages.tag.stage import ScoredStage, TagStage

    if recipe.tag.method == "rtagger" and recipe.tag.plugin is None:
        return [*stages, TagStage(recipe.tag, roots, names, recipe.pair, recipe.seed)]
    return [*stages, ScoredStage(recipe.tag, roots, recipe.pair)]
