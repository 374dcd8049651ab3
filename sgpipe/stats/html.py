"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path

from sgpipe.records import TRAINED_ON
from sgpipe.stats.audit import Audit
from sgpipe.stats.calibration import Choice
from sgpipe.stats.findings import level_at
from sgpipe.stats.gallery import Card
from sgpipe.stats.ground_truth import TruthMeasures
from sgpipe.stats.measures import Measures
from sgpipe.stats.pages import render, save_page
from sgpipe.stats.terminal import overview, tail_sentence
from sgpipe.stats.verdicts import Verdicts
from sgpipe.viz.svg import Plot, columns, curve, ranks, unit_square


def write_report(
    file: Path,
    found: Audit,
    cards: list[Card],
    threshold: float = TRAINED_ON,
) -> None:
    """Write the report page.

    Args:
        cards: the images of the gallery.
        threshold: at which its confidence filter starts.

    Raises UserError: the file cannot be written.
    """
    measures = found.measures
    values = {
        "title": measures.run or file.stem,
        "measures": measures,
        "tiles": _tiles(measures),
        "findings": [(question, list(group)) for question, group in groupby(found.findings, lambda f: f.question)],
        "overview": overview(measures),
        "tail": tail_sentence(measures) if measures.predicates else "There is no relation.",
        "predicates": list(measures.predicates.items()),
        "categories": list(measures.categories.items()),
        "plots": _plots(measures),
        "confidence_plots": [*_confidence_plots(measures), *_judged_plots(found.truth, found.verdicts)],
        "truth": found.truth,
        "verdicts": found.verdicts,
        "comparison": found.comparison,
        "cards": cards,
        "shown_predicates": Counter(edge.predicate for card in cards for edge in card.edges).most_common(),
        "shown_categories": _shown_categories(cards),
        "threshold": threshold,
        "trained_on": TRAINED_ON,
    }
    save_page(file, render("report", values))


def _tiles(measures: Measures) -> list[tuple[str, str]]:
    level, found = level_at(measures), sum(check.count > 0 for check in measures.health)
    return [
        ("images", f"{measures.rows:,}"),
        ("relations", f"{measures.totals['relations']:,}"),
        (f"of confidence ≥ {TRAINED_ON:.2f}", f"{level.relations:,}"),
        ("per image that has any", f"{level.per_image:.1f}"),
        ("predicates", f"{measures.tail.kinds:,}"),
        ("health checks that found something", f"{found} of {len(measures.health)}"),
    ]


def _plots(measures: Measures) -> list[Plot]:
    if not measures.predicates:
        return []
    levels = measures.thresholds
    texts = [f"≥ {level.threshold:.2f}: {level.relations:,} relations in {level.images:,} images" for level in levels]
    points = [(level.threshold, float(level.relations)) for level in levels]
    return [
        curve("What a threshold keeps", points, "confidence at least", "relations", texts),
        columns("Relations of an image", measures.relations_per_image, "relations", "images"),
        ranks("Predicates by rank", list(measures.predicates.values()), "rank of the predicate", "relations"),
    ]


def _confidence_plots(measures: Measures) -> list[Plot]:
    confidence = measures.confidence
    if not confidence.scored:
        return []
    width = 1 / len(confidence.histogram)
    bins = {f"{at * width:.2f}": count for at, count in enumerate(confidence.histogram)}
    return [columns("How confidences are spread", bins, "confidence from", "relations", every=2)]


def _judged_plots(truth: TruthMeasures | None, verdicts: Verdicts | None) -> list[Plot]:
    plots = []
    if truth is not None:
        points = [(part.confidence, part.precision.value or 0.0) for part in truth.reliability]
        texts = [f"{part.start:.1f} to {part.stop:.1f}: {part.precision}" for part in truth.reliability]
        lines = [("guide", "", [(0.0, 0.0), (1.0, 1.0)], ["", ""]), ("main", "", points, texts)]
        plots.append(unit_square("Are confidences what they claim?", lines, "mean confidence", "share that is right"))
        plots.append(_threshold_plot("Precision by threshold, by the truth", truth.curve))
    if verdicts is not None and verdicts.judged:
        plots.append(_threshold_plot("Precision by threshold, by people", verdicts.curve))
    return plots


def _threshold_plot(name: str, curve: list[Choice]) -> Plot:
    known = [choice for choice in curve if choice.kept]
    points = [(choice.threshold, choice.precision.value or 0.0) for choice in known]
    texts = [f"≥ {choice.threshold:.2f}: {choice.precision}" for choice in known]
    kept = [(choice.threshold, choice.kept / known[0].kept) for choice in known]
    counts = [f"keeps {choice.kept:,}" for choice in known]
    lines = [("main", "precision", points, texts), ("second", "share kept", kept, counts)]
    return unit_square(name, lines, "confidence at least", "share")


def _shown_categories(cards: list[Card]) -> list[tuple[str, int]]:
    pairs = ({edge.subject.category, edge.object.category} for card in cards for edge in card.edges)
    return Counter(name for pair in pairs for name in pair).most_common()
