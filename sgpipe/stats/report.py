"""The audit as tables, on the terminal and in one self-contained HTML page, which also has plots
and a gallery.

Sample images of a run are cards of the gallery, with the scene graph of each, or the contact sheet,
one PNG.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, TypeAlias

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
from sgpipe.stats.ground_truth import GroundTruthMeasures
from sgpipe.stats.measures import STAGES, TOTALS, Measures
from sgpipe.stats.plans import JudgementMeasures
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import write_result, write_result_text
from sgpipe.storage.shards import embedded_images
from sgpipe.utils import __version__
from sgpipe.utils.console import count, isolated, single_line
from sgpipe.viz import Line, Plot, polyline, round_end

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
    """A table of both forms; heads that start with `>` are of numbers. `note`: a sentence below
    it.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(audit: Audit) -> dict[str, list[Table]]:
    """Return what both forms show, by section, without the health checks."""
    of = audit.measures.threshold_of
    return {
        "counts": [*_counted(audit.measures)],
        "comparison": [*_compared(audit.comparison)],
        "confidence": [*_against_truth(audit.ground_truth, of), *_judged(audit.judgements, of)],
    }


def print_audit(audit: Audit, console: Console) -> None:
    """Print the answers to the four questions of an audit, and then its tables."""
    for question, group in groupby(audit.findings, lambda finding: finding.question):
        console.print(question, style="bold")
        for finding in group:
            console.print(f"  {single_line(finding.text)}", soft_wrap=True)
    for table in chain(*tables(audit).values(), _failed_checks(audit.measures)):
        heads = [head.removeprefix(">") for head in table.heads]
        made = RichTable(title=Text(single_line(table.title)), show_header=any(heads))
        for head, name in zip(table.heads, heads, strict=True):
            made.add_column(Text(name), justify="right" if head.startswith(">") else "left")
        for row in table.rows:
            made.add_row(*(Text(single_line(cell)) for cell in row))
        console.print(made)
        if table.note:
            console.print(single_line(table.note), soft_wrap=True)


def overview(measures: Measures) -> list[tuple[str, str, str]]:
    """Return the main counts, in the order in which images become relations, and the yield of each
    stage.
    """
    rows = [
        (f"images ({split})", f"{count:,}", "") for split, count in sorted(measures.images.items())
    ]
    rows.append(("error rows", f"{sum(measures.errors.values()):,}", ""))
    for key, name in TOTALS.items():
        share = measures.yields.get(key)
        lost = measures.in_error_rows[key]
        if key == "described_objects":
            each = (
                share_text(measures.totals[key] / (measures.totals["objects"] or 1))
                + " of the boxes"
            )
        elif share is not None:
            before = STAGES[STAGES.index(key) - 1].removesuffix("s").replace("_", " ")
            each = f"{share:.2f} per {before}"
        else:
            each = f"{lost:,} in error rows" if lost else ""
        rows.append((name, f"{measures.totals[key]:,}", each))
    return [
        *rows,
        ("relations with a person as subject", f"{measures.person_subject_share:.1%}", ""),
    ]


def _long_tail(measures: Measures) -> str:
    tail = measures.tail
    if tail.kinds == 1:
        return "All relations have the same predicate."
    most = count(tail.half, "most frequent predicate accounts", "most frequent predicates account")
    head = f", the 10 most frequent for {share_text(tail.head_share)}" if tail.kinds > 10 else ""
    rarest = ", ".join(map(name_text, list(measures.predicates)[: -_RAREST - 1 : -1]))
    return (
        f"The {most} for half of the relations{head}; {tail.singletons:,} of"
        f" {count(tail.kinds, 'predicate')} {'occurs' if tail.singletons == 1 else 'occur'} once."
        f" Gini {tail.gini:.2f}, entropy {tail.entropy:.1f} bits (like"
        f" {count(round(2**tail.entropy), 'equally frequent predicate')}). Rarest: {rarest}."
    )


