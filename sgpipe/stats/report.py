"""The audit as terminal tables and as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.audit import Audit, Comparison, error_text, judgement_caveats, level_at, percent, share_text
from sgpipe.stats.gallery import Card
from sgpipe.stats.judgements import JudgementMeasures
from sgpipe.stats.measures import TOTALS, Measures
from sgpipe.stats.precision import CalibrationBin, GroundTruthMeasures, ScoreQuality, ThresholdChoice
from sgpipe.storage.run_folder import write_result_text
from sgpipe.utils import __version__
from sgpipe.utils.console import count, isolated, single_line
from sgpipe.viz.svg import Plot, columns, curve, ranks, unit_square

_TOP, _TAIL, _TRIPLETS = 15, 5, 10
_LONGEST = 48  # letters of a name in a table
_PRECISION = ">precision (95% interval, judged)"


def print_tables(audit: Audit, console: Console) -> None:
    """Print the audit for a person."""
    for part in (
        *_measured(audit.measures),
        *_compared(audit.comparison),
        *_against_truth(audit.ground_truth, audit.measures.threshold_of),
        *_judged(audit.judgements, audit.measures.threshold_of),
    ):
        console.print(part, soft_wrap=isinstance(part, str))
    for question, group in groupby(audit.findings, lambda finding: finding.question):
        console.print(question, style="bold")
        for finding in group:
            console.print(f"  {single_line(finding.text)}", soft_wrap=True)


_BEFORE = {
    "triplets": "caption",
    "matched_triplets": "triplet",
    "candidate_texts": "matched triplet",
    "relations": "candidate text",
    "kept_relations": "relation",
}


def overview(measures: Measures) -> list[tuple[str, str, str]]:
    """Return the main counts, in the order in which images become relations, and the yield of each stage."""
    rows = [(f"images ({split})", f"{count:,}", "") for split, count in sorted(measures.images.items())]
    rows.append(("error rows", f"{sum(measures.errors.values()):,}", ""))
    for key, name in TOTALS.items():
        share, lost = measures.yields.get(key), measures.in_error_rows[key]
        if key == "kept_relations" and _is_annotated(measures):
            each = "without a confidence"
        elif key == "described_objects":
            each = share_text(measures.totals[key] / (measures.totals["objects"] or 1)) + " of the boxes"
        elif share is not None:
            each = f"{share:.2f} per {_BEFORE[key]}"
        else:
            each = f"{lost:,} in error rows" if lost else ""
        rows.append((name, f"{measures.totals[key]:,}", each))
    return [*rows, ("relations with a person as subject", f"{measures.person_subject_share:.1%}", "")]


def _is_annotated(measures: Measures) -> bool:
    """Return whether all relations are annotations, which have no confidence and count at every threshold."""
    return measures.confidence.unscored > 0 and not measures.confidence.scored


def tail_sentence(measures: Measures) -> str:
    """Return the long tail of the predicates, in words."""
    tail = measures.tail
    if tail.kinds == 1:
        return "All relations have the same predicate."
    most = count(tail.half, "most frequent predicate accounts", "most frequent predicates account")
    head = f", the 10 most frequent for {share_text(tail.head_share)}" if tail.kinds > 10 else ""
    return (
        f"The {most} for half of the relations{head}; {tail.singletons:,} of {count(tail.kinds, 'predicate')} "
        f"{'occurs' if tail.singletons == 1 else 'occur'} once. Gini {tail.gini:.2f}, entropy {tail.entropy:.1f} bits "
        f"(like {count(round(tail.effective_kinds), 'equally frequent predicate')})."
    )


def rarest(measures: Measures) -> list[str]:
    """Return a few of the least frequent predicates; none if there is only one."""
    return list(measures.predicates)[: -_TAIL - 1 : -1] if measures.tail.kinds > 1 else []


def _measured(measures: Measures) -> Iterator[Table | str]:
    yield table(f"run {measures.run or '(unnamed)'}", ["", ">", ""], overview(measures))
    if not _is_annotated(measures):
        rows = []
        for level in measures.thresholds:
            kept = (f"{number:,}" for number in (level.relations, level.predicate_kinds, level.images))
            means = (f"{mean:.2f}" if level.relations else "-" for mean in (level.per_image, level.per_pair))
            rows.append((f"{level.threshold:.2f}", *kept, *means))
        names = [">relations", ">predicate kinds", ">images", ">per image", ">per pair"]
        yield table("relations by threshold", [f"{measures.threshold_of} ≥", *names], rows)
    rankings = [
        ("predicate", "relations", measures.predicates),
        ("attribute", "boxes", measures.attributes),
        ("reason", "images without relations", measures.without_relations),
        ("error", "images", measures.named_errors),
    ]
    for what, unit, counts in rankings:
        if counts:
            total, first = sum(counts.values()), list(counts.items())[:_TOP]
            total = measures.totals["objects"] if what == "attribute" else total
            longest = _LONGEST if what == "predicate" else None
            rows = [(single_line(name, longest), f"{number:,}", f"{number / total:.1%}") for name, number in first]
            yield table(_frequent(len(counts), what, _TOP), [what, f">{unit}", ">share"], rows)
        if counts and what == "predicate":
            rare = ", ".join(single_line(name, _LONGEST) for name in rarest(measures))
            yield tail_sentence(measures) + (f" Rarest: {rare}." if rare else "")
            rows = []
            for t in measures.triplets[:_TRIPLETS]:
                names = [single_line(name or "(missing)", _LONGEST) for name in (t.subject, t.predicate, t.object)]
                rows.append((*names, f"{t.relations:,}", "-" if t.confidence is None else f"{t.confidence:.2f}"))
            heads = ["subject", "predicate", "object", ">relations", ">mean confidence"]
            yield table(_frequent(measures.triplet_kinds, "triplet", _TRIPLETS), heads, rows)
    if failed := [check for check in measures.health if check.count]:
        rows = []
        for check in failed:
            example = ""
            if check.examples:
                shown = check.examples[0]
                text, image = (single_line(part, 2 * _LONGEST) for part in (shown.text, shown.image_id))
                example = f"{text} (image {image})"
            rows.append((check.title, f"{check.count:,}", f"{check.share:.1%} of {check.of}", example))
        title = f"health: {len(failed)} of {len(measures.health)} checks found problems"
        yield table(title, ["problem", ">count", ">share", "example"], rows)


def _frequent(number: int, what: str, shown: int) -> str:
    return f"most frequent of {count(number, what)}" if number > shown else count(number, what)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of plain text; heads whose name starts with `>` are right-aligned."""
    names = [name.removeprefix(">") for name in heads]
    made = Table(title=Text(single_line(title)), show_header=any(names))
    for column, name in zip(heads, names, strict=True):
        made.add_column(Text(name), justify="right" if column.startswith(">") else "left")
    for row in rows:
        made.add_row(*(Text(single_line(cell)) for cell in row))
    return made


