"""All that is known of a run's labels: counts, and what truth and people say about them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgpipe.relations import TRAINED_ON
from sgpipe.stats.database import Database
from sgpipe.stats.findings import Finding, find, find_precision
from sgpipe.stats.measures import THRESHOLDS, Measures, measure_database
from sgpipe.stats.truth import TruthMeasures, measure_truth
from sgpipe.stats.verdicts import Verdicts, measure_verdicts


@dataclass(frozen=True)
class Audit:
    """The audit of one run; `truth` and `verdicts` are None where there are none."""

    measures: Measures
    truth: TruthMeasures | None = None
    verdicts: Verdicts | None = None

    @property
    def findings(self) -> list[Finding]:
        """What it comes to."""
        found = find(self.measures, asked=self.truth is None and self.verdicts is None)
        known = find_precision(self.truth, self.verdicts)
        at = max((place for place, finding in enumerate(found) if finding.question == "How good is it?"), default=0)
        return [*found[:at], *known, *found[at:]]

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain values."""
        values = self.measures.as_dict()
        for name, part in (("truth", self.truth), ("verdicts", self.verdicts)):
            if part is not None:
                values[name] = asdict(part)
        return values | {"findings": [asdict(finding) for finding in self.findings]}


def audit(
    database: Database,
    threshold: float = TRAINED_ON,
    truth: Path | None = None,
    verdicts: Path | None = None,
    target: float = 0.8,
) -> Audit:
    """Audit an open run.

    Args:
        threshold: confidence of the relations whose health and precision are looked at.
        truth: shards of the truth. verdicts: what a review exported.
        target: the precision that thresholds are suggested for.

    Raises UserError: a shard or file cannot be read or used, or a number is out of range.
    """
    fingerprint = str(database.run.get("fingerprint", ""))
    said = None if verdicts is None else measure_verdicts(verdicts, fingerprint, target, THRESHOLDS)
    known = None if truth is None else measure_truth(database.root, truth, threshold, target, THRESHOLDS)
    return Audit(measure_database(database, threshold), known, said)
