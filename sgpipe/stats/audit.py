"""The audit of a run: its measures, its comparison with ground truth, human verdicts and another run."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from sgpipe.calibration import Calibration
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.findings import QUALITY, Finding, find, find_precision, level_at
from sgpipe.stats.ground_truth import GroundTruthMeasures, measure_against_ground_truth
from sgpipe.stats.measures import THRESHOLDS, TOTALS, Measures, measure_database, use_probabilities
from sgpipe.stats.verdicts import Verdicts, measure_verdicts
from sgpipe.storage.database import Database
from sgpipe.storage.run_folder import GroundTruth


@dataclass(frozen=True)
class Audit:
    """The audit of one run; parts that were not asked for are None.

    calibrated: a sentence on the calibration by whose probabilities relations were chosen.
    """

    measures: Measures
    ground_truth: GroundTruthMeasures | None = None
    verdicts: Verdicts | None = None
    comparison: Comparison | None = None
    calibrated: str | None = None

    @property
    def findings(self) -> list[Finding]:
        """The conclusions, by question."""
        unknown = self.ground_truth is None and self.verdicts is None and self.calibrated is None
        findings = find(self.measures, precision_unknown=unknown)
        precision = list(find_precision(self.ground_truth, self.verdicts, self.measures.threshold_of))
        if self.calibrated is not None:
            precision.insert(0, Finding(QUALITY, "plain", self.calibrated))
        at = max((index for index, finding in enumerate(findings) if finding.question == QUALITY), default=0)
        return [*findings[:at], *precision, *findings[at:]]

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain values; the measures are at the top level."""
        parts = {"ground_truth": self.ground_truth, "verdicts": self.verdicts, "comparison": self.comparison}
        present = {name: part for name, part in parts.items() if part is not None}
        return {**_plain(self.measures), **_plain(present), "findings": _plain(self.findings)}


def audit(
    database: Database,
    threshold: float = TRAINING_CONFIDENCE,
    ground_truth: GroundTruth | None = None,
    verdicts: Path | None = None,
    target: float = 0.8,
    other: Measures | None = None,
    calibration: Calibration | None = None,
) -> Audit:
    """Audit an open run.

    Args:
        threshold: minimum confidence of the relations whose health and precision are measured.
        verdicts: file that a review page exported.
        target: the precision for which thresholds are suggested.
        other: measures of another run to compare with.
        calibration: of the tagger; thresholds are probabilities then.

    Raises UserError: a shard or file cannot be read or used, or a number is out of range.
    """
    calibrated = None
    if calibration is not None:
        note = use_probabilities(database, calibration)
        calibrated = f"Thresholds are probabilities, by the calibration of {calibration.run!r}."
        calibrated += f" {note[0].upper()}{note[1:]}." if note else ""
    measures = measure_database(database, threshold)
    parts = Audit(measures, calibrated=calibrated)
    if ground_truth is not None:
        settings = (threshold, target, THRESHOLDS, calibration)
        against = measure_against_ground_truth(database.root, ground_truth, *settings, has_opinion=database.has_opinion)
        parts = replace(parts, ground_truth=against)
    if verdicts is not None:
        parts = replace(parts, verdicts=measure_verdicts(database, verdicts, target, THRESHOLDS, calibration))
    return parts if other is None else replace(parts, comparison=compare(other, measures))


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, including their properties."""
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
    """A number in the other run and in this one."""

    name: str
    before: float
    after: float

    @property
    def text(self) -> str:
        """The difference, also relative to the number before."""
        difference = self.after - self.before
        if not difference:
            return "–"
        return f"{difference:+,}" + (f" ({difference / self.before:+.0%})" if self.before else "")


@dataclass(frozen=True)
class Comparison:
    """What changed from the run `other` to this one.

    Attributes:
        counts: numbers of images, boxes, relations and so on.
        predicates: the predicates whose share changed most. `gained` and `lost`: predicates only in one of the runs.
        health: shares of the checks that found something in either run.
    """

    other: str
    counts: list[Change]
    predicates: list[Change]
    gained: int
    lost: int
    health: list[Change]


def compare(other: Measures, this: Measures) -> Comparison:
    """Compare two runs."""
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
        f"images with a relation of confidence ≥ {TRAINING_CONFIDENCE:.2f}": level.images,
        "predicates": measures.tail.kinds,
        "triplet kinds": measures.triplet_kinds,
    }


def _share(measures: Measures, predicate: str) -> float:
    return measures.predicates.get(predicate, 0) / max(measures.totals["relations"], 1)
