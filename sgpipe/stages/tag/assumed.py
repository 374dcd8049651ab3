"""The tag stage without a model: every candidate is a relation, or every candidate whose boxes overlap.

These are the baselines of the RLIPv2 paper (section 4.3, table 5) for the R-Tagger.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import TagConfig
from sgpipe.records import Pair, Record, Relation, deduplicate
from sgpipe.stages.pair.candidates import overlapping
from sgpipe.stages.tag.methods import check_tagger

ASSUMED = 1.0  # so that no threshold drops them; without a confidence they would be annotations


class AssumedStage:
    """Makes candidates relations with confidence 1, without looking at the image."""

    name = "tag"
    fills = ("relations",)

    def __init__(self, config: TagConfig, roots: Mapping[str, ImagePlace]) -> None:
        """
        Args:
            roots: where the images of each split are; not used, as no image is opened.
        """
        self.config, self.roots, self.resources = config, roots, config.resources

    def check(self) -> None:
        """Raises UserError: a setting is for another method."""
        check_tagger(self.config)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                pairs = overlapping_pairs(record) if self.config.method == "overlap" else record.pairs
                record.relations = deduplicate(candidates(pairs, ASSUMED))
        return records


def candidates(pairs: list[Pair], confidence: float | None) -> list[Relation]:
    """Every pair with each of its predicates."""
    return [Relation(pair.subject, pair.object, text, confidence) for pair in pairs for text in pair.predicates]


def overlapping_pairs(record: Record) -> list[Pair]:
    """The candidate pairs whose boxes share some area; boxes that only touch, or have no area, do not."""
    if not record.pairs:
        return []
    boxes = np.array([box.bbox for box in record.objects], np.float64)
    indices = np.array([(pair.subject, pair.object) for pair in record.pairs], np.int64)
    shared = overlapping(boxes, indices) & (boxes[indices][:, :, 2:] > 0).all((1, 2))
    return [pair for pair, kept in zip(record.pairs, shared.tolist(), strict=True) if kept]
