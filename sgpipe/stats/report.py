"""The audit as tables, on the terminal and in one HTML page, which also has plots and a gallery.

Sample images of a run are cards of the gallery, with the scene graph of each, or the contact sheet,
one PNG.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, groupby, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jinja2
from markupsafe import Markup
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sgpipe import viz
from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import TRAINING_CONFIDENCE, Record, Relation, from_table
from sgpipe.stats.audit import Audit, Comparison, error_text, name_text, percent, share_text
from sgpipe.stats.ground_truth import GroundTruthMeasures, PredicateThreshold
from sgpipe.stats.measures import STAGES, TOTALS, Measures
from sgpipe.stats.plans import JudgementMeasures
from sgpipe.stats.precision import PrecisionEstimate
from sgpipe.stats.recall import RecallMeasures
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import write_result, write_result_text
from sgpipe.storage.shards import embedded_images
from sgpipe.utils import __version__
from sgpipe.utils.console import count, isolated, single_line
from sgpipe.viz import Line, Plot, polyline, round_end

if TYPE_CHECKING:
    from sgpipe.stats.doubts import Doubt, Doubts

Values: TypeAlias = dict[str, Any]
Nodes: TypeAlias = dict[int, Values]
Samples: TypeAlias = Iterable[tuple[Record, Image.Image | None]]

_TOP = 15
_RAREST = 5
_PRECISION = ">precision (95% interval, judged)"

_SPREAD = """
    select image from (
        select image, coalesce(certainty >= ?::float, false) as has,
            ntile(?) over (partition by has order by image) as tile
        from images left join related_images using (image) where status = 'ok')
    qualify row_number() over (partition by has, tile order by image) = 1
    order by not has, tile limit ?
"""

_CARD = 480
_GAP = 16
_TITLE = 26
_SHEET_RELATIONS = 8
_PAPER = "#e9ebee"
_INK = "#1a1a1a"
WIDTH = 480  # of an image and of a graph, in units of their SVG
_CARD_RELATIONS = 10
_CAPTIONS = 5
# the browser's font may be slightly wider than the one measured here
_TEXT = 14
_PILL = 24
_QUALITY = 76


@dataclass(frozen=True)
class Table:
    """A table of both forms; heads that start with `>` are of numbers.

    `note`: a sentence below it.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(audit: Audit) -> dict[str, list[Table]]:
    """Return what both forms show, by section, without the health checks."""
    measure = audit.measures.threshold_of
    return {
        "counts": list(_counted(audit.measures)),
        "comparison": list(_compared(audit.comparison)),
        "confidence": [
            *_against_truth(audit.ground_truth, measure),
            *_judged(audit.judgements, measure),
            *_doubted(audit.doubts),
        ],
    }


def print_audit(audit: Audit, console: Console) -> None:
    """Print the answers to the four questions of an audit, and then its tables."""
    for question, group in groupby(audit.findings, lambda finding: finding.question):
        console.print(question, style="bold")
        for finding in group:
            console.print(f"  {single_line(finding.text)}", soft_wrap=True)
    for table in chain(*tables(audit).values(), _failed_checks(audit.measures)):
        heads = [head.removeprefix(">") for head in table.heads]
        printed = RichTable(title=Text(single_line(table.title)), show_header=any(heads))
        for head, name in zip(table.heads, heads, strict=True):
            printed.add_column(Text(name), justify="right" if head.startswith(">") else "left")
        for row in table.rows:
            printed.add_row(*(Text(single_line(cell)) for cell in row))
        console.print(printed)
        if table.note:
            console.print(single_line(table.note), soft_wrap=True)


def overview(measures: Measures) -> list[tuple[str, str, str]]:
    """Return the main counts and the yield of each stage, as images become relations."""
    rows = []
    for split, images in sorted(measures.images.items()):
        rows.append((f"images ({split})", f"{images:,}", ""))
    rows.append(("error rows", f"{sum(measures.errors.values()):,}", ""))
    for key, name in TOTALS.items():
        share = measures.yields.get(key)
        lost = measures.in_error_rows[key]
        remark = f"{lost:,} in error rows" if lost else ""
        if key == "described_objects":
            boxes = measures.totals["objects"] or 1
            remark = f"{share_text(measures.totals[key] / boxes)} of the boxes"
        elif share is not None:
            before = STAGES[STAGES.index(key) - 1].removesuffix("s").replace("_", " ")
            remark = f"{share:.2f} per {before}"
        rows.append((name, f"{measures.totals[key]:,}", remark))
    return [
        *rows,
        ("relations with a person as subject", f"{measures.person_subject_share:.1%}", ""),
    ]


