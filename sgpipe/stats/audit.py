"""All that is known of a run's labels: counts, and what truth and people say about them."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from sgpipe.relations import TRAINED_ON
from sgpipe.stats.compare import Comparison, compare
from sgpipe.stats.database import Database
from sgpipe.stats.findings import Finding, find, find_precision
from sgpipe.stats.measures import THRESHOLDS, Measures, measure_database
from sgpipe.stats.truth import KnownTruth, TruthMeasures, measure_truth
from sgpipe.stats.verdicts import Verdicts, measure_verdicts


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