def _counted(measures: Measures) -> Iterator[Table]:
    yield Table(f"run {measures.run or '(unnamed)'}", ["", ">", ""], overview(measures))
    if measures.confidence.scored:
        rows = []
        for level in measures.thresholds:
            kept = (
                f"{number:,}" for number in (level.relations, level.predicate_kinds, level.images)
            )
            means = (
                f"{mean:.2f}" if level.relations else "–"
                for mean in (level.per_image, level.per_pair)
            )
            rows.append((f"{level.threshold:.2f}", *kept, *means))
        heads = [">relations", ">predicate kinds", ">images", ">per image", ">per pair"]
        yield Table("relations by threshold", [f"{measures.threshold_of} ≥", *heads], rows)
    errors = {
        f"{kind}, such as {measures.error_examples[kind]}": n for kind, n in measures.errors.items()
    }
    for what, many, unit, counts in (
        ("predicate", "predicates", "relations", measures.predicates),
        ("class", "classes", "boxes", measures.categories),
        ("attribute", "attributes", "boxes", measures.attributes),
        ("reason", "reasons", "images without relations", measures.without_relations),
        ("error", "errors", "images", errors),
    ):
        if counts:
            total = measures.totals["objects"] if what == "attribute" else sum(counts.values())
            rows = [
                (name, f"{number:,}", f"{number / total:.1%}")
                for name, number in islice(counts.items(), _TOP)
            ]
            title = f"most frequent of {count(len(counts), what, many)}"
            note = what == "predicate"
            yield Table(
                title, [what, f">{unit}", ">share"], rows, _long_tail(measures) if note else ""
            )
    if measures.triplets:
        rows = []
        for t in measures.triplets[:_TOP]:
            names = (t.subject or "(missing)", t.predicate, t.object or "(missing)")
            rows.append(
                (*names, f"{t.relations:,}", "–" if t.confidence is None else f"{t.confidence:.2f}")
            )
        heads = ["subject", "predicate", "object", ">relations", ">mean confidence"]
        yield Table(f"most frequent of {count(measures.triplet_kinds, 'triplet')}", heads, rows)


def _failed_checks(measures: Measures) -> Iterator[Table]:
    """For the terminal; the page shows all checks, with advice."""
    failed = [check for check in measures.health if check.count]
    if failed:
        rows = []
        for check in failed:
            example = (
                f"{check.examples[0].text} (image {check.examples[0].image_id})"
                if check.examples
                else ""
            )
            rows.append(
                (check.title, f"{check.count:,}", f"{check.share:.1%} of {check.of}", example)
            )
        title = f"health: {len(failed)} of {len(measures.health)} checks found problems"
        yield Table(title, ["problem", ">count", ">share", "example"], rows)


def _compared(comparison: Comparison | None) -> Iterator[Table]:
    if comparison is None:
        return
    heads = [f">{comparison.other}", ">this run"]
    rows = []
    for name, (before, after) in comparison.counts.items():
        change = f"{after - before:+,}" if after != before else "–"
        relative = f" ({(after - before) / before:+.0%})" if before and after != before else ""
        rows.append((name, f"{before:,}", f"{after:,}", change + relative))
    yield Table("what changed", ["", *heads, ">change"], rows)
    only = f"{comparison.gained:,} only in this run, {comparison.lost:,} only in the other"
    titles = {
        "predicate": f"predicates whose share changed most; {only}",
        "check": "health of both runs",
    }
    for what, changes in (("predicate", comparison.predicates), ("check", comparison.health)):
        shares = [
            (name, f"{before:.1%}", f"{after:.1%}") for name, (before, after) in changes.items()
        ]
        if shares or what == "predicate":
            yield Table(titles[what], [what, *heads], shares)


def _against_truth(truth: GroundTruthMeasures | None, of: str) -> Iterator[Table]:
    if truth is None:
        return
    choices = [("all", truth.relations, truth.precision, truth.suggested)]
    choices += [
        (row.predicate, row.relations, row.at_threshold, row.suggested)
        for row in truth.predicates[:_TOP]
    ]
    rows = []
    for predicate, relations, precision, suggested in choices:
        choice = (
            ("not shown", "0") if suggested is None else (suggested.text, f"{suggested.kept:,}")
        )
        rows.append((predicate, f"{relations:,}", str(precision), *choice))
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
    bins = [
        (f"{b.start:.1f} to {b.stop:.1f}", f"{b.confidence:.2f}", str(b.precision))
        for b in truth.reliability
    ]
    yield Table(title, [of, ">mean", _PRECISION], bins)


def _judged(judged: JudgementMeasures | None, of: str) -> Iterator[Table]:
    if judged is None:
        return
    recall = judged.recall
    if recall is not None and recall.recall.value is not None:
        found = {"all": recall.recall, "pairs of boxes, any predicate": recall.pairs}
        named = [
            (name, str(each))
            for name, each in (*found.items(), *islice(recall.predicates.items(), _TOP))
        ]
        yield Table(
            "recall of what people name", ["relations", ">recall (95% interval, named)"], named
        )
    if judged.precision.judged:
        first = "predicate" if judged.strata == "predicates" else "confidence"
        rows = [(row.name, f"{row.relations:,}", str(row.precision)) for row in judged.bands]
        title = f"people judged {count(judged.precision.judged, 'relation')}"
        yield Table(title, [first, ">relations", _PRECISION], rows)
        if first == "confidence":
            own = [
                (name, str(precision))
                for name, precision in islice(judged.predicates.items(), _TOP)
            ]
            title = "precision by predicate, weighted by its relations in each band"
            yield Table(title, ["predicate", _PRECISION], own)
        title = f"precision by threshold, weighted by the relations of {judged.strata}"
        rows = [
            (f"{each.threshold:.2f}", f"{each.relations or 0:,}", str(each.precision))
            for each in judged.curve
        ]
        yield Table(title, [f"{of} ≥", ">relations", _PRECISION], rows)


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


