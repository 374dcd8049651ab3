"""The tag stage of `tag.method: layout`, which opens no image."""

from __future__ import annotations

from typing import Self

from sgpipe.calibration import threshold_of_recipe
from sgpipe.recipe import PairConfig, TagConfig, layout_folder
from sgpipe.records import Record, Relation, deduplicate
from sgpipe.stages.base import Stage
from sgpipe.stages.context import StageContext
from sgpipe.stages.tag.layout.candidates import Candidates, CandidateScorer
from sgpipe.stages.tag.layout.evidence import CaptionEvidence
from sgpipe.stages.tag.layout.model import LayoutModel


class LayoutStage(Stage):
    """Keeps the candidates that the layout model and the captions find more probable than the
    threshold.

    That is their confidence: the probability that the pair interacts, times that of the predicate
    where the model knows it. Of subjects that the model does not know, whether the boxes overlap
    decides.
    """

    name = "tag"

    def __init__(
        self,
        config: TagConfig,
        pair: PairConfig | None = None,
        evidence: CaptionEvidence | None = None,
    ) -> None:
        """evidence: how captions count; None: as beside the weights."""
        self.config = config
        self.resources = config.resources
        self.pair = pair or PairConfig()
        self._evidence = evidence

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(context.plan.tag, context.plan.pair)

    def check(self) -> None:
        folder = layout_folder(self.config.tagger)
        LayoutModel.load(folder)
        CaptionEvidence.load(folder)
        threshold_of_recipe(self.config, self.pair)

    def setup(self) -> None:
        folder = layout_folder(self.config.tagger)
        self.threshold = threshold_of_recipe(self.config, self.pair)
        self.evidence = self._evidence or CaptionEvidence.load(folder)
        self.scorer = CandidateScorer(LayoutModel.load(folder), self.pair)

    def __call__(self, records: list[Record]) -> list[Record]:
        asked = [record for record in records if record.ok and record.pairs]
        for record, candidates in zip(asked, self.scorer.score(asked), strict=True):
            record.relations += deduplicate(self._relations(candidates))
        return records

    def _relations(self, candidates: Candidates) -> list[Relation]:
        # as shards store them
        confidences = candidates.confidences(self.evidence).astype("float32")
        chosen = (confidences >= self.threshold) & (confidences > 0)
        rows = chosen.nonzero()[0]
        relations = []
        for row in rows.tolist():
            subject, object_ = candidates.pairs[row].tolist()
            confidence = float(confidences[row])
            relations.append(
                Relation(subject, object_, candidates.predicates[row], confidence, "layout")
            )
        return relations
