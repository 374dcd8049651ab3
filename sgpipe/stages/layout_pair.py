"""The pair stage of `pair.candidates: layout`: the layout model relates boxes, without captions or
beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from sgpipe.recipe import layout_folder
from sgpipe.records import Pair, Record
from sgpipe.stages.pair import PairStage, candidate_pairs
from sgpipe.stages.tag.layout.candidates import image_layout, pair_positions
from sgpipe.stages.tag.layout.model import LayoutModel, PairScores
from sgpipe.utils.lemmas import predicate_lemma


class LayoutPairStage(PairStage):
    """Adds the pairs and predicates that the layout model finds more probable than
    `pair.probability`.

    Its predicates are the model's actions. A pair does not get one that captions state of it
    already.
    """

    def check(self) -> None:
        LayoutModel.load(layout_folder(self.config.model))

    def setup(self) -> None:
        super().setup()
        self._model = LayoutModel.load(layout_folder(self.config.model))

    def __call__(self, records: list[Record]) -> list[Record]:
        super().__call__(records)
        ready = [record for record in records if record.ok]
        possible = [self._possible_pairs(record) for record in ready]
        layouts = [
            image_layout(record, pairs) for record, pairs in zip(ready, possible, strict=True)
        ]
        scores = self._model.score_many(layouts, [pair_positions(pairs) for pairs in possible])
        for record, pairs, scored in zip(ready, possible, scores, strict=True):
            self._add(record, pairs, scored)
        return records

    def _possible_pairs(self, record: Record) -> list[Pair]:
        """Return every pair of a subject that the model knows with another box; too many are
        counted as left out.
        """
        classes = {box.category for box in record.objects}
        subjects = filter(self._model.is_subject, classes)
        pairs, beyond = candidate_pairs(
            record.objects,
            dict.fromkeys(product(subjects, classes), ("",)),
            require_overlap=self.config.require_overlap,
            limit=self.config.max_pairs,
        )
        record.left_out["pairs"] = record.left_out.get("pairs", 0) + beyond
        return pairs

    def _add(self, record: Record, pairs: Sequence[Pair], scores: PairScores) -> None:
        """Add the probable actions of pairs to the candidates of a record."""
        probable = scores.interacts[:, None] * scores.actions > self.config.probability
        stated = {(pair.subject, pair.object): pair for pair in record.pairs}
        for pair, actions in zip(pairs, probable, strict=True):
            ends = (pair.subject, pair.object)
            known = stated.get(ends) or Pair(*ends, [])
            lemmas = set(map(predicate_lemma, known.predicates))
            for position in np.flatnonzero(actions).tolist():
                name = self._model.actions[position]
                if predicate_lemma(name) not in lemmas:
                    known.predicates.append(name)
            if known.predicates and ends not in stated:
                record.pairs.append(known)
        if self._extended is not None:
            record.pairs = self._extended.equivalents.without_known(record.pairs, record.relations)
        record.pairs.sort(key=lambda pair: (pair.subject, pair.object))
