"""What each `tag.method` needs, and the methods without a model.

Those make every candidate a relation, or every candidate whose boxes overlap: the baselines of the
RLIPv2 paper (section 4.3, table 5) for the R-Tagger.
"""

from collections.abc import Iterable
from itertools import compress
from typing import Self

import numpy as np

from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig, TagConfig
from sgpipe.records import Pair, Record, Relation, RelationOrigin, Triplet, deduplicate
from sgpipe.stages.base import Stage
from sgpipe.stages.context import StageContext
from sgpipe.stages.pair import overlapping, stated_predicates, told_triplets

ASSUMED = 1.0  # so that no threshold drops them; without a confidence they would be annotations

_NEEDED = {
    "rtagger": "an R-Tagger (from `sgpipe convert`)",
    "clip": "a CLIP model",
    "vlm": "a vision-language model",
}


def check_tagger(tag: TagConfig, pair: PairConfig | None = None) -> None:
    """Check that the settings of the tagger fit its method.

    Raises:
        UserError: the model that the method needs is not named, or a setting is for another method.
    """
    if tag.tagger is None and tag.method in _NEEDED:
        needed = (
            f"tag.method {tag.method} needs {_NEEDED[tag.method]}; layout, overlap and all need"
            " none"
        )
        raise UserError(f"tag.tagger is not set (--tagger): {needed}")
    if not tag.scores and (tag.calibration, tag.precision) != (None, None):
        raise UserError(
            f"tag.method={tag.method} gives no scores: set tag.calibration and tag.precision to"
            " null"
        )
    by_group = pair is not None and pair.restrict == "group"
    settings = (
        ("tag.endpoint", tag.endpoint is not None, ("vlm",)),
        ("tag.engine", tag.has_engine, ("vlm",)),
        ("tag.questions=shared", tag.questions == "shared", ("vlm",)),
        ("tag.prior", tag.prior is not None, ("clip", "vlm")),
        ("pair.restrict=group", by_group, ("rtagger",)),
    )
    for setting, is_set, methods in settings:
        if is_set and tag.method not in methods:
            raise UserError(f"tag.method is {tag.method}: {setting} is for {' and '.join(methods)}")
    if by_group and tag.plugin is not None:
        raise UserError(f"tag.tagger is {tag.tagger}: pair.restrict=group is for an R-Tagger")


class AssumedStage(Stage):
    """Makes candidates relations with confidence 1, without looking at the image."""

    name = "tag"

    def __init__(self, config: TagConfig, pair: PairConfig | None = None) -> None:
        self.config = config
        self.resources = config.resources
        self.pair = pair or PairConfig()

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(context.plan.tag, context.plan.pair)

    def fill(self, record: Record) -> None:
        pairs = overlapping_pairs(record) if self.config.method == "overlap" else record.pairs
        relations = deduplicate(candidates(pairs, ASSUMED, "captions"))
        if self.pair.marks:
            self._tell_origins(record, relations)
        record.relations += relations

    def _tell_origins(self, record: Record, relations: Iterable[Relation]) -> None:
        """Set the origin of relations that no caption led to."""
        triplets: list[Triplet] = []
        if self.pair.candidates == "captions+marks":
            triplets = told_triplets(record, self.pair.match, self.pair.loose)
        stated = stated_predicates(triplets, verbatim=self.pair.match == "substring")
        for relation in relations:
            subject = record.objects[relation.subject].category
            thing = record.objects[relation.object].category
            if relation.predicate not in stated.get((subject, thing), ()):
                relation.origin = "marks"


def candidates(
    pairs: list[Pair], confidence: float | None, origin: RelationOrigin
) -> list[Relation]:
    relations = []
    for pair in pairs:
        for predicate in pair.predicates:
            relation = Relation(pair.subject, pair.object, predicate, confidence, origin)
            relations.append(relation)
    return relations


def overlapping_pairs(record: Record) -> list[Pair]:
    """Return the candidate pairs whose boxes share some area; boxes that only touch, or have no
    area, do not.
    """
    if not record.pairs:
        return []
    boxes = np.array([box.bbox for box in record.objects], np.float64)
    indices = np.array([(pair.subject, pair.object) for pair in record.pairs], np.int64)
    shared = overlapping(boxes, indices) & (boxes[indices][:, :, 2:] > 0).all((1, 2))
    return list(compress(record.pairs, shared.tolist()))
