"""Build the stages of a plan. Those with models are imported when they are built."""

from collections.abc import Iterable, Mapping, Sequence

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import StagePlan
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.base import LoadStage, Stage
from sgpipe.stages.own_stage import own_stages
from sgpipe.stages.pair import PairStage, TripletCount

_WITH_SYNONYMS = ("coco", "objects365")  # datasets that have a packaged table


def build_stages(
    plan: StagePlan,
    roots: Mapping[str, ImagePlace],
    classes: Mapping[str, int],
    known: Iterable[TripletCount] | None = None,
) -> list[Stage]:
    """Return the stages that label records with boxes, in order, also those that do not run.

    Args:
        roots: the images of each split.
        classes: the id of every class of a box but for free nouns.
        known: the triplets of the run that is extended.
    """
    from sgpipe.stages.parse.stage import ParseStage

    class_names = list(classes)
    synonyms = synonym_table(plan.dataset, class_names)
    stages = [_first_stage(plan, roots), ParseStage(plan.parse)]
    if plan.ground.detector is not None:
        from sgpipe.stages.ground import GroundStage

        stages.append(GroundStage(plan, roots, classes, synonyms))
    stages.append(_pair_stage(plan, roots, class_names, synonyms, known))
    stages.append(_tag_stage(plan, roots, class_names))
    followed: list[Stage] = []
    for stage in stages:
        followed.append(stage)
        if stage.section not in plan.skipped:
            followed += own_stages(stage, plan.section(stage.section), roots)
    return followed


def synonym_table(dataset: str, class_names: Sequence[str]) -> str:
    """Return the dataset whose synonyms are used: of an extended run, that whose classes it has."""
    if dataset == "objects365":
        return dataset
    if dataset == "run":
        for name in _WITH_SYNONYMS:
            if set(category_names(name).values()).issuperset(class_names):
                return name
    return "coco"


def _first_stage(plan: StagePlan, roots: Mapping[str, ImagePlace]) -> Stage:
    """Return the captioner, or what opens the images that have captions."""
    if plan.caption.captioner is None:
        return LoadStage(roots, plan.parse.resources, opens=plan.opens_images)
    from sgpipe.stages.caption.stage import CaptionStage

    return CaptionStage(plan.caption, roots, plan.seed)


def _pair_stage(
    plan: StagePlan,
    roots: Mapping[str, ImagePlace],
    class_names: Sequence[str],
    synonyms: str,
    known: Iterable[TripletCount] | None,
) -> Stage:
    config = plan.pair
    if not plan.tag.scores:  # all candidates become relations: none but those of captions, then
        config = config.model_copy(update={"known": 0})
    if config.marks:
        from sgpipe.stages.marks import MarksStage

        return MarksStage(config, synonyms, class_names, known, roots, plan.seed)
    if config.layout:
        from sgpipe.stages.layout_pair import LayoutPairStage

        return LayoutPairStage(config, synonyms, class_names, known)
    return PairStage(config, synonyms, class_names, known)


def _tag_stage(
    plan: StagePlan, roots: Mapping[str, ImagePlace], class_names: Sequence[str]
) -> Stage:
    if not plan.tag.scores:
        from sgpipe.stages.tag.methods import AssumedStage

        return AssumedStage(plan.tag, plan.pair)
    if plan.tag.method == "layout":
        from sgpipe.stages.tag.layout.stage import LayoutStage

        return LayoutStage(plan.tag, plan.pair)
    from sgpipe.stages.tag.stage import ScoredStage, TagStage

    if plan.tag.method == "rtagger" and plan.tag.plugin is None:
        return TagStage(plan.tag, roots, class_names, plan.pair, plan.seed)
    return ScoredStage(plan.tag, roots, plan.pair)
