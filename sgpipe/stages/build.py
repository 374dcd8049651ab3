"""Build the stages of a plan. Those with models are imported when they are built."""

from collections.abc import Iterable, Mapping

from sgpipe.files.image_roots import ImagePlace
from sgpipe.plugins import built_in_class
from sgpipe.recipe import StagePlan
from sgpipe.stages.base import Stage
from sgpipe.stages.context import StageContext, TripletCount
from sgpipe.stages.own_stage import own_stages


def build_stages(
    plan: StagePlan,
    roots: Mapping[str, ImagePlace],
    classes: Mapping[str, int],
    known: Iterable[TripletCount] | None = None,
) -> list[Stage]:
    """Return the stages that run, in order, each with those of the user's own behind it.

    Args:
        roots: the images of each split.
        classes: the id of every class of a box but for free nouns.
        known: the triplets of the run that is extended.
    """
    stages: list[Stage] = []
    for name in plan.names:
        section = plan.section(name)
        context = StageContext(section, plan, roots, classes, known)
        stage = built_in_class("stage", section.stage, Stage).of(context)
        stages += [stage, *own_stages(stage, context)]
    return stages