def _compared(comparison: Comparison | None) -> Iterator[Table]:
    """Yield what changed compared with another run."""
    if comparison is None:
        return
    heads = [f">{single_line(comparison.other, _LONGEST)}", ">this run"]
    counts = [(row.name, f"{row.before:,}", f"{row.after:,}", row.text) for row in comparison.counts]
    yield table("what changed", ["", *heads, ">change"], counts)
    only = f"{comparison.gained:,} only in this run, {comparison.lost:,} only in the other"
    titles = {"predicate": f"predicates whose share changed most; {only}", "check": "health of both runs"}
    for what, changes in (("predicate", comparison.predicates), ("check", comparison.health)):
        shares = [(row.name, f"{row.before:.1%}", f"{row.after:.1%}") for row in changes]
        if shares or what == "predicate":
            yield table(titles[what], [what, *heads], shares)


def _against_truth(truth: GroundTruthMeasures | None, threshold_of: str) -> Iterator[Table]:
    """Thresholds that reach the target precision, and the calibration of the confidences."""
    if truth is None:
        return
    choices = [("all", truth.relations, truth.precision, truth.suggested if truth.sure else None)]
    choices += [(row.predicate, row.relations, row.at_threshold, row.suggested) for row in truth.predicates[:_TOP]]
    rows = []
    for predicate, relations, precision, suggested in choices:
        choice = ("not shown", "0") if suggested is None else (suggested.text, f"{suggested.kept:,}")
        rows.append((single_line(predicate, _LONGEST), f"{relations:,}", str(precision), *choice))
    names = ["predicate", ">relations", f">precision at {truth.threshold:.2f}", ">threshold", ">keeps"]
    target, images = percent(truth.target), count(truth.images, "image")
    yield table(f"thresholds for a precision of {target}, by the ground truth of {images}", names, rows)
    yield _bins(f"calibration{_error(truth)}", threshold_of, truth.reliability)
    yield from _vlm_table(truth.vlm_score)


