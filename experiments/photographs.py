"""Figures on photographs: `python -m experiments.photographs [FOLDER]` writes
benchmarks/results/photographs.md.

Human captions and boxes are labelled by the stages of `sgpipe generate` with `tag.method` all,
overlap or layout, which look at no pixels, and compared with annotated human interactions. The
boxes are those of the annotations, so nothing has to be matched: a pair is found if the same two
boxes are labelled.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from experiments.command import run_command
from experiments.layout_evidence import FOLDS, fit_evidence, fold_numbers, write_evidence
from experiments.miniworld.cards import markdown_table
from experiments.photograph_labels import Candidates, Method, confident, label, pair_images
from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.evaluation.result import Difference, Resampling, compare_paired
from sgpipe.files.json_stream import JsonStream
from sgpipe.recipe import PACKAGED_LAYOUT, PairConfig, ParseConfig
from sgpipe.records import Record
from sgpipe.sources import fields
from sgpipe.sources.annotated import clip_objects
from sgpipe.sources.coco import coco_source, load_coco_instances
from sgpipe.sources.fields import FieldError
from sgpipe.sources.vocabulary import loose_words, packaged_synonyms
from sgpipe.stages.matching import HeadMatcher, split_words
from sgpipe.stages.pair import implied_triplets
from sgpipe.stages.parse.stage import ParseStage
from sgpipe.stages.tag.layout.equivalents import EQUIVALENTS, says
from sgpipe.stages.tag.layout.evidence import CaptionEvidence
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.utils.atomic import write_text
from sgpipe.utils.lemmas import predicate_lemma

TIMED = "\n## Seconds of `sgpipe label`\n"  # measured otherwise: what stands there stays
PAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "photographs.md"

Parser = Literal["rules", "learned"]
PARSERS: tuple[Parser, ...] = ("rules", "learned")
WAYS: tuple[tuple[Candidates, Method], ...] = (
    *(("captions", "all"), ("captions", "overlap")),
    *(("image", "all"), ("image", "overlap")),
    *(("captions", "layout"), ("image", "layout"), ("captions+layout", "layout")),
)
LAYOUT_CANDIDATES: tuple[Candidates, ...] = ("captions", "image", "captions+layout", "layout")
CONFIDENCE = 0.5  # of the layout model's relations that the tables count
CONFIDENCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# Columns of counts `[images, columns]`, and the measures that are a ratio of two of them.
(
    FOUND,
    ANNOTATED,
    LABELLED,
    IN_SCOPE,
    VERBS_FOUND,
    VERBS,
    BETWEEN_FOUND,
    BETWEEN,
    STATED_FOUND,
    STATED,
) = range(10)
MEASURES = {
    "pairs found": (FOUND, ANNOTATED),
    "precision": (FOUND, LABELLED),
    "precision in scope": (FOUND, IN_SCOPE),
    "verbs found": (VERBS_FOUND, VERBS),
    "stated verbs annotated": (STATED_FOUND, STATED),
}

REASONS = ("class not named", "in no triplet", "never in one triplet")
Key = tuple[Parser, Candidates, Method, int]

LAYOUT_HEAD = """\
`tag.method=layout` opens no image: a model of boxes (benchmarks/results/layout.md), trained on other photographs of
V-COCO, and what the captions state. How captions count is fitted on these photographs; each is labelled with what was
fitted without its fold of {folds}. The tables above count relations of confidence {confidence} or more.
`captions+layout` adds the model's own pairs and actions to those of the captions, `layout` has no captions at all.
"""

HEAD = """\
# First figures on photographs

`python -m experiments.photographs FOLDER`: {images} COCO photographs with up to {captions} human captions each. V-COCO
annotates what people do: {pairs} ordered pairs of boxes, {verbs} verbs on them. Boxes are the annotated ones, and no
pixel is looked at: these are figures of parsing and pairing, not of a captioner, detector or tagger.

* **Pairs found**: share of the annotated pairs that are labelled. **Verbs found**: share of the annotated verbs that
  one of the pair's predicates states, by the table below.
