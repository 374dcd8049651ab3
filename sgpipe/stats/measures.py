"""Counts, distributions and health checks of a run. DuckDB makes them from the index; only results
reach Python.

The checks are `sgpipe.storage.health_rules`, and whether boxes and captions are what they seem:
boxes in another form, captions of other images and names of other classes are valid data. Edges of
images and the classes that captions name show them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import Calibration, unscored_reason
from sgpipe.errors import check_share
from sgpipe.files.locations import Location
from sgpipe.records import LEFT_OUT, NO_OBJECT, TRAINING_CONFIDENCE
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.storage.health_rules import RULES, prepare_checks
from sgpipe.storage.index import Database, open_run
from sgpipe.storage.losses import Loss
from sgpipe.storage.manifest import add_up
from sgpipe.storage.tokens import tokens_of
from sgpipe.utils.boxes import ClassFinder, class_matrix, match_captions
from sgpipe.utils.odds import NEAREST

_EXAMPLES = 5

_DOUBTS = (
    ("clipped_boxes", "boxes at the right or lower edge of their images, unusually many", "boxes",
     "Are width and height read from corners or from centres, or do the sizes belong to other images? "
     "Run again with `source.boxes=xyxy` or `cxcywh`."),
    ("boxes_in_parts", "boxes in the first pixel of their images, as parts of an image read as pixels are", "boxes",
     "Run again with `source.boxes=xywhn`, `xyxyn` or `cxcywhn`."),
    ("foreign_captions", "captions that seem to belong to other images: few of the classes that they name have boxes",
     "captions", "Check the image_id of captions and the category_id of boxes."),
    ("foreign_classes", "boxes that seem to have the names of other classes: captions of their images name another",
     "boxes", "Check the category_id of boxes against the ids in the list of categories."),
)  # fmt: skip
_LOST = "lost_boxes"
_NONE = "no_boxes"
MISSING = frozenset({_LOST, _NONE})
DOUBTS = frozenset({*MISSING, *(name for name, *_ in _DOUBTS)})

# that are examined
_IMAGES = 20_000
_CAPTIONED = 300
_CLASSES = 500
_SMALL_IMAGE = 32  # pixels; not all boxes of larger images lie in one pixel
# Of COCO, V-COCO and HICO-DET, 0 to 7% of the boxes touch the right edge, at most twice as many as
# the left one; read as width and height, 47 to 57% of the boxes given by corners do, 14 to 31% of
# those given by centres.
_RIGHT = 0.1
_TIMES = 3
_MARGIN = 10
BINS = 20
LIKELY = 0.5  # probability

_SCORES = """
    with ranks as (
        select rank() over (order by confidence) as a, rank() over (order by {score}) as b
        from relations where {score} is not null and confidence is not null)
    select count({score}), count(*) - count({score}), avg({score})::double, (select corr(a, b) from ranks), {others}
    from relations