def render(page: str, values: dict[str, Any]) -> str:
    """Render templates/`page`.html.jinja with its script."""
    loader = jinja2.PackageLoader("sgpipe.stats", "templates")
    environment = templates(loader)
    environment.globals["svg"] = lambda plot: Markup(plot.inline())  # escapes its own texts
    style, script = (
        loader.get_source(environment, name)[0] for name in ("style.css", f"{page}.js")
    )
    # The browser runs only this script, whatever a caption contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": Markup(digest),
        "version": __version__,
    }
    return environment.get_template(f"{page}.html.jinja").render(values | own)


def write_report(
    file: Path, audit: Audit, samples: Samples, threshold: float = TRAINING_CONFIDENCE
) -> tuple[int, int]:
    """Write the page; `threshold`: of its gallery's filter. Returns how many images it has and
    lacks.
    """
    cards = [
        make_card(record, image, viz.shown(record.relations, 0.0, _CARD_RELATIONS))
        for record, image in samples
    ]
    edges = [edge for card in cards for edge in card["edges"]]
    categories = ({edge["subject"]["category"], edge["object"]["category"]} for edge in edges)
    plots = {"counts": [*_plots_of_counts(audit.measures)], "confidence": [*_plots(audit)]}
    sections = [(name, found, plots.get(name, [])) for name, found in tables(audit).items()]
    values = {
        "title": audit.measures.run or file.stem,
        "measures": audit.measures,
        "findings": [
            (question, list(group))
            for question, group in groupby(audit.findings, lambda f: f.question)
        ],
        "sections": [section for section in sections if any(section[1:])],
        "cards": cards,
        "shown_predicates": Counter(edge["predicate"] for edge in edges).most_common(),
        "shown_categories": Counter(name for pair in categories for name in pair).most_common(),
        "threshold": threshold,
    }
    write_result_text(file, render("report", values))
    return len(cards), sum(card["image"] is None for card in cards)


def _plots_of_counts(measures: Measures) -> Iterator[Plot]:
    total = measures.totals["relations"]
    if measures.confidence.scored:
        points = [
            (0.0, total),
            *((level.threshold, level.relations) for level in measures.thresholds),
        ]
        texts = [f"≥ {least:.2f}: {kept:,}" for least, kept in points]
        of = measures.threshold_of
        lines = [Line(points, texts)]
        yield Plot(
            "What a threshold keeps", f"minimum {of}", "relations", lines, y_end=round_end(total)
        )
    counts = list(measures.predicates.values())
    if counts:
        ranks = sorted({round(len(counts) ** (step / 40)) for step in range(41)})
        shares = [sum(counts[:rank]) / total for rank in ranks]
        texts = [
            f"the {rank:,} most frequent: {share_text(share)}"
            for rank, share in zip(ranks, shares, strict=True)
        ]
        lines = [Line([*zip(ranks, shares, strict=True)], texts)]
        end = round_end(max(len(counts), 5))
        yield Plot(
            "The long tail", "most frequent predicates", "share of the relations", lines, x_end=end
        )


def _plots(audit: Audit) -> Iterator[Plot]:
    of = audit.measures.threshold_of
    if audit.measures.confidence.scored:
        histogram = audit.measures.confidence.histogram
        bins = {f"{at / len(histogram):.2f}": count for at, count in enumerate(histogram)}
        top = round_end(max(histogram))
        yield Plot(
            "Distribution of confidences", "confidence from", "relations", (), bins, 2, y_end=top
        )
    if audit.ground_truth is not None:
        parts = audit.ground_truth.reliability
        points = [(part.confidence, part.precision.value or 0.0) for part in parts]
        texts = [f"{part.start:.1f} to {part.stop:.1f}: {part.precision}" for part in parts]
        guide = Line([(0, 0), (1, 1)], kind="guide")
        yield Plot("Calibration", f"mean {of}", "precision", [guide, Line(points, texts)])
    if audit.judgements is not None and audit.judgements.precision.judged:
        known = [choice for choice in audit.judgements.curve if choice.kept]
        points = [(choice.threshold, choice.precision.value or 0.0) for choice in known]
        texts = [f"≥ {choice.threshold:.2f}: {choice.precision}" for choice in known]
        yield Plot("Precision by threshold", f"minimum {of}", "precision", [Line(points, texts)])


