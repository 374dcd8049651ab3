"""What a stage may know of the run for which it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import StageConfig, StagePlan
from sgpipe.sources.vocabulary import category_names

_WITH_SYNONYMS = ("coco", "objects365")  # datasets that have a packaged table
# subject class, predicate, object class, number of relations
TripletCount: TypeAlias = tuple[str, str, str, int]


@dataclass(frozen=True)
class StageContext:
    """What `Stage.of` gets.

    Attributes:
        config: the section of the stage; a stage of the user's own gets that of the one before it.
        plan: the settings of all stages, and the seed.
        roots: the images of each split.
        classes: the id of every class of a box but for free nouns.
        known: the triplets of the run that is extended.
        options: arguments of a stage of the user's own.
    """

    config: StageConfig
    plan: StagePlan
    roots: Mapping[str, ImagePlace]
    classes: Mapping[str, int]
    known: Iterable[TripletCount] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def synonyms(self) -> str:
        """The dataset whose synonyms are used: of an extended run, that whose classes it has."""
        dataset = self.plan.dataset
        if dataset == "objects365":
            return dataset
        if dataset == "run":
            for name in _WITH_SYNONYMS:
                if set(category_names(name).values()).issuperset(self.classes):
                    return name
        return "coco"
