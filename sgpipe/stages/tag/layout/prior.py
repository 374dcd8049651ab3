"""`tag.prior: layout`: how likely a pair interacts, beside the scores of a model that looks at the
image.
"""

from __future__ import annotations

from sgpipe.recipe import PACKAGED_LAYOUT
from sgpipe.records import Record
from sgpipe.stages.tag.layout.candidates import image_layout, pair_positions
from sgpipe.stages.tag.layout.model import LayoutModel


class LayoutPrior:
    """The probability that pairs interact, to a power; 1 for subjects that the packaged layout
    model does not know.
    """

    def __init__(self, power: float) -> None:
        self._model = LayoutModel.load(PACKAGED_LAYOUT)
        self._power = power

    def factors(self, record: Record) -> list[float]:
        """Return what multiplies the score of each candidate of a record, in the order of its pairs
        and predicates.
        """
        scores = self._model.score(image_layout(record, record.pairs), pair_positions(record.pairs))
        factors = []
        for pair, probability in zip(record.pairs, scores.interacts.tolist(), strict=True):
            factor = probability**self._power if probability > 0 else 1.0
            factors += [factor] * len(pair.predicates)
        return factors
