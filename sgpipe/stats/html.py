"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sgpipe import __version__
from sgpipe.errors import UserError
from sgpipe.stats.charts import Plot, columns, curve, ranks
from sgpipe.stats.compare import Comparison
from sgpipe.stats.findings import find, level_at
from sgpipe.stats.gallery import Card
from sgpipe.stats.measures import TRAINED_ON, Measures
from sgpipe.stats.terminal import overview, tail_sentence


def write_report(
    file: Path,
    measures: Measures,
    cards: list[Card],
    threshold: float = TRAINED_ON,
    comparison: Comparison | None = None,
) -> None:
    """Write the report page.

    Args:
        cards: the images of the gallery.
        threshold: at which its confidence filter starts.

    Raises UserError: the file cannot be written.
    """
    values = {
        "title": measures.run or file.stem,
        "measures": measures,
        "tiles": _tiles(measures),
        "findings": [(question, list(group)) for question, group in groupby(find(measures), lambda f: f.question)],
        "overview": list(overview(measures).items()),
        "tail": tail_sentence(measures) if measures.predicates else "There is no relation.",
        "predicates": list(measures.predicates.items()),
        "categories": list(measures.categories.items()),
        "plots": _plots(measures),
        "confidence_plots": _confidence_plots(measures),
        "comparison": comparison,
        "cards": cards,
        "shown_predicates": Counter(edge.predicate for card in cards for edge in card.edges).most_common(),
        "shown_categories": _shown_categories(cards),
        "threshold": threshold,
        "trained_on": TRAINED_ON,
    }
    save_page(file, render("report", values))


def render(page: str, values: dict[str, Any]) -> str:
    """The page of templates/`page`.html.jinja with its script; every value is escaped."""
    loader = jinja2.PackageLoader("sgpipe.stats", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.globals["zip"] = zip
    style, script = (_source(environment, name) for name in ("style.css", f"{page}.js"))
    # The browser runs this script and no other, whatever a caption holds.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(style), "script": Markup(script), "script_hash": Markup(digest), "version": __version__}
    return environment.get_template(f"{page}.html.jinja").render(values | own)


def save_page(file: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises UserError: the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


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


def _shown_categories(cards: list[Card]) -> list[tuple[str, int]]:
    pairs = ({edge.subject.category, edge.object.category} for card in cards for edge in card.edges)
    return Counter(name for pair in pairs for name in pair).most_common()