* **Precision**: share of the labelled pairs that are annotated; *in scope*: of those whose subject's class has
  annotations ({subjects}). Both are lower bounds for pairs, not for relations: V-COCO has 24 actions, and a pair that
  it lacks may be right; but no predicate is looked at, so the relations of a pair that counts may be wrong.
* **Stated verbs annotated**: share of the predicates of pairs in scope that say one of these actions whose action is
  annotated of the pair: a lower bound, too.
* In brackets: 95% intervals from half samples of the images. Fewer captions are the first of each image.
* With `pair.candidates=captions` a pair needs a caption that relates its two classes; with `image` any pair of the
  image's boxes is a candidate.
"""


@dataclass(frozen=True)
class Photographs:
    """Images with boxes, captions and annotated relations; classes: those that a box can have."""

    records: list[Record]
    classes: tuple[str, ...]

    @property
    def captions(self) -> int:
        """The most captions of an image."""
        return max(len(record.captions) for record in self.records)

    @property
    def subjects(self) -> set[str]:
        """The classes of annotated subjects: in V-COCO persons."""
        return {
            record.objects[one.subject].category
            for record in self.records
            for one in record.relations
        }


def read_photographs(instances: Path, captions: Path, truth: Path) -> Photographs:
    """Read COCO instances and captions, and relations between annotations of the instances file.

    Args:
        truth: `[{"image_id", "subject_id", "predicate", "object_id"}]`, ids of images and
            annotations. Images without any are left out: nobody may have annotated them.

    Raises UserError: a file is missing or of another format, or they do not belong together.
    """
    annotated = load_coco_instances(instances)
    numbers = dict[str, int]()
    for _, row in JsonStream(truth):
        try:
            number = numbers.setdefault(fields.text(row, "predicate"), len(numbers))
            annotated.add_relation(row | {"predicate_id": number})
        except FieldError as error:
            raise UserError(
                f"{truth}: {error}; expected rows of image_id, subject_id, predicate, object_id"
            ) from None
    if not annotated.relations:
        raise UserError(f"{truth} has no relations")
    unknown = annotated.relations.keys() - annotated.position.keys()
    if unknown:
        raise UserError(
            f"{truth}: image {min(unknown)} is not in {instances}: give the instances of the same"
            " images"
        )
    names = {number: name for name, number in numbers.items()}
    records = []
    for image, record in zip(
        annotated.position, coco_source(instances, "all", captions).read(Counter()), strict=True
    ):
        if image not in annotated.relations:
            continue
        if not record.ok:
            raise UserError(f"{instances}: image {image}: {record.error}")
        try:
            record.relations = annotated.related(image, annotated.boxes_of(image), names)
        except FieldError as error:
            raise UserError(f"{truth}: image {image}: {error}") from None
        clip_objects(record, Counter())
        records.append(record)
    if not any(record.captions for record in records):
        raise UserError(f"{captions} has no captions of the images in {instances}")
    return Photographs(records, tuple(annotated.categories.values()))


def parse_captions(photographs: Photographs, parser: Parser) -> list[Record]:
    """Return the images with the triplets of all their captions."""
    stage = ParseStage(ParseConfig(parser=parser))
    stage.setup()
    return stage([replace(record) for record in photographs.records])


def _verbs(record: Record) -> dict[tuple[int, int], set[str]]:
    """The lemmas of the predicates of each related pair."""
    verbs: dict[tuple[int, int], set[str]] = {}
    for relation in record.relations:
        verbs.setdefault((relation.subject, relation.object), set()).add(
            predicate_lemma(relation.predicate)
        )
    return verbs


def says_any(lemmas: set[str], verbs: Iterable[str]) -> bool:
    """Return whether one of the lemmas says one of the verbs."""
    return any(says(lemmas, verb) for verb in verbs)


def count_found(photographs: Photographs, labelled: Sequence[Record]) -> Array:
    """Compare labels with the annotations: `[images, 10]`, see `MEASURES`; `BETWEEN`: pairs between
    subjects.

    Stated verbs are those of pairs in scope that say one that V-COCO annotates.
    """
    subjects = photographs.subjects
    counts = []
    for truth, record in zip(photographs.records, labelled, strict=True):
        annotated = _verbs(truth)
        stated = _verbs(record)
        ends = {
            pair: [truth.objects[index].category in subjects for index in pair] for pair in stated
        }
        between = {pair for pair, end in ends.items() if all(end)}
        verbs = [
            (pair, verb) for pair, verbs_of_pair in annotated.items() for verb in verbs_of_pair
        ]
        in_scope = [pair for pair, end in ends.items() if end[0]]
        sayings = [
            (pair, lemma)
            for pair in in_scope
            for lemma in stated[pair]
            if says_any({lemma}, EQUIVALENTS)
        ]
        counts.append(
            (
                len(annotated.keys() & stated.keys()),
                len(annotated),
                len(stated),
                sum(end[0] for end in ends.values()),
                sum(says(stated.get(pair, set()), verb) for pair, verb in verbs),
                len(verbs),
                len(annotated.keys() & between),
                len(between),
                sum(says_any({lemma}, annotated.get(pair, ())) for pair, lemma in sayings),
                len(sayings),
            )
        )
    return np.array(counts)


def compare(photographs: Photographs, first: Array, second: Array) -> Mapping[str, Difference]:
    """The measures of two counts with 95% intervals, and of their difference, by half samples of
    the images.
    """
    names = [record.image_id for record in photographs.records]

    def resampling(counts: Array) -> Resampling:
        def summary(occurrences: Array) -> dict[str, float]:
            sums = (occurrences @ counts).tolist()
            return {
                name: sums[part] / (sums[total] or np.nan)
                for name, (part, total) in MEASURES.items()
            }

        return Resampling(names, summary)

    return compare_paired(resampling(first), resampling(second)).measures


@dataclass(frozen=True)
class Bound:
    """How many annotated pairs captions can lead to.

    named, together: of pairs, those whose two classes captions name, and name in one caption.
    missed: the others that were not found, by `REASONS`. apart: of those never in one triplet,
    those that no caption names together.
    unnamed: pairs by the class that no caption names.
    """

    named: int
    together: int
    missed: Counter[str]
    apart: int
    unnamed: Counter[str]


def bound_by_captions(photographs: Photographs, labelled: Sequence[Record], captions: int) -> Bound:
    """Why annotated pairs are not among the labels.

    A word of a caption names the classes that it would in a phrase; what a caption implies, it
    names, too.
    """
    matcher = HeadMatcher(packaged_synonyms("coco"), photographs.classes, loose_words())
    named = together = apart = 0
    missed = Counter[str]()
    unnamed = Counter[str]()
    for truth, record in zip(photographs.records, labelled, strict=True):
        texts = [caption.text for caption in record.captions[:captions]]
        classes = [
            {name for word in split_words(text) for name in matcher.classes(text, word)}
            for text in texts
        ]
        implied = implied_triplets(record)
        for one in implied:
            classes[one.caption].add(one.object)
        anywhere = set().union(*classes)
        in_triplets = {
            each
            for one in (*record.triplets, *implied)
            for each in (one.subject_category, one.object_category)
        }
        stated_pairs = _verbs(record).keys()
        for pair in _verbs(truth):
            ends = {truth.objects[index].category for index in pair}
            beside = any(ends <= class_name for class_name in classes)
            named += ends <= anywhere
            together += beside
            if pair in stated_pairs:
                continue
            reason = REASONS[0 if not ends <= anywhere else 1 if not ends <= in_triplets else 2]
            missed[reason] += 1
            unnamed.update(ends - anywhere)
            apart += reason == REASONS[2] and not beside
    return Bound(named, together, missed, apart, unnamed)


@dataclass(frozen=True)
class Measured:
    """Counts and labels of every combination, and the bounds of `all` with `captions` by parser and
    captions.

    parsed: the images with the triplets of the rules.
    evidence: how captions count beside the layout model, fitted on all images; `labelled` without
    those of a fold.
    by_layout: all images labelled by the layout model with all captions, whatever the confidence,
    by candidates.
    """

    parsed: list[Record]
    evidence: CaptionEvidence
    by_layout: Mapping[Candidates, list[Record]]
    counts: Mapping[Key, Array]
    labelled: Mapping[Key, list[Record]]
    bounds: Mapping[tuple[Parser, int], Bound]

    def total(self, column: int, *key: Any) -> int:
        return int(self.counts[key][:, column].sum())


def measure(photographs: Photographs) -> Measured:
    """Label the images in every way. Raises UserError: a parser cannot be loaded."""
    labelled: dict[Key, list[Record]] = {}
    numbers = range(1, photographs.captions + 1)
    parsed = {parser: parse_captions(photographs, parser) for parser in PARSERS}
    evidence = fit_on(photographs, parsed["rules"])
    by_image = [evidence[fold] for fold in fold_numbers(len(photographs.records))]
    for parser, (candidates, method), number in product(PARSERS, WAYS, numbers):
        records = label(
            parsed[parser], photographs.classes, number, candidates, method, evidence=by_image
        )
        labelled[parser, candidates, method, number] = confident(records, CONFIDENCE)
    by_layout = {
        candidates: label(
            parsed["rules"],
            photographs.classes,
            photographs.captions,
            candidates,
            "layout",
            evidence=by_image,
        )
        for candidates in LAYOUT_CANDIDATES
    }
    counts = {key: count_found(photographs, records) for key, records in labelled.items()}
    bounds = {
        (parser, number): bound_by_captions(
            photographs, labelled[parser, "captions", "all", number], number
        )
        for parser, number in product(PARSERS, numbers)
    }
    return Measured(parsed["rules"], evidence[FOLDS], by_layout, counts, labelled, bounds)


def fit_on(photographs: Photographs, parsed: Sequence[Record]) -> list[CaptionEvidence]:
    """Fit how captions count, with one to all captions of an image: without each fold's images,
    then on all.
    """
    config = PairConfig(candidates="image")
    numbers = range(1, photographs.captions + 1)
    paired = [pair_images(parsed, photographs.classes, number, config) for number in numbers]
    return fit_evidence(LayoutModel.load(PACKAGED_LAYOUT), photographs.records, paired)


def page(photographs: Photographs, measured: Measured) -> str:
    """The page as Markdown."""
    captions = photographs.captions
    first: Key = ("rules", "captions", "all", captions)
    parts = [
        HEAD.format(
            images=len(photographs.records),
            captions=captions,
            pairs=measured.total(ANNOTATED, *first),
            verbs=measured.total(VERBS, *first),
            subjects=", ".join(sorted(photographs.subjects)),
        )
    ]
    parts += _quality(photographs, measured, captions)
    parts += _by_confidence(photographs, measured)
    parts += _loose(photographs, measured, captions)
    parts += _bound(photographs, measured, captions)
    parts += ["## Which words count as a verb", _verb_table(photographs, measured, captions)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _quality(photographs: Photographs, measured: Measured, caption_limit: int) -> list[str]:
    """The tables by parser, candidates, method and number of captions."""
    head = ["candidates", "method", "captions", "parser", *MEASURES]
    rows = [head]
    fewer = [head]
    differences = [["candidates", "method", *MEASURES]]
    for (candidates, method), number in product(WAYS, range(1, caption_limit + 1)):
        sides = [
            measured.counts[parser, candidates, method, number] for parser in reversed(PARSERS)
        ]
        measures = compare(photographs, *sides)
        for parser in PARSERS:
            learned = parser == "learned"
            cells = [
                _cell(
                    *(
                        (measure.value, measure.interval)
                        if learned
                        else (measure.other, measure.other_interval)
                    )
                )
                for measure in measures.values()
            ]
            (rows if number == caption_limit else fewer).append(
                [candidates, method, str(number), parser, *cells]
            )
        if number == caption_limit:
            cells = [
                _cell(measure.difference, measure.difference_interval, "+")
                for measure in measures.values()
            ]
            differences.append([candidates, method, *cells])
    return [
        "## All captions",
        markdown_table(rows),
        _by_object(photographs, measured, caption_limit),
        "The learned parser minus the rules, in points:",
        markdown_table(differences),
        "## Fewer captions",
        markdown_table(fewer),
    ]


def _by_confidence(photographs: Photographs, measured: Measured) -> list[str]:
    """The figures of the layout model by the confidence that relations need, and whether it is a
    probability.
    """
    rows = [["candidates", "confidence", *MEASURES]]
    for candidates, labelled in measured.by_layout.items():
        for confidence in CONFIDENCES:
            counts = count_found(photographs, confident(labelled, confidence))
            cells = [
                _cell(measure.value, measure.interval)
                for measure in compare(photographs, counts, counts).values()
            ]
            rows.append([candidates, f"{confidence:g}", *cells])
    return [
        "## The layout model",
        LAYOUT_HEAD.format(confidence=f"{CONFIDENCE:g}", folds=FOLDS),
        markdown_table(rows),
        (
            "Whether confidences are probabilities: relations in scope that say an annotated verb,"
            " by their confidence (candidates `image`). V-COCO's annotations are not complete, so"
            " their share is a lower bound."
        ),
        markdown_table(_calibration(photographs, measured.by_layout["image"])),
        (
            f"How captions count, fitted on all images: pairs {measured.evidence.pair}, predicates"
            f" {measured.evidence.predicate}; sgpipe/stages/tag/layout/evidence.py says what the"
            " numbers are."
        ),
    ]


def _calibration(photographs: Photographs, labelled: Sequence[Record]) -> list[list[str]]:
    """The mean confidence of relations that say an annotated verb, and the share that is annotated,
    by tenth.
    """
    values: dict[int, list[tuple[float, bool]]] = {}
    for truth, record in zip(photographs.records, labelled, strict=True):
        annotated = _verbs(truth)
        for one in record.relations:
            lemma = {predicate_lemma(one.predicate)}
            if record.objects[one.subject].category in photographs.subjects and says_any(
                lemma, EQUIVALENTS
            ):
                holds = says_any(lemma, annotated.get((one.subject, one.object), ()))
                tenth = min(int(10 * (one.confidence or 0)), 9)
                values.setdefault(tenth, []).append((one.confidence or 0, holds))
    rows = [["confidence", "relations", "mean confidence", "annotated"]]
    for tenth in sorted(values):
        confidences, holding = zip(*values[tenth], strict=True)
        mean, share = np.mean(confidences), np.mean(holding)
        rows.append(
            [
                f"{tenth / 10:g} to {tenth / 10 + 0.1:g}",
                str(len(holding)),
                f"{mean:.1%}",
                f"{share:.1%}",
            ]
        )
    return rows


def layout_figures(photographs: Photographs, measured: Measured) -> dict[str, Any]:
    """The figures of the method layout with all captions, as the packaged model's card has them."""
    shares: dict[str, Any] = {"confidence": CONFIDENCE}
    for candidates, labelled in measured.by_layout.items():
        sums = count_found(photographs, confident(labelled, CONFIDENCE)).sum(0).tolist()
        shares[candidates] = {
            name: round(sums[part] / (sums[total] or 1), 3)
            for name, (part, total) in MEASURES.items()
        }
    return shares