def _long_tail(measures: Measures) -> str:
    tail = measures.tail
    if tail.kinds == 1:
        return "All relations have the same predicate."
    half = count(tail.half, "most frequent predicate accounts", "most frequent predicates account")
    head = f", the 10 most frequent for {share_text(tail.head_share)}" if tail.kinds > 10 else ""
    rarest = ", ".join(map(name_text, list(measures.predicates)[: -_RAREST - 1 : -1]))
    return (
        f"The {half} for half of the relations{head}; {tail.singletons:,} of"
        f" {count(tail.kinds, 'predicate')} {'occurs' if tail.singletons == 1 else 'occur'} once."
        f" Gini {tail.gini:.2f}, entropy {tail.entropy:.1f} bits (like"
        f" {count(round(2**tail.entropy), 'equally frequent predicate')}). Rarest: {rarest}."
    )


def _counted(measures: Measures) -> Iterator[Table]:
    yield Table(f"run {measures.run or '(unnamed)'}", ["", ">", ""], overview(measures))
    if measures.confidence.scored:
        yield _by_threshold(measures)
    predicates = ("predicate", "predicates", "relations")
    yield from _most_frequent(measures.predicates, predicates, note=_long_tail(measures))
    yield from _most_frequent(measures.categories, ("class", "classes", "boxes"))
    attributes = ("attribute", "attributes", "boxes")
    yield from _most_frequent(measures.attributes, attributes, measures.totals["objects"])
    reasons = ("reason", "reasons", "images without relations")
    yield from _most_frequent(measures.without_relations, reasons)
    errors = {}
    for kind, number in measures.errors.items():
        errors[f"{kind}, such as {measures.error_examples[kind]}"] = number
    yield from _most_frequent(errors, ("error", "errors", "images"))
    if measures.triplets:
        yield _triplets(measures)


def _by_threshold(measures: Measures) -> Table:
    rows = []
    for level in measures.thresholds:
        numbers = (level.relations, level.predicate_kinds, level.images)
        means = ("–", "–")
        if level.relations:
            means = (f"{level.per_image:.2f}", f"{level.per_pair:.2f}")
        rows.append((f"{level.threshold:.2f}", *(f"{number:,}" for number in numbers), *means))
    heads = [">relations", ">predicate kinds", ">images", ">per image", ">per pair"]
    return Table("relations by threshold", [f"{measures.threshold_of} ≥", *heads], rows)


def _most_frequent(
    counts: Mapping[str, int],
    nouns: tuple[str, str, str],
    total: int | None = None,
    note: str = "",
) -> Iterator[Table]:
    """Yield a table of the most frequent names, if there are any.

    Args:
        counts: of each name, the most frequent first.
        nouns: what is counted, its plural, and what it is counted in.
        total: which shares are of; None: the sum of all counts.
        note: of the table.
    """
    if not counts:
        return
    singular, plural, unit = nouns
    total = total or sum(counts.values())
    rows = []
    for name, number in islice(counts.items(), _TOP):
        rows.append((name, f"{number:,}", f"{number / total:.1%}"))
    title = f"most frequent of {count(len(counts), singular, plural)}"
    yield Table(title, [singular, f">{unit}", ">share"], rows, note)


def _triplets(measures: Measures) -> Table:
    rows = []
    for triplet in measures.triplets[:_TOP]:
        names = (triplet.subject or "(missing)", triplet.predicate, triplet.object or "(missing)")
        mean = "–" if triplet.confidence is None else f"{triplet.confidence:.2f}"
        rows.append((*names, f"{triplet.relations:,}", mean))
    heads = ["subject", "predicate", "object", ">relations", ">mean confidence"]
    return Table(f"most frequent of {count(measures.triplet_kinds, 'triplet')}", heads, rows)


def _failed_checks(measures: Measures) -> Iterator[Table]:
    """For the terminal; the page shows all checks, with advice."""
    failed = [check for check in measures.health if check.count]
    if failed:
        rows = []
        for check in failed:
            share = f"{check.share:.1%} of {check.of}"
            text = ""
            for example in check.examples[:1]:
                text = f"{example.text} (image {example.image_id})"
            rows.append((check.title, f"{check.count:,}", share, text))
        title = f"health: {len(failed)} of {len(measures.health)} checks found problems"
        yield Table(title, ["problem", ">count", ">share", "example"], rows)