def _judged(judged: JudgementMeasures | None, threshold_of: str) -> Iterator[Table]:
    """People's judgements by stratum, and what thresholds keep of the judged relations."""
    if judged is None:
        return
    if (recall := judged.recall) is not None and recall.recall.value is not None:
        found = [
            ("all", recall.recall),
            ("pairs of boxes, any predicate", recall.pairs),
            *islice(recall.predicates.items(), _TOP),
        ]
        cells = [(single_line(name, _LONGEST), str(each)) for name, each in found]
        yield table("recall of what people name", ["relations", ">recall (95% interval, named)"], cells)
    if plans := [(each.title, f"{each.open:,}", str(each.precision)) for each in judged.judgements.plans]:
        yield table("plans", ["sample of", ">open", _PRECISION], plans)
    if not judged.judged:
        return
    first = "predicate" if judged.strata == "predicates" else "confidence"
    strata = [(row.name, f"{row.relations:,}", str(row.precision)) for row in judged.bands]
    title = f"people judged {count(judged.judged, 'relation')}{_error(judged)}"
    yield table(title, [first, ">relations", _PRECISION], strata)
    rows = [(f"{choice.threshold:.2f}", f"{choice.relations or 0:,}", str(choice.precision)) for choice in judged.curve]
    title = f"precision by threshold, weighted by the relations of {judged.strata}"
    yield table(title, [f"{threshold_of} ≥", ">relations", _PRECISION], rows)
    yield from _vlm_table(judged.vlm_score)


def _vlm_table(vlm_score: ScoreQuality | None) -> Iterator[Table]:
    if vlm_score is not None and vlm_score.reliability:
        yield _bins("scores of the vision-language model", "score", vlm_score.reliability)


def _bins(title: str, of: str, bins: Sequence[CalibrationBin]) -> Table:
    rows = [(f"{part.start:.1f} to {part.stop:.1f}", f"{part.confidence:.2f}", str(part.precision)) for part in bins]
    return table(title, [of, ">mean", _PRECISION], rows)


def _error(found: GroundTruthMeasures | JudgementMeasures) -> str:
    error = found.calibration_error
    return "" if error is None else f" (calibration error {error_text(error, found.perfect_error)})"


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


def _threshold_plot(name: str, choices: list[ThresholdChoice], of: str) -> Plot:
    known = [choice for choice in choices if choice.kept]
    points = [(choice.threshold, choice.precision.value or 0.0) for choice in known]
    texts = [f"≥ {choice.threshold:.2f}: {choice.precision}" for choice in known]
    sizes = [choice.kept if choice.relations is None else choice.relations for choice in known]
    kept = [(choice.threshold, size / max(sizes)) for choice, size in zip(known, sizes, strict=True)]
    counts = [f"keeps {size:,}" for size in sizes]
    lines = [("main", "precision", points, texts), ("second", "share kept", kept, counts)]
    return unit_square(name, lines, f"minimum {of}", "share")