def halves(photographs: Photographs) -> dict[str, list[bool]]:
    """Which images belong to each random half; words and rules were written on half 1 of the 262
    default images.
    """
    names = sorted(record.image_id for record in photographs.records)
    random.Random(32).shuffle(names)
    first = set(names[: len(names) // 2])
    first_half = [record.image_id in first for record in photographs.records]
    return {
        "half 1": first_half,
        "half 2": [not is_first for is_first in first_half],
        "both": [True] * len(first_half),
    }


def _loose(photographs: Photographs, measured: Measured, caption_limit: int) -> list[str]:
    """What loose words and implied things add, with one and all captions, by half of the images."""
    rows = [["images", "method", "captions", "`pair.loose`", *MEASURES]]
    methods: tuple[Method, ...] = ("all", "overlap")
    for number, method in product((1, caption_limit), methods):
        strict = label(
            measured.parsed, photographs.classes, number, "captions", method, loose=False
        )
        sides = [
            measured.counts["rules", "captions", method, number],
            count_found(photographs, strict),
        ]
        for name, half in halves(photographs).items():
            part = replace(photographs, records=list(compress(photographs.records, half)))
            measures = compare(part, *(side[half] for side in sides)).values()
            for loose in ("false", "true"):
                cells = [
                    _cell(
                        *(
                            (one.value, one.interval)
                            if loose == "true"
                            else (one.other, one.other_interval)
                        )
                    )
                    for one in measures
                ]
                rows.append([name, f"`{method}`", str(number), loose, *cells])
    return [
        "## Words that imply a class",
        (
            "With `pair.loose` (on by default) words that may stand for a class match it if the"
            " image has a box of it (beer: a bottle), and captions relate persons to what they"
            " imply (a skier: skis). The words were written on half 1 of the 262 default images; of"
            " any others both halves are new. With the rules, candidates `captions`:"
        ),
        markdown_table(rows),
    ]


def _by_object(photographs: Photographs, measured: Measured, caption_limit: int) -> str:
    """Precision in scope by the object, which is of a subject's class or not."""
    texts = []
    for method in ("all", "overlap"):
        found_pairs, in_scope, between_found, between = (
            measured.total(column, "rules", "captions", method, caption_limit)
            for column in (FOUND, IN_SCOPE, BETWEEN_FOUND, BETWEEN)
        )
        texts.append(
            f"`{method}`: {between_found} of {between}, and {found_pairs - between_found} of the other"
            f" {in_scope - between}"
        )
    names = " or ".join(sorted(photographs.subjects))
    return (
        f"Labelled pairs in scope whose object is a {names}, too, that are annotated (rules):"
        f" {'; '.join(texts)}."
    )


def _cell(value: float, interval: tuple[float, float], sign: str = "") -> str:
    low, high = (100 * end for end in interval)
    shown = f"{100 * value:{sign}.1f}" + ("" if sign else "%")
    return shown if np.isnan(low) else f"{shown} ({low:{sign}.1f} to {high:{sign}.1f})"


def _bound(photographs: Photographs, measured: Measured, caption_limit: int) -> list[str]:
    """What captions bound, why pairs are missed, and what other candidates and more captions
    add.
    """
    annotated = measured.total(ANNOTATED, "rules", "captions", "all", caption_limit)

    def share(number: int) -> str:
        return f"{number} ({number / annotated:.1%})"

    columns = [
        "captions",
        "both classes named",
        "in one caption",
        *(f"found, {parser}" for parser in PARSERS),
    ]
    rows = [[*columns, "any pair, rules", "any overlapping pair, rules"]]
    for number in range(1, caption_limit + 1):
        bound = measured.bounds["rules", number]
        found_counts = [
            measured.total(FOUND, parser, "captions", "all", number) for parser in PARSERS
        ]
        found_counts += [
            measured.total(FOUND, "rules", "image", method, number) for method in ("all", "overlap")
        ]
        rows.append([str(number), *map(share, (bound.named, bound.together, *found_counts))])
    why = [["parser", "found", "missed", *REASONS, "of these in no common caption"]]
    for parser in PARSERS:
        bound = measured.bounds[parser, caption_limit]
        numbers = [
            measured.total(FOUND, parser, "captions", "all", caption_limit),
            bound.missed.total(),
        ]
        why.append(
            [
                parser,
                *map(str, (*numbers, *(bound.missed[reason] for reason in REASONS), bound.apart)),
            ]
        )
    unnamed = measured.bounds["rules", caption_limit].unnamed
    listed = ", ".join(f"{name} ({number})" for name, number in unnamed.most_common(12))
    image, captions = (
        [measured.total(column, "rules", way, "all", caption_limit) for column in (FOUND, LABELLED)]
        for way in ("image", "captions")
    )
    more = [now - before for now, before in zip(image, captions, strict=True)]
    return [
        "## What captions bound",
        (
            "Annotated pairs, with `tag.method=all` but for the last column. If captions do not"
            " name both classes, no parser finds the pair."
        ),
        markdown_table(rows),
        (
            f"Any pair, instead of those that captions relate, adds {more[0]} annotated pairs among"
            f" {more[1]} labelled ones, each with every predicate of the image: a tagger, or a"
            " model asked about each pair, must choose."
        ),
        (
            f"Why pairs are missed, with candidates `captions` and {caption_limit} captions: no caption"
            " names one of the classes; captions name both, but no triplet has one of them; or"
            " triplets have both, but none relates them in this order."
        ),
        markdown_table(why),
        f"Classes not named: {listed or 'none'}.",
    ]


def _verb_table(photographs: Photographs, measured: Measured, caption_limit: int) -> str:
    """The annotated verbs with their equivalents, and what found pairs state instead."""
    annotated = Counter[str]()
    itself = Counter[str]()
    found_verbs = Counter[str]()
    instead: dict[str, Counter[str]] = {}
    for truth, record in zip(
        photographs.records,
        measured.labelled["rules", "captions", "all", caption_limit],
        strict=True,
    ):
        stated = _verbs(record)
        for pair, verbs in _verbs(truth).items():
            stated_verbs = stated.get(pair, set())
            for verb in verbs:
                annotated[verb] += 1
                itself[verb] += verb in stated_verbs
                found_verbs[verb] += says(stated_verbs, verb)
                instead.setdefault(verb, Counter()).update(
                    set() if says(stated_verbs, verb) else stated_verbs
                )
    rows = [["annotated", "counts as it", "number", "itself", "found", "pairs without it state"]]
    for verb, number in sorted(annotated.items(), key=lambda item: (-item[1], item[0])):
        replacements = sorted(instead[verb].items(), key=lambda item: (-item[1], item[0]))[:4]
        texts = ", ".join(f"{text} ({times})" for text, times in replacements)
        counts = map(str, (number, itself[verb], found_verbs[verb]))
        rows.append([verb, ", ".join(EQUIVALENTS.get(verb, ())), *counts, texts])
    rows.append(
        ["all", "", *(str(counter.total()) for counter in (annotated, itself, found_verbs)), ""]
    )
    return (
        "Lemmas, by the rules with candidates `captions` and method `all`. A word counts if it"
        " implies the annotated verb for such objects. The list was written on 262 of V-COCO's test"
        " images.\n\n" + markdown_table(rows)
    )


def main(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="with instances.json, captions.json, relations.json; default: of SGPIPE_ORACLE"
        ),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="COCO instances; default: instances.json beside them")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO captions")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="relations: image_id, subject_id, predicate, object_id")
    ] = None,
    out: Annotated[Path, typer.Option(help="the page to write")] = PAGE,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="keep how captions count beside the weights")
    ] = False,
) -> None:
    """Write the figures on photographs with human captions and annotated relations."""
    if folder is None and truth is None and not os.environ.get("SGPIPE_ORACLE"):
        raise UserError(
            "no data: name the folder with instances.json, captions.json and relations.json, or use"
            " --truth"
        )
    default = (
        truth.parent
        if truth
        else Path(os.environ.get("SGPIPE_ORACLE", ""), "data", "vcoco_captions")
    )
    folder = folder or default
    photographs = read_photographs(
        instances or folder / "instances.json",
        captions or folder / "captions.json",
        truth or folder / "relations.json",
    )
    _, heading, timed = (out.read_text("utf-8") if out.exists() else "").partition(TIMED)
    measured = measure(photographs)
    write_text(out, page(photographs, measured) + heading + timed)
    if evidence:
        figures = layout_figures(photographs, measured)
        write_evidence(PACKAGED_LAYOUT, measured.evidence, len(photographs.records), figures)


if __name__ == "__main__":
    run_command(main)
