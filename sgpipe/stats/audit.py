"""All that is known of a run's labels: counts, and what truth and people say about them.

Two runs side by side: what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from sgpipe.records import TRAINED_ON
from sgpipe.stats.findings import Finding, find, find_precision, level_at
from sgpipe.stats.ground_truth import KnownTruth, TruthMeasures, measure_truth
from sgpipe.stats.measures import THRESHOLDS, TOTALS, Measures, measure_database
from sgpipe.stats.verdicts import Verdicts, measure_verdicts
from sgpipe.storage.database import Database


@dataclass(frozen=True)
class Audit:
    """The audit of one run; what there is no other run, truth or verdict for is None."""

    measures: Measures
    truth: TruthMeasures | None = None
    verdicts: Verdicts | None = None
    comparison: Comparison | None = None

    @property
    def findings(self) -> list[Finding]:
        """What it comes to."""
        found = find(self.measures, asked=self.truth is None and self.verdicts is None)
        known = find_precision(self.truth, self.verdicts)
        at = max((place for place, finding in enumerate(found) if finding.question == "How good is it?"), default=0)
        return [*found[:at], *known, *found[at:]]

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain values, the measures at the top."""
        parts = {"truth": self.truth, "verdicts": self.verdicts, "comparison": self.comparison}
        there = {name: part for name, part in parts.items() if part is not None}
        return {**_plain(self.measures), **_plain(there), "findings": _plain(self.findings)}


def audit(
    database: Database,
    threshold: float = TRAINED_ON,
    truth: KnownTruth | None = None,
    verdicts: Path | None = None,
    target: float = 0.8,
    other: Measures | None = None,
) -> Audit:
    """Audit an open run.

    Args:
        threshold: confidence of the relations whose health and precision are looked at.
        verdicts: what a review exported.
        target: the precision that thresholds are suggested for.
        other: of another run, to compare with.

    Raises UserError: a shard or file cannot be read or used, or a number is out of range.
    """
    fingerprint = str(database.run.get("fingerprint", ""))
    said = None if verdicts is None else measure_verdicts(verdicts, fingerprint, target, THRESHOLDS)
    known = None if truth is None else measure_truth(database.root, truth, threshold, target, THRESHOLDS)
    measures = measure_database(database, threshold)
    return Audit(measures, known, said, None if other is None else compare(other, measures))


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, with what their properties say."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


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