def _compared(comparison: Comparison | None) -> Iterator[Table]:
    if comparison is None:
        return
    heads = [f">{comparison.other}", ">this run"]
    rows: list[tuple[str, ...]] = []
    for name, (before, after) in comparison.counts.items():
        rows.append((name, f"{before:,}", f"{after:,}", _change(before, after)))
    yield Table("what changed", ["", *heads, ">change"], rows)
    only = f"{comparison.gained:,} only in this run, {comparison.lost:,} only in the other"
    title = f"predicates whose share changed most; {only}"
    yield Table(title, ["predicate", *heads], _share_rows(comparison.predicates))
    if comparison.health:
        rows = _share_rows(comparison.health)
        yield Table("health of both runs", ["check", *heads], rows)


def _change(before: int, after: int) -> str:
    if after == before:
        return "–"
    relative = f" ({(after - before) / before:+.0%})" if before else ""
    return f"{after - before:+,}{relative}"


def _share_rows(changes: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    return [(name, f"{before:.1%}", f"{after:.1%}") for name, (before, after) in changes.items()]


def _against_truth(truth: GroundTruthMeasures | None, measure: str) -> Iterator[Table]:
    if truth is None:
        return
    everything = PredicateThreshold("all", truth.relations, truth.precision, truth.suggested)
    rows: list[tuple[str, ...]] = []
    for row in (everything, *truth.predicates[:_TOP]):
        choice = ("not shown", "0")
        if row.suggested is not None:
            choice = (row.suggested.text, f"{row.suggested.kept:,}")
        rows.append((row.predicate, f"{row.relations:,}", str(row.at_threshold), *choice))
    heads = [
        "predicate",
        ">relations",
        f">precision at {truth.threshold:.2f}",
        ">threshold",
        ">keeps",
    ]
    title = f"thresholds for a precision of {percent(truth.target)}, by the ground truth of "
    note = "Each threshold is shown with 95% confidence by itself, not all of them together."
    yield Table(title + count(truth.images, "image"), heads, rows, note)
    title = "calibration"
    if truth.calibration_error is not None:
        title += f" (calibration error {error_text(truth.calibration_error, truth.perfect_error)})"
    rows = []
    for part in truth.reliability:
        span = f"{part.start:.1f} to {part.stop:.1f}"
        rows.append((span, f"{part.confidence:.2f}", str(part.precision)))
    yield Table(title, [measure, ">mean", _PRECISION], rows)


def _judged(judged: JudgementMeasures | None, measure: str) -> Iterator[Table]:
    if judged is None:
        return
    if judged.recall is not None and judged.recall.recall.value is not None:
        yield _recall(judged.recall)
    if not judged.precision.judged:
        return
    by_predicate = judged.strata == "predicates"
    strata = [(row.name, f"{row.relations:,}", str(row.precision)) for row in judged.bands]
    title = f"people judged {count(judged.precision.judged, 'relation')}"
    first = "predicate" if by_predicate else "confidence"
    yield Table(title, [first, ">relations", _PRECISION], strata)
    if not by_predicate:
        title = "precision by predicate, weighted by its relations in each band"
        yield Table(title, ["predicate", _PRECISION], _estimate_rows(judged.predicates))
    rows = []
    for choice in judged.curve:
        relations = f"{choice.relations or 0:,}"
        rows.append((f"{choice.threshold:.2f}", relations, str(choice.precision)))
    title = f"precision by threshold, weighted by the relations of {judged.strata}"
    yield Table(title, [f"{measure} ≥", ">relations", _PRECISION], rows)


def _recall(recall: RecallMeasures) -> Table:
    pairs = ("pairs of boxes, any predicate", str(recall.pairs))
    rows = [("all", str(recall.recall)), pairs, *_estimate_rows(recall.predicates)]
    heads = ["relations", ">recall (95% interval, named)"]
    return Table("recall of what people name", heads, rows)


def _estimate_rows(estimates: Mapping[str, PrecisionEstimate]) -> list[tuple[str, str]]:
    return [(name, str(estimate)) for name, estimate in islice(estimates.items(), _TOP)]


def _doubted(doubts: Doubts | None) -> Iterator[Table]:
    if doubts is None:
        return
    relations = count(doubts.relations, "annotated relation")
    title = f"the most improbable of {relations} of persons, by the layout model"
    yield _doubt_table(title, doubts.improbable)
    pairs = count(doubts.missing_count, "pair")
    note = "Probability: that the two boxes interact. The predicate is the likeliest."
    title = f"likely missing: {pairs} that nobody annotated"
    yield _doubt_table(title, doubts.missing, note)


def _doubt_table(title: str, doubts: Sequence[Doubt], note: str = "") -> Table:
    rows = []
    for doubt in doubts:
        subject = f"{doubt.subject_category} {_box_text(doubt.subject_box)}"
        thing = f"{doubt.object_category} {_box_text(doubt.object_box)}"
        image = f"{doubt.image_id} ({doubt.split})"
        rows.append((f"{doubt.probability:.4f}", image, subject, doubt.predicate, thing))
    heads = [">probability", "image", "subject (x, y, width, height)", "predicate", "object"]
    return Table(title, heads, rows, note)


def _box_text(box: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.0f}' for value in box)})"


def templates(loader: jinja2.BaseLoader) -> jinja2.Environment:
    """Return an environment for pages, which escapes every value."""
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": count,
        "isolated": isolated,
        "thousands": lambda number: f"{number:,}",
    }
    return environment


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


