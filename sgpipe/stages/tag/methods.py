"""What each `tag.method` needs, and the methods without a model.

Those make every candidate a relation, or every candidate whose boxes overlap: the baselines of the
RLIPv2 paper (section 4.3, table 5) for the R-Tagger.
"""

import numpy as np

from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig, TagConfig
from sgpipe.records import Pair, Record, Relation, RelationOrigin, deduplicate
from sgpipe.stages.base import Stage
from sgpipe.stages.pair import overlapping, stated_predicates, told_triplets

ASSUMED = 1.0  # so that no threshold drops them; without a confidence they would be annotations
_WITH_PRIOR = ("clip", "vlm")
_NEEDED = {
    "rtagger": "an R-Tagger (from `sgpipe convert`)",
    "clip": "a CLIP model",
    "vlm": "a vision-language model",
}


def check_tagger(tag: TagConfig, pair: PairConfig | None = None) -> None:
    """Raises UserError: the model that the method needs is not named, or a setting is for another
    method.
    """
    if tag.tagger is None and tag.method in _NEEDED:
        needed = (
            f"tag.method {tag.method} needs {_NEEDED[tag.method]}; layout, overlap and all need"
            " none"
        )
        raise UserError(f"tag.tagger is not set (--tagger): {needed}")
    if tag.endpoint is not None and tag.method != "vlm":
        raise UserError(f"tag.method is {tag.method}: tag.endpoint is for vlm")
    if tag.prior is not None and tag.method not in _WITH_PRIOR:
        raise UserError(f"tag.method is {tag.method}: tag.prior is for {' and '.join(_WITH_PRIOR)}")
    if not tag.scores and (tag.calibration is not None or tag.precision is not None):
        raise UserError(
            f"tag.method={tag.method} gives no scores: set tag.calibration and tag.precision to"
            " null"
        )
    if pair is not None and pair.restrict == "group":
        if tag.method != "rtagger":
            raise UserError(f"tag.method is {tag.method}: pair.restrict=group is for rtagger")
        if tag.plugin is not None:
            raise UserError(f"tag.tagger is {tag.tagger}: pair.restrict=group is for an R-Tagger")


class AssumedStage(Stage):
    """Makes candidates relations with confidence 1, without looking at the image."""

    name = "tag"

    def __init__(self, config: TagConfig, pair: PairConfig | None = None) -> None:
        self.config = config
        self.resources = config.resources
        self.pair = pair or PairConfig()

    def fill(self, record: Record) -> None:
        pairs = overlapping_pairs(record) if self.config.method == "overlap" else record.pairs
        relations = deduplicate(candidates(pairs, ASSUMED, "captions"))
        if self.pair.marks:  # what no caption led to
            match = self.pair.match
            loose = self.pair.loose
            told = (
                told_triplets(record, match, loose)
                if self.pair.candidates == "captions+marks"
                else ()
            )
            stated = stated_predicates(told, verbatim=match == "substring")
            for relation in relations:
                classes = (
                    record.objects[relation.subject].category,
                    record.objects[relation.object].category,
                )
                if relation.predicate not in stated.get(classes, ()):
                    relation.origin = "marks"
        record.relations += relations


def candidates(
    pairs: list[Pair], confidence: float | None, origin: RelationOrigin
) -> list[Relation]:
    return [
        Relation(pair.subject, pair.object, text, confidence, origin)
        for pair in pairs
        for text in pair.predicates
    ]


def overlapping_pairs(record: Record) -> list[Pair]:
    """Return the candidate pairs whose boxes share some area; boxes that only touch, or have no
    area, do not.
    """
    if not record.pairs:
        return []
    boxes = np.array([box.bbox for box in record.objects], np.float64)
    indices = np.array([(pair.subject, pair.object) for pair in record.pairs], np.int64)
    shared = overlapping(boxes, indices) & (boxes[indices][:, :, 2:] > 0).all((1, 2))
    return [pair for pair, kept in zip(record.pairs, shared.tolist(), strict=True) if kept]
