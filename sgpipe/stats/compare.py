"""Two runs side by side: what changed."""

from __future__ import annotations

from dataclasses import dataclass

from sgpipe.relations import TRAINED_ON
from sgpipe.stats.findings import level_at
from sgpipe.stats.measures import TOTALS, Measures

_PREDICATES = 15


@dataclass(frozen=True)
class Change:
    """A number of the other run and of this one."""

    name: str
    before: float
    after: float

    @property
    def text(self) -> str:
        """The difference, and how much that is of the number before."""
        difference = self.after - self.before
        if not difference:
            return "–"
        return f"{difference:+,}" + (f" ({difference / self.before:+.0%})" if self.before else "")


@dataclass(frozen=True)
class Comparison:
    """What changed from the run `other` to this one.

    Attributes:
        counts: of images, boxes, relations and so on.
        predicates: shares of the predicates whose share changed most; `gained` and `lost` count those in one only.
        health: shares of the checks that found something in either.
    """

    other: str
    counts: list[Change]
    predicates: list[Change]
    gained: int
    lost: int
    health: list[Change]


def compare(other: Measures, this: Measures) -> Comparison:
    """What changed from `other` to `this`."""
    names = {**other.predicates, **this.predicates}
    shares = [Change(name, _share(other, name), _share(this, name)) for name in names]
    shares.sort(key=lambda change: (-abs(change.after - change.before), change.name))
    health = [Change(a.title, a.share, b.share) for a, b in zip(other.health, this.health, strict=True)]
    return Comparison(
        other=other.run or other.fingerprint,
        counts=[Change(name, before, _counts(this)[name]) for name, before in _counts(other).items()],
        predicates=[change for change in shares if change.before != change.after][:_PREDICATES],
        gained=len(this.predicates.keys() - other.predicates.keys()),
        lost=len(other.predicates.keys() - this.predicates.keys()),
        health=[change for change in health if change.before or change.after],
    )


def _counts(measures: Measures) -> dict[str, int]:
    level = level_at(measures)
    return {
        "images": measures.rows,
        "error rows": sum(measures.errors.values()),
        **{name: measures.totals[key] for key, name in TOTALS.items()},
        f"images with a relation of confidence ≥ {TRAINED_ON:.2f}": level.images,
        "predicates": measures.tail.kinds,
        "triplet kinds": measures.triplet_kinds,
    }


def _share(measures: Measures, predicate: str) -> float:
    return measures.predicates.get(predicate, 0) / max(measures.totals["relations"], 1)