def open_samples(
    database: Database,
    number: int,
    threshold: float,
    images: ImagePlace | None = None,
    calibration: Calibration | None = None,
) -> Iterator[tuple[Record, Image.Image | None]]:
    """Yield `number` records, evenly spaced among those with a relation of at least `threshold`,
    and their images.

    If there are too few of these, others are added, but no error rows. An image that cannot be
    opened is None.
    """
    [(rows,)] = database.rows("select count(*) from images")
    number = min(number, max(rows, 1))
    numbers = sorted(image for (image,) in database.rows(_SPREAD, [threshold, number, number]))
    for table in database.read_rows(numbers):
        [record], [embedded] = from_table(table), embedded_images(table)
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
    """Draw samples into one PNG; return their number, and how many are missing. Raises UserError:
    there are none.
    """
    cards = []
    lost = 0
    for record, opened in samples:
        lost += opened is None
        cards.append(
            viz.draw_card(
                opened, record, viz.shown(record.relations, threshold, _SHEET_RELATIONS), _CARD
            )
        )
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
    """Return an image with those of the relations whose objects exist, as templates and scripts
    take it.

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
        **{
            "image_id": record.image_id,
            "split": record.split,
            "file_name": record.file_name,
            "image": uri,
        },
        **{"height": height, "graph_height": graph_height, "nodes": list(nodes.values())},
        "edges": _edges(relations, nodes, graph_height),
        "relations": len(record.relations),
        "captions": [caption.text for caption in record.captions[:_CAPTIONS]],
    }


def _nodes(
    record: Record, relations: Sequence[Relation], scale: float, height: float
) -> tuple[Nodes, float]:
    """Return the objects of the relations by index, on an ellipse in the order of their angles, and
    its height.
    """
    used = viz.drawn_objects(record, relations)
    if not relations:
        used = [index for index in used if not record.objects[index].is_nothing]
    boxes = {
        index: viz.corners(record.objects[index].bbox, scale, (WIDTH, height)) for index in used
    }
    middles = {index: viz.middle(box) for index, box in boxes.items()}
    centre = [
        sum(point[axis] for point in middles.values()) / max(len(middles), 1) for axis in (0, 1)
    ]
    order = sorted(
        middles, key=lambda i: math.atan2(middles[i][1] - centre[1], middles[i][0] - centre[0])
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
        spots = [
            (x, y)
            for y in (top - 9, bottom + 9, top + 9, bottom - 9)
            for x in (left + width / 2, right - width / 2)
        ]
        angle = -math.pi + 2 * math.pi * order.index(index) / len(order)
        x = WIDTH / 2 + 0.36 * WIDTH * math.cos(angle)
        y = graph_height / 2 + (graph_height / 2 - 20) * math.sin(angle)
        x = min(max(x, width / 2 + 1), WIDTH - width / 2 - 1)
        pill = (x - width / 2, y - _PILL / 2, x + width / 2, y + _PILL / 2)
        node: Values = {
            "index": index,
            "name": name,
            "category": record.objects[index].category,
            "box": boxes[index],
        }
        nodes[index] = node | {
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
        pills = (subject["pill"], object_["pill"])
        linked = viz.curve(*pills, bend=0.2 + 0.16 * between[pair])
        between[pair] += 1
        seen = [
            p
            for p in linked
            if not any(a - 2 <= p[0] <= c + 2 and b - 2 <= p[1] <= d + 2 for a, b, c, d in pills)
        ]
        linked = seen if len(seen) > 5 else linked
        text = viz.fit(relation.predicate, letters, WIDTH / 2)
        size = (letters.getlength(text) + 12, _TEXT + 4.0)
        same = relation.subject == relation.object or not any(object_["box"])
        over = (
            [viz.middle(subject["box"])] if same else viz.curve(subject["box"], object_["box"], 24)
        )
        heads = [
            "" if same else polyline(viz.arrow_head(points, size))
            for points, size in ((over, 13), (linked, 11))
        ]
        edge: Values = {"subject": subject, "object": object_, "predicate": relation.predicate}
        edge |= {
            "confidence": relation.confidence,
            "on_image": polyline(over),
            "image_head": heads[0],
        }
        edge |= {"in_graph": polyline(linked), "graph_head": heads[1]}
        edges.append(edge | {"text_box": room.place(size, viz.along(linked, size)), "text": text})
    return edges
