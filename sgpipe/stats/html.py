"""The report as one self-contained HTML file: style and script are inline, and all values escaped."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.audit import Audit, error_text, judgement_caveats, level_at, percent
from sgpipe.stats.gallery import Card
from sgpipe.stats.measures import Measures
from sgpipe.stats.precision import ThresholdChoice
from sgpipe.stats.terminal import overview, rarest, tail_sentence
from sgpipe.storage.run_folder import write_result_text
from sgpipe.utils import __version__
from sgpipe.utils.console import count, isolated
from sgpipe.viz.svg import Plot, columns, curve, ranks, unit_square


def render(page: str, values: dict[str, Any]) -> str:
    """Render templates/`page`.html.jinja with its script; every value is escaped."""
    loader = jinja2.PackageLoader("sgpipe.stats", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["count"] = count
    environment.filters["isolated"] = isolated
    environment.globals["svg"] = lambda plot: Markup(plot.inline())  # escapes its own texts
    style, script = (loader.get_source(environment, name)[0] for name in ("style.css", f"{page}.js"))
    # The browser runs only this script, whatever a caption contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(style), "script": Markup(script), "script_hash": Markup(digest), "version": __version__}
    return environment.get_template(f"{page}.html.jinja").render(values | own)


def write_report(file: Path, audit: Audit, cards: list[Card], threshold: float = TRAINING_CONFIDENCE) -> None:
    """Write the report page; `threshold` is the initial value of the gallery's confidence filter."""
    measures, level = audit.measures, level_at(audit.measures)
    failed = sum(check.count > 0 for check in measures.health)
    edges = [edge for card in cards for edge in card.edges]
    categories = ({edge.subject.category, edge.object.category} for edge in edges)
    values = {
        "title": measures.run or file.stem,
        "measures": measures,
        "tiles": [
            ("images", f"{measures.rows:,}"),
            ("relations", f"{measures.totals['relations']:,}"),
            (f"of {measures.threshold_of} ≥ {TRAINING_CONFIDENCE:.2f}", f"{level.relations:,}"),
            ("per image with relations", f"{level.per_image:.1f}"),
            ("predicates", f"{measures.tail.kinds:,}"),
            ("health checks that found problems", f"{failed} of {len(measures.health)}"),
        ],
        "findings": [(question, list(group)) for question, group in groupby(audit.findings, lambda f: f.question)],
        "overview": overview(measures),
        "tail": tail_sentence(measures) if measures.predicates else "There are no relations.",
        "rarest": rarest(measures),
        "predicates": list(measures.predicates.items()),
        "categories": list(measures.categories.items()),
        "plots": _plots(measures),
        "confidence_plots": _confidence_plots(audit),
        "ground_truth": audit.ground_truth,
        "caveats": [] if audit.judgements is None else list(judgement_caveats(audit.judgements)),
        "judged": audit.judgements,
        "comparison": audit.comparison,
        "cards": cards,
        "shown_predicates": Counter(edge.predicate for edge in edges).most_common(),
        "shown_categories": Counter(name for pair in categories for name in pair).most_common(),
        "threshold": threshold,
        "trained_on": TRAINING_CONFIDENCE,
        "percent": percent,
        "error_text": error_text,
    }
    write_result_text(file, render("report", values))


def _plots(measures: Measures) -> list[Plot]:
    if not measures.predicates:
        return []
    levels = measures.thresholds
    texts = [
        f"≥ {level.threshold:.2f}: {count(level.relations, 'relation')} in {count(level.images, 'image')}"
        for level in levels
    ]
    points = [(level.threshold, float(level.relations)) for level in levels]
    kept = curve("What a threshold keeps", points, f"minimum {measures.threshold_of}", "relations", texts)
    return [
        *([kept] if measures.confidence.scored else []),
        columns("Relations per image", measures.relations_per_image, "relations", "images"),
        ranks("Predicates by rank", list(measures.predicates.values()), "rank of the predicate", "relations"),
    ]


def _confidence_plots(audit: Audit) -> list[Plot]:
    plots, ground_truth, judged, of = [], audit.ground_truth, audit.judgements, audit.measures.threshold_of
    if audit.measures.confidence.scored:
        histogram = audit.measures.confidence.histogram
        bins = {f"{at / len(histogram):.2f}": count for at, count in enumerate(histogram)}
        plots.append(columns("Distribution of confidences", bins, "confidence from", "relations", every=2))
    if ground_truth is not None:
        points = [(part.confidence, part.precision.value or 0.0) for part in ground_truth.reliability]
        texts = [f"{part.start:.1f} to {part.stop:.1f}: {part.precision}" for part in ground_truth.reliability]
        lines = [("guide", "", [(0.0, 0.0), (1.0, 1.0)], ["", ""]), ("main", "", points, texts)]
        plots.append(unit_square("Calibration", lines, f"mean {of}", "precision"))
        plots.append(_threshold_plot("Precision by threshold (ground truth)", ground_truth.curve, of))
    if judged is not None and judged.judged:
        plots.append(_threshold_plot("Precision by threshold (judgements)", judged.curve, of))
    return plots


def _threshold_plot(name: str, curve: list[ThresholdChoice], of: str) -> Plot:
    known = [choice for choice in curve if choice.kept]
    points = [(choice.threshold, choice.precision.value or 0.0) for choice in known]
    texts = [f"≥ {choice.threshold:.2f}: {choice.precision}" for choice in known]
    sizes = [choice.kept if choice.relations is None else choice.relations for choice in known]
    kept = [(choice.threshold, size / max(sizes)) for choice, size in zip(known, sizes, strict=True)]
    counts = [f"keeps {size:,}" for size in sizes]
    lines = [("main", "precision", points, texts), ("second", "share kept", kept, counts)]
    return unit_square(name, lines, f"minimum {of}", "share")