def open_samples(
    database: Database,
    number: int,
    threshold: float,
    images: ImagePlace | None = None,
    calibration: Calibration | None = None,
) -> Iterator[tuple[Record, Image.Image | None]]:
    """Yield records, evenly spaced among those with a relation of at least `threshold`.

    If there are fewer than `number` of these, others are added, but no error rows. Each comes with
    its image, or None if it cannot be opened.
    """
    [(rows,)] = database.rows("select count(*) from images")
    number = min(number, max(rows, 1))
    numbers = sorted(image for (image,) in database.rows(_SPREAD, [threshold, number, number]))
    for table in database.read_rows(numbers):
        [record] = from_table(table)
        [embedded] = embedded_images(table)
        if calibration is not None:
            for relation in record.relations:
                if relation.confidence is not None:
                    relation.confidence = float(calibration.probabilities(relation.confidence))
        image = None
        with suppress(ImageError):
            image = open_row_image(database.image_roots, record, embedded, images)
        yield record, image


def write_sheet(
    database: Database, file: Path, samples: Samples, threshold: float = 0.2
) -> tuple[int, int]:
    """Draw samples into one PNG.

    Returns:
        Their number, and how many lack their image.

    Raises:
        UserError: there are no samples.
    """
    cards = []
    lost = 0
    for record, image in samples:
        lost += image is None
        relations = viz.shown(record.relations, threshold, _SHEET_RELATIONS)
        cards.append(viz.draw_card(image, record, relations, _CARD))
    if not cards:
        raise UserError(f"{database.root} has no image to draw")
    title = (
        f"{database.run.get('name') or database.root.name}: relations of {database.measure}"
        f" {threshold:.2f} or more"
    )
    columns = min(len(cards), max(1, round(math.sqrt(len(cards)))))
    bottoms = [_TITLE + 2 * _GAP] * columns
    corners = []
    for card in cards:  # each is added to the shortest column so far
        column = bottoms.index(min(bottoms))
        corners.append((_GAP + column * (_CARD + _GAP), bottoms[column]))
        bottoms[column] += card.height + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_CARD + _GAP), max(bottoms)), _PAPER)
    letters = viz.font(_TITLE * 0.8)
    text = viz.fit(title, letters, sheet.width - 2 * _GAP)
    ImageDraw.Draw(sheet).text(
        (_GAP, _GAP + _TITLE / 2), text, fill=_INK, font=letters, anchor="lm"
    )
    for card, corner in zip(cards, corners, strict=True):
        sheet.paste(card, corner)
    with write_result(file) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return len(cards), lost