"""
_CLIP = _SCORES.format(
    score="clip_score",
    others="""avg((rank = 1)::int), avg(1 / (contrasts + 1)) filter (clip_score is not null),
        avg((clip_score > swapped)::int)""",
)
_VLM = _SCORES.format(
    score="vlm_score", others=f"null, null, null, avg((vlm_score >= {LIKELY})::int)"
)

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
PEOPLE = (
    "person",
    "people",
    "man",
    "men",
    "woman",
    "women",
    "boy",
    "girl",
    "child",
    "kid",
    "baby",
    "guy",
    "lady",
)
# The totals, in the order in which images become relations.
TOTALS = {
    "objects": "boxes",
    "described_objects": "boxes with attributes",
    "captions": "captions",
    "different_captions": "distinct captions per image, summed",
    "distinct_captions": "distinct captions",
    "triplets": "triplets parsed",
    "matched_triplets": "triplets with both ends matched",
    "pairs": "candidate pairs",
    "candidate_texts": "candidate relation texts",
    "relations": "relations",
    "kept_relations": f"relations of confidence ≥ {TRAINING_CONFIDENCE:.2f}",
    "images_without_relations": "images without relations",
}
STAGES = (
    "captions",
    "triplets",
    "matched_triplets",
    "candidate_texts",
    "relations",
    "kept_relations",
)

# Errors without what is specific to one image: paths, quoted names and numbers; and such a name
# (the id, if nameless).
_ERRORS = r"""
    select regexp_replace(regexp_replace(regexp_replace(coalesce(error, 'unknown'),
        '''[^'']*''|"[^"]*"', '…', 'g'), '\S*/\S*', '…', 'g'), '\d+(x\d+)?', 'N', 'g') as kind, count(*) as number,
        min(coalesce(nullif(file_name, ''), image_id)) as example from images where status = 'error' group by kind
"""

_TRIPLETS = """
    select subject_category, predicate, object_category, times, confidence
    from run.triplets order by times desc, subject_category, predicate, object_category limit 50
"""


@dataclass(frozen=True)
class Example:
    image_id: str
    text: str


_Problem = tuple[int, list[Example]]  # how many there are, and the first


@dataclass(frozen=True)
class Check:
    """A check: it found `count` of `total` relations, pairs, boxes, captions or images (`of`)."""

    name: str
    title: str
    count: int
    total: int
    of: str
    advice: str
    examples: list[Example] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0


def check_health(database: Database, threshold: float, losses: Sequence[Loss] = ()) -> list[Check]:
    """Run all checks on the relations of at least `threshold`, on all boxes and captions, and on
    what was lost.
    """
    prepare_checks(database.define, threshold)
    sources = {
        "relations": "kept",
        "pairs": f"related_pairs where certainty >= {float(threshold)}::float",
        "boxes": "objects",
        "captions": "captions",
    }
    totals = {}
    for name, source in sources.items():
        [(totals[name],)] = database.sums(f"select count(*) from {source}")
    problems = {**_box_doubts(database), **_caption_doubts(database, totals)}
    checks = [*_missing_boxes(database, losses)]
    for name, title, noun, advice in _DOUBTS:
        number, examples = problems.get(name, (0, []))
        checks.append(Check(name, title, number, totals[noun], noun, advice, examples))
    for rule in RULES:
        number, examples = _break_rule(database, rule.query)
        checks.append(
            Check(rule.name, rule.title, number, totals[rule.of], rule.of, rule.advice, examples)
        )
    return checks


def _break_rule(database: Database, query: str) -> _Problem:
    """Return how much breaks a rule, which selects it."""
    rows = database.sums(f"""with found as materialized ({query}),
        first as (select * from found order by image, text limit {_EXAMPLES})
        select (select coalesce(sum(number), 0)::bigint from found), image_id, text
        from first join images using (image) order by image, text""")
    number = rows[0][0] if rows else 0
    return number, [Example(image_id, text) for _, image_id, text in rows]


def _missing_boxes(database: Database, losses: Sequence[Loss]) -> Iterator[Check]:
    """Yield the checks that boxes of the source were lost, and that no image has any."""
    [(boxes,)] = database.sums("select count(*) from objects")
    [(images, first)] = database.sums(
        "select count(*), min(image_id) from images where status = 'ok'"
    )
    faults = [loss for loss in losses if loss.kind.of == "boxes" and loss.kind.is_fault]
    lost = sum(loss.lost for loss in faults)
    yield Check(
        _LOST,
        "boxes of the source that were lost: without area or finite coordinates, or of an unlisted"
        " image or class",
        lost,
        max((loss.total for loss in faults), default=boxes),
        "boxes",
        "They cannot be used: correct the annotations, and run again into another folder.",
    )
    without = images if images and not boxes else 0
    yield Check(
        _NONE,
        "images without boxes, of a run that has none at all",
        without,
        images,
        "images",
        "Without boxes there is nothing to relate: check the annotations, their image ids and their"
        " classes, or the detector and `detect.threshold`.",
        [Example(str(first), "no box")] if without else [],
    )


def _box_doubts(database: Database) -> dict[str, _Problem]:
    [(boxes, left, right, clipped, parts, image)] = database.sums(
        f"""select count(*), count(*) filter (x <= 0.5), count(*) filter (x + w >= width - 0.5),
            count(*) filter (x + w >= width - 0.5 or y + h >= height - 0.5),
            count(*) filter (x + w <= 1.5 and y + h <= 1.5 and greatest(width, height) > {_SMALL_IMAGE}), min(image_id)
        from objects join images using (image)
        where image < {_IMAGES} and category <> '{NO_OBJECT}' and not iscrowd"""
    )
    doubts: dict[str, _Problem] = {}
    if right > _RIGHT * boxes and right > _TIMES * left + _MARGIN:
        text = f"{right / boxes:.0%} touch the right edge, {left / boxes:.0%} the left one"
        doubts["clipped_boxes"] = (clipped, [Example(image, text)])
    if boxes and parts > 0.9 * boxes:
        doubts["boxes_in_parts"] = (parts, [Example(image, f"{parts / boxes:.0%} of the boxes")])
    return doubts


def _caption_doubts(database: Database, totals: Mapping[str, int]) -> dict[str, _Problem]:
    names = [name for (name,) in database.sums(
        f"""select category::varchar from objects where category <> '{NO_OBJECT}' group by category
        order by count(*) desc, 1 limit {_CLASSES}"""
    )]  # fmt: skip
    rows = database.sums(
        f"""with captioned as (select image, list(distinct caption) as texts from captions where scope = 'image'
            group by image order by image limit {_CAPTIONED})
        select image_id, texts, (select list(distinct category::varchar) from objects o where o.image = captioned.image)
        from captioned join images using (image) order by image"""
    )
    if not names or not rows:
        return {}
    synonyms = {**packaged_synonyms("objects365"), **packaged_synonyms("coco")}
    find = ClassFinder({name: synonyms.get(name, ()) for name in names})
    named = class_matrix([set().union(*map(find, texts)) for _, texts, _ in rows], names)
    boxed = class_matrix([classes or () for _, _, classes in rows], names)
    match = match_captions(named, boxed)
    if not match.is_chance:
        return {}
    pairs = islice(_renamed(named, boxed, names), _EXAMPLES)
    examples = [Example(rows[row][0], text) for text, row in pairs]
    if examples:
        return {"foreign_classes": (totals["boxes"], examples)}
    text = (
        f"of the classes that captions name, {match.same:.0%} have a box in their image,"
        f" {match.other:.0%} in others"
    )
    return {"foreign_captions": (totals["captions"], [Example(rows[0][0], text)])}


def _renamed(
    named: NDArray[np.bool_], boxed: NDArray[np.bool_], names: list[str]
) -> Iterator[tuple[str, int]]:
    """Yield pairs of classes that captions and boxes name in the same images, most frequent first,
    and an image.

    Nothing, unless the pairs that one half of the images shows fit the captions of the other half.
    """
    half = len(named) // 2
    renamed = boxed[half:][:, _partners(named[:half], boxed[:half])]
    if not match_captions(named[half:], renamed).is_real:
        return
    partners = _partners(named, boxed)
    for at in np.argsort(-named.sum(0), kind="stable").tolist():
        both = np.flatnonzero(named[:, at] & boxed[:, partners[at]])
        if len(both) and partners[at] != at:
            yield (
                f"captions name “{names[at]}” where boxes are “{names[partners[at]]}”",
                int(both[0]),
            )


def _partners(named: NDArray[np.bool_], boxed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the class whose boxes are least by chance in the images whose captions name a class,
    `[classes]`.
    """
    both = named.T.astype(float) @ boxed
    share = boxed.mean(0)
    expected = named.sum(0)[:, None] * share
    return np.argmax((both - expected) / np.sqrt(expected * (1 - share) + 0.1), axis=1)


@dataclass(frozen=True)
class Confidence:
    """The distribution of confidences, in 20 bins of equal width from 0 to 1; human annotations are
    `unscored`.
    """

    histogram: list[int]
    scored: int
    unscored: int
    mean: float | None
    median: float | None
    highest: float | None


@dataclass(frozen=True)
class LongTail:
    """How unevenly a total is distributed over kinds.

    `head_share`: of the ten most frequent; `half`: how many of these have half of the total;
    `singletons`: kinds that occur once. The Gini coefficient is 0 if all are equally frequent;
    `entropy`: in bits.
    """

    kinds: int = 0
    head_share: float = 0.0
    half: int = 0
    singletons: int = 0
    gini: float = 0.0
    entropy: float = 0.0


def measure_long_tail(counts: Sequence[int]) -> LongTail:
    """`counts` may be in any order."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    total = ordered.sum()
    if not total:
        return LongTail()
    shares = ordered / total
    ranks = np.arange(len(ordered), 0, -1)  # 1 for the rarest
    gini = (2 * (ranks * shares).sum() - (len(ordered) + 1)) / len(ordered)
    entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()) + 0.0  # no -0.0
    return LongTail(
        kinds=len(ordered),
        head_share=float(shares[:10].sum()),
        half=int(np.searchsorted(np.cumsum(shares), 0.5 - 1e-12)) + 1,
        singletons=int((ordered == 1).sum()),
        gini=float(gini),
        entropy=entropy,
    )


@dataclass(frozen=True)
class ScoreMeasures:
    """The scores of another model: their mean, and Spearman's correlation with the confidence.

    Of CLIP's cosines, which mean something only relative to other texts, `first`: share of
    relations whose text fits better than all contrast texts; `chance`: the same for random ranks;
    `beats_swapped`: better than with subject and object swapped. Of a vision-language model's
    probabilities, `likely`: the share of 0.5 or more.
    """

    scored: int
    unscored: int
    mean: float | None
    correlation: float | None
    first: float | None = None
    chance: float | None = None
    beats_swapped: float | None = None
    likely: float | None = None


@dataclass(frozen=True)
class Level:
    """What a threshold keeps, with all annotations: relations, and images and pairs of objects that
    have one.
    """

    threshold: float
    relations: int
    images: int
    pairs: int
    predicate_kinds: int

    @property
    def per_image(self) -> float:
        """Relations per image that has any."""
        return self.relations / self.images if self.images else 0.0

    @property
    def per_pair(self) -> float:
        """Relations per pair that has any."""
        return self.relations / self.pairs if self.pairs else 0.0


@dataclass(frozen=True)
class TripletCount:
    """How often a predicate relates two classes, and its mean confidence, if it has any."""

    subject: str
    predicate: str
    object: str
    relations: int
    confidence: float | None


@dataclass(frozen=True)
class Measures:
    """What a run contains; counts by name are of the most frequent first.

    Attributes:
        images: by split. `errors`: error rows by kind; `error_examples`: an image of each kind.
        totals: those of `TOTALS`, and what was left out (`records.LEFT_OUT`). All rows count, also
            error rows.
        in_error_rows: how much of the totals is in error rows, which the stages did not finish.
        without_relations: images without relations, by the first stage that left nothing.
        triplets: the most frequent combinations of subject class, predicate and object class, of
            `triplet_kinds`.
        assumed: why candidates are relations, if no model chose them; None: one did, or people
            annotated them.
        losses: what the run lacks of what its source had.
        threshold_of: what thresholds are of: confidence, or by a calibration probability.
        tokens: of requests to served models and of their answers.
    """

    run: str
    fingerprint: str
    images: dict[str, int]
    datasets: dict[str, int]
    errors: dict[str, int]
    error_examples: dict[str, str]
    totals: dict[str, int]
    in_error_rows: dict[str, int]
    without_relations: dict[str, int]
    predicates: dict[str, int]
    categories: dict[str, int]
    attributes: dict[str, int]
    thresholds: list[Level]
    tail: LongTail
    triplets: list[TripletCount]
    triplet_kinds: int
    person_subject_share: float
    confidence: Confidence
    health: list[Check]
    clip_score: ScoreMeasures | None = None
    vlm_score: ScoreMeasures | None = None
    assumed: str | None = None
    origins: dict[str, int] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    threshold_of: str = "confidence"
    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(self.images.values())

    @property
    def yields(self) -> dict[str, float | None]:
        """The output of each stage per output of the one before, without error rows; None if that
        had none.
        """
        done = {name: self.totals[name] - self.in_error_rows[name] for name in STAGES}
        return {
            after: done[after] / done[before] if done[before] else None
            for before, after in pairwise(STAGES)
        }


def _use_probabilities(database: Database, calibration: Calibration) -> None:
    if not database.sums("select 1 from relations where confidence is not null limit 1"):
        return
    calibration.check_run(database.run, database.root)
    inside = f"least(greatest(confidence::double, {NEAREST}), {1 - NEAREST})"
    odds = f"{calibration.slope} * ln({inside} / (1 - {inside})) + {calibration.offset}"
    database.measure = "probability"
    database.replace_certainty(
        f"case when confidence is null then 1 when confidence < {calibration.lowest} then 0 "
        f"else 1 / (1 + exp(-({odds}))) end"
    )


def measure(
    root: Location, threshold: float = TRAINING_CONFIDENCE, calibration: Calibration | None = None
) -> Measures:
    """Measure the run in `root`; see `measure_database`."""
    with open_run(root) as database:
        return measure_database(database, threshold, calibration)


def measure_database(
    database: Database,
    threshold: float = TRAINING_CONFIDENCE,
    calibration: Calibration | None = None,
) -> Measures:
    """Measure an open run; `threshold`: of the relations whose health is checked, with a
    calibration a probability.

    Raises:
        UserError: the threshold is not 0 to 1, or the confidences are of another tagger than the
            calibration.
    """
    check_share("threshold", threshold)
    if calibration is not None:
        _use_probabilities(database, calibration)
    run = database.run
    sums = database.sums
    summary = add_up(database.files.manifest, 0, {})
    losses = list(summary.losses)
    predicates = _counts(database, "select predicate, relations from predicates")
    [(kinds, of_people)] = sums(
        """select count(*), coalesce(sum(times) filter (list_contains(?, lower(subject_category)))
            / sum(times), 0) from run.triplets""",
        [list(PEOPLE)],
    )
    above = ", ".join(f"count(*) filter (certainty >= {level}::float)" for level in THRESHOLDS)
    sources = ("relations", "related_images", "related_pairs", "predicates")
    columns = [sums(f"select {above} from {source}")[0] for source in sources]
    bins = dict(sums(
        f"""select least(greatest(floor(confidence::double * {BINS}), 0), {BINS - 1})::int, count(*)
        from relations where confidence is not null group by 1"""
    ))  # fmt: skip
    [confidences] = sums(
        """select count(confidence), count(*) - count(confidence), avg(confidence)::double,
            quantile_disc(confidence, 0.5)::double, max(confidence)::double from relations"""
    )
    measures = Measures(
        run=str(run.get("name", "")),
        fingerprint=database.fingerprint,
        images=_counts(database, "select split, count(*) from images group by 1"),
        datasets=_counts(database, "select dataset, count(*) from images group by 1"),
        errors=_counts(database, f"select kind, number from ({_ERRORS})"),
        error_examples=dict(sums(f"select kind, example from ({_ERRORS}) order by kind")),
        totals=_totals(database, "true"),
        in_error_rows=_totals(database, "status = 'error'"),
        without_relations=_counts(
            database, "select why, count(*) from images where why is not null group by 1"
        ),
        predicates=predicates,
        categories=_counts(database, "select category, count(*) from objects group by 1"),
        attributes=_counts(database, "select unnest(attributes), count(*) from objects group by 1"),
        thresholds=[Level(*values) for values in zip(THRESHOLDS, *columns, strict=True)],
        tail=measure_long_tail(list(predicates.values())),
        triplets=[TripletCount(*row) for row in sums(_TRIPLETS)],
        triplet_kinds=kinds,
        person_subject_share=float(of_people),
        confidence=Confidence([bins.get(at, 0) for at in range(BINS)], *confidences),
        health=check_health(database, threshold, losses),
        losses=losses,
        tokens=dict(tokens_of(summary.counts)),
        clip_score=ScoreMeasures(*sums(_CLIP)[0]) if database.scored else None,
        vlm_score=ScoreMeasures(*sums(_VLM)[0]) if database.has_vlm_scores else None,
        assumed=unscored_reason(run),
        origins=_counts(database, "select origin, count(*) from relations group by 1"),
        threshold_of=database.measure,
    )
    database.keep_sums()
    return measures


def _counts(database: Database, query: str) -> dict[str, int]:
    return dict(
        database.sums(
            f"select * from ({query}) as counted(name, number) order by number desc, name"
        )
    )


def _totals(database: Database, where: str) -> dict[str, int]:
    names = ("objects", "captions", "different_captions", "triplets", "matched_triplets", "pairs", "candidate_texts",
             "relations", *(f"{name}_left_out" for name in LEFT_OUT))  # fmt: skip
    counts = (
        "images_without_relations",
        "distinct_captions",
        "kept_relations",
        "described_objects",
    )
    sums = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names)
    [row] = database.sums(f"""select {sums}, count(*) filter (status = 'ok' and relations = 0),
        (select count(distinct caption) from captions join images using (image) where {where}),
        (select count(*) from relations join images using (image)
            where {where} and certainty >= {TRAINING_CONFIDENCE}::float),
        (select count(attributes) from objects join images using (image) where {where})
        from images where {where}""")
    return dict(zip((*names, *counts), row, strict=True))
