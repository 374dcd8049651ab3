"""The audit as one HTML page: its tables, plots, and a gallery of sample images."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup

from sgpipe import viz
from sgpipe.plots import Line, Plot, round_end
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.audit import Audit, share_text
from sgpipe.stats.ground_truth import GroundTruthMeasures
from sgpipe.stats.judged_precision import JudgementMeasures
from sgpipe.stats.measures import Measures
from sgpipe.stats.samples import Samples, Values, make_card
from sgpipe.stats.tables import tables
from sgpipe.storage.run_folder import write_result_text
from sgpipe.utils import __version__
from sgpipe.utils.html import templates

_CARD_RELATIONS = 10


def render(page: str, values: Values) -> str:
    """Render templates/`page`.html.jinja with its script."""
    loader = jinja2.PackageLoader("sgpipe.stats", "templates")
    environment = templates(loader)
    environment.globals["svg"] = lambda plot: Markup(plot.inline())  # escapes its own texts
    style = loader.get_source(environment, "style.css")[0]
    script = loader.get_source(environment, f"{page}.js")[0]
    # The browser runs only this script, whatever a caption contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    common = {
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": Markup(digest),
        "version": __version__,
    }
    return environment.get_template(f"{page}.html.jinja").render(values | common)


def write_report(
    file: Path, audit: Audit, samples: Samples, threshold: float = TRAINING_CONFIDENCE
) -> tuple[int, int]:
    """Write the page.

    Args:
        file: to write.
        audit: to report.
        samples: records and images of the gallery.
        threshold: of the gallery's filter.

    Returns:
        How many images the page has, and how many of them it lacks.
    """
    cards = []
    predicates = Counter[str]()
    categories = Counter[str]()
    for record, image in samples:
        card = make_card(record, image, viz.shown(record.relations, 0.0, _CARD_RELATIONS))
        cards.append(card)
        for edge in card["edges"]:
            predicates[edge["predicate"]] += 1
            categories.update({edge["subject"]["category"], edge["object"]["category"]})
    plots = {
        "counts": list(_plots_of_counts(audit.measures)),
        "confidence": list(_plots(audit)),
    }
    sections = []
    for name, section_tables in tables(audit).items():
        section_plots = plots.get(name, [])
        if section_tables or section_plots:
            sections.append((name, section_tables, section_plots))
    findings = groupby(audit.findings, lambda finding: finding.question)
    values = {
        "title": audit.measures.run or file.stem,
        "measures": audit.measures,
        "findings": [(question, list(group)) for question, group in findings],
        "sections": sections,
        "cards": cards,
        "shown_predicates": predicates.most_common(),
        "shown_categories": categories.most_common(),
        "threshold": threshold,
    }
    write_result_text(file, render("report", values))
    return len(cards), sum(card["image"] is None for card in cards)


def _plots_of_counts(measures: Measures) -> Iterator[Plot]:
    total = measures.totals["relations"]
    if measures.confidence.scored:
        points = [(0.0, total)]
        for level in measures.thresholds:
            points.append((level.threshold, level.relations))
        texts = [f"≥ {threshold:.2f}: {relations:,}" for threshold, relations in points]
        yield Plot(
            "What a threshold keeps",
            f"minimum {measures.threshold_of}",
            "relations",
            [Line(points, texts)],
            y_end=round_end(total),
        )
    counts = list(measures.predicates.values())
    if counts:
        ranks = sorted({round(len(counts) ** (step / 40)) for step in range(41)})
        tail = []
        texts = []
        for rank in ranks:
            share = sum(counts[:rank]) / total
            tail.append((rank, share))
            texts.append(f"the {rank:,} most frequent: {share_text(share)}")
        yield Plot(
            "The long tail",
            "most frequent predicates",
            "share of the relations",
            [Line(tail, texts)],
            x_end=round_end(max(len(counts), 5)),
        )


def _plots(audit: Audit) -> Iterator[Plot]:
    measure = audit.measures.threshold_of
    if audit.measures.confidence.scored:
        yield _histogram(audit.measures.confidence.histogram)
    if audit.ground_truth is not None:
        yield _calibration(audit.ground_truth, measure)
    if audit.judgements is not None and audit.judgements.precision.judged:
        yield _precision_by_threshold(audit.judgements, measure)


def _histogram(histogram: Sequence[int]) -> Plot:
    bins = {f"{number / len(histogram):.2f}": count for number, count in enumerate(histogram)}
    top = round_end(max(histogram))
    return Plot(
        "Distribution of confidences", "confidence from", "relations", (), bins, 2, y_end=top
    )


def _calibration(truth: GroundTruthMeasures, measure: str) -> Plot:
    points = []
    texts = []
    for part in truth.reliability:
        points.append((part.confidence, part.precision.value or 0.0))
        texts.append(f"{part.start:.1f} to {part.stop:.1f}: {part.precision}")
    guide = Line([(0, 0), (1, 1)], kind="guide")
    return Plot("Calibration", f"mean {measure}", "precision", [guide, Line(points, texts)])


def _precision_by_threshold(judged: JudgementMeasures, measure: str) -> Plot:
    points = []
    texts = []
    for choice in judged.curve:
        if choice.kept:
            points.append((choice.threshold, choice.precision.value or 0.0))
            texts.append(f"≥ {choice.threshold:.2f}: {choice.precision}")
    return Plot("Precision by threshold", f"minimum {measure}", "precision", [Line(points, texts)])