def make_card(record: Record, image: Image.Image | None, relations: Sequence[Relation]) -> Values:
    """Return an image with its relations between existing objects, as templates take it.

    `image`: a data URI, or None. `nodes`: objects, with the box and the tag on the image, and the
    pill in the graph. `edges`: relations, with curves on both, and a text in the graph. All in
    units of SVGs that are `WIDTH` wide.
    """
    scale = WIDTH / max(record.width, 1)
    height = min(max(record.height * scale, 60), 2 * WIDTH)
    existing = range(len(record.objects))
    relations = [
        relation
        for relation in relations
        if relation.subject in existing and relation.object in existing
    ]
    uri = None
    if image is not None:
        small = image.convert("RGB")
        file = BytesIO()
        small.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
        small.save(file, "JPEG", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    nodes, graph_height = _nodes(record, relations, scale, height)
    return {
        "image_id": record.image_id,
        "split": record.split,
        "file_name": record.file_name,
        "image": uri,
        "height": height,
        "graph_height": graph_height,
        "nodes": list(nodes.values()),
        "edges": _edges(relations, nodes, graph_height),
        "relations": len(record.relations),
        "captions": [caption.text for caption in record.captions[:_CAPTIONS]],
    }


def _nodes(
    record: Record, relations: Sequence[Relation], scale: float, height: float
) -> tuple[Nodes, float]:
    """Return the objects of the relations by index, on an ellipse, and its height.

    They are in the order of their angles around the middle of all.
    """
    used = viz.drawn_objects(record, relations)
    if not relations:
        used = [index for index in used if not record.objects[index].is_nothing]
    boxes = {}
    middles = {}
    for index in used:
        boxes[index] = viz.corners(record.objects[index].bbox, scale, (WIDTH, height))
        middles[index] = viz.middle(boxes[index])
    centre_x = sum(x for x, _ in middles.values()) / max(len(middles), 1)
    centre_y = sum(y for _, y in middles.values()) / max(len(middles), 1)
    order = sorted(
        middles, key=lambda i: math.atan2(middles[i][1] - centre_y, middles[i][0] - centre_x)
    )
    names = viz.object_names(record.objects)
    letters = viz.font(_TEXT)
    graph_height = 110.0 + 34 * max(len(used) - 1, 0)
    room = viz.TextPlacer(WIDTH, height, list(boxes.values()))
    nodes = {}
    for index in used:
        name = viz.fit(names[index], letters, WIDTH / 3)
        width = letters.getlength(name) + 12
        left, top, right, bottom = boxes[index]
        rows = (top - 9, bottom + 9, top + 9, bottom - 9)
        columns = (left + width / 2, right - width / 2)
        spots = [(column, row) for row, column in product(rows, columns)]
        angle = -math.pi + 2 * math.pi * order.index(index) / len(order)
        x = WIDTH / 2 + 0.36 * WIDTH * math.cos(angle)
        y = graph_height / 2 + (graph_height / 2 - 20) * math.sin(angle)
        x = min(max(x, width / 2 + 1), WIDTH - width / 2 - 1)
        pill = (x - width / 2, y - _PILL / 2, x + width / 2, y + _PILL / 2)
        nodes[index] = {
            "index": index,
            "name": name,
            "category": record.objects[index].category,
            "box": boxes[index],
            "colour": viz.colour_of(index),
            "tag": room.place((width, 18), spots),
            "pill": pill,
        }
    return nodes, graph_height


def _edges(relations: Sequence[Relation], nodes: Nodes, height: float) -> list[Values]:
    letters = viz.font(_TEXT)
    room = viz.TextPlacer(WIDTH, height, taken=[node["pill"] for node in nodes.values()])
    between = Counter[tuple[int, int]]()
    edges = []
    for relation in relations:
        subject = nodes[relation.subject]
        object_ = nodes[relation.object]
        pair = (relation.subject, relation.object)
        graph_curve = _visible_curve((subject["pill"], object_["pill"]), 0.2 + 0.16 * between[pair])
        between[pair] += 1
        image_curve = [viz.middle(subject["box"])]
        image_head = ""
        graph_head = ""
        if relation.subject != relation.object and any(object_["box"]):
            image_curve = viz.curve(subject["box"], object_["box"], 24)
            image_head = polyline(viz.arrow_head(image_curve, 13))
            graph_head = polyline(viz.arrow_head(graph_curve, 11))
        text = viz.fit(relation.predicate, letters, WIDTH / 2)
        size = (letters.getlength(text) + 12, _TEXT + 4.0)
        edge: Values = {
            "subject": subject,
            "object": object_,
            "predicate": relation.predicate,
            "confidence": relation.confidence,
            "on_image": polyline(image_curve),
            "image_head": image_head,
            "in_graph": polyline(graph_curve),
            "graph_head": graph_head,
            "text_box": room.place(size, viz.along(graph_curve, size)),
            "text": text,
        }
        edges.append(edge)
    return edges


def _visible_curve(pills: tuple[viz.Rectangle, viz.Rectangle], bend: float) -> list[viz.Point]:
    """Return the curve between two pills of the graph, without what they cover.

    If little is left, they are close together: the whole curve.
    """
    curve = viz.curve(*pills, bend=bend)
    visible = [point for point in curve if not any(_covers(pill, point) for pill in pills)]
    return visible if len(visible) > 5 else curve


def _covers(pill: viz.Rectangle, point: viz.Point) -> bool:
    left, top, right, bottom = pill
    x, y = point
    return left - 2 <= x <= right + 2 and top - 2 <= y <= bottom + 2
