"""The result of an evaluation: printed, as JSON, CSV and plot; and how sure its difference to
another one is.

Intervals come from half samples of the images (McCarthy, 1969): the measures of many random halves,
the same for both.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.inputs import Array, EvaluationError
from rlip_model.evaluation.precision import curve, monotone
from rlip_model.evaluation.scores import ClassScores
from sgpipe.errors import UserError
from sgpipe.plots import Line, Plot
from sgpipe.utils.console import count, single_line

Rows = list[dict[str, Any]]

RECALLS = np.linspace(0, 1, 101)
_LONGEST = 60  # letters of a name in a table
RESAMPLES = 1000
_ROUNDING = 1e-9

Interval = tuple[float, float]
_UNKNOWN: Interval = (math.nan, math.nan)

_NOTES = {  # by the count they report: what is counted, and what became of it
    "images failed": ("image", "that failed in the run: left out"),
    "images without ground truth": ("image", "of the run without ground truth: left out"),
    "images repeated": ("image", "repeated in the run: only the first counts"),
    "relations not compared": ("relation", "in images that were left out"),
    "ground truth images not in run": (
        "image",
        "of the ground truth not in the run: left out, not counted as missed",
    ),
}


class Named(Protocol):
    @property
    def name(self) -> str: ...


class Resampled(Protocol):
    """Scores of images, which can be counted any number of times."""

    def resampled(self, counts: Array) -> Self: ...


NamedImage = TypeVar("NamedImage", bound=Named)
Scores = TypeVar("Scores", bound=Resampled)


@dataclass(frozen=True)
class Resampling:
    """The measures of an evaluation, most from 0 to 1, by how often each of the scored images
    occurs, `[images]`.

    unpredicted: images without predictions, where a file can tell them from images in which nothing
    was detected.
    """

    images: Sequence[str]
    summary: Callable[[Array], Mapping[str, float]]
    unpredicted: frozenset[str | int] = frozenset()


@dataclass(frozen=True)
class Difference:
    """A measure of two evaluations and the first minus the second, or NaN. shown: its interval
    excludes 0.
    """

    value: float
    interval: Interval
    other: float
    other_interval: Interval
    difference: float
    difference_interval: Interval
    shown: bool


@dataclass(frozen=True)
class PairedComparison:
    other: str
    images: int
    resamples: int
    seed: int
    measures: Mapping[str, Difference]


def compare_paired(
    first: Resampling,
    second: Resampling,
    *,
    other: str = "other",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Compare the measures that two evaluations of the same images, in any order, have in common,
    by half samples.

    Args:
        other: the name of the second.
        resamples: two or more.

    Raises:
        UserError: the images differ, or there are none.
    """
    if not first.images:
        raise UserError("--compare needs images, but none was scored")
    scored = set(first.images)
    scored_other = set(second.images)
    only = scored ^ scored_other
    if not only:
        predicted = scored.difference(first.unpredicted)
        only = predicted ^ scored_other.difference(second.unpredicted)
    if only:
        which = f"{count(len(only), 'image')} on one side only, such as {min(only)!r}"
        need = "--compare needs the same images on both sides, and predictions for the same"
        raise UserError(f"{need}: {which}; evaluate both on the same images")
    images = len(first.images)
    everything = np.ones(images, dtype=int)
    known = second.summary(everything)
    names = [name for name in first.summary(everything) if name in known]
    first_ranks = np.argsort(np.argsort(np.array(first.images)))
    second_ranks = np.argsort(np.argsort(np.array(second.images)))

    def measure(ranks: Array) -> Array:
        """`[3, measures]` of images by the rank of their names: first, second, difference."""
        measures = first.summary(np.isin(first_ranks, ranks).astype(int))
        other_measures = second.summary(np.isin(second_ranks, ranks).astype(int))
        values = np.array([measures[name] for name in names])
        other_values = np.array([other_measures[name] for name in names])
        return np.stack((values, other_values, values - other_values))

    of_all = measure(np.arange(images))
    rng = np.random.default_rng(seed)
    size = images - images // 2
    halves = np.array([measure(rng.permutation(images)[:size]) for _ in range(resamples)])
    differences = {}
    for column, name in enumerate(names):
        samples = halves[:, :, column]
        differences[name] = _difference(of_all[:, column].tolist(), samples, images)
    return PairedComparison(other, images, resamples, seed, differences)


def _difference(values: Sequence[float], halves: Array, images: int) -> Difference:
    """Return a measure of two evaluations.

    Args:
        values: of the first, of the second, and the difference.
        halves: the same of halves of the images, `[halves, 3]`.
        images: how many there are.
    """
    value, other, difference = values
    margin, other_margin, difference_margin = (_margin(samples, images) for samples in halves.T)
    if min(value, other) < 0 or max(value, other) > 1:  # no share, such as a count
        difference_margin = math.nan
    low, high = _difference_interval(difference, difference_margin)
    return Difference(
        value=value,
        interval=_share_interval(value, margin),
        other=other,
        other_interval=_share_interval(other, other_margin),
        difference=difference,
        difference_interval=(low, high),
        shown=low > 0 or high < 0,
    )


def _margin(halves: Array, images: int) -> float:
    """Half the width of the t interval of a measure of all images; NaN with fewer than two halves
    that define it.
    """
    from scipy.special import stdtrit  # only where an interval is computed

    defined = halves[~np.isnan(halves)]
    left_out = images // 2
    if not left_out or len(defined) < 2:
        return math.nan
    error = float(defined.std(ddof=1)) * math.sqrt((images - left_out) / left_out)
    return float(stdtrit(images - 1, 0.975)) * error


def _share_interval(share: float, margin: float) -> Interval:
    """Wilson's interval with as many observations as a share of this margin has, which contains the
    share.
    """
    spread = share * (1 - share)
    if not (margin > _ROUNDING and spread > 0):  # the halves do not vary, as at 0 and 1
        return _UNKNOWN
    squared = margin**2 / spread
    centre = share + squared / 2
    half = math.sqrt(squared * (spread + squared / 4))
    return (centre - half) / (1 + squared), (centre + half) / (1 + squared)


def _difference_interval(difference: float, margin: float) -> Interval:
    if not margin > _ROUNDING:
        return (0.0, 0.0) if margin == difference == 0 else _UNKNOWN
    return max(difference - margin, -1.0), min(difference + margin, 1.0)


def count_notes(counts: Mapping[str, int]) -> list[str]:
    notes = []
    for name, (noun, fate) in _NOTES.items():
        if counts.get(name):
            notes.append(f"{count(counts[name], noun)} {fate}")
    return notes


@dataclass(frozen=True)
class EvaluationResult:
    """The result of one benchmark.

    tables: by title, beside that of the classes. notes: for the reader. counts: what was compared
    and what was not.
    curves: precision `[101]` at `RECALLS`, by class group.
    """

    benchmark: str
    settings: Mapping[str, object]
    summary: Mapping[str, float]
    per_class: Rows
    notes: Sequence[str]
    tables: Mapping[str, Rows] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Array] = field(default_factory=dict)
    resampling: Resampling | None = None
    comparison: PairedComparison | None = None

    def compared_with(
        self, other: EvaluationResult, name: str, resamples: int, seed: int
    ) -> EvaluationResult:
        """Return this result with the differences to another one, `name`.

        Raises:
            UserError: as `compare_paired`.
        """
        assert self.resampling is not None
        assert other.resampling is not None
        comparison = compare_paired(
            self.resampling, other.resampling, other=name, resamples=resamples, seed=seed
        )
        notes = [f"{name}: {note}" for note in other.notes if note not in self.notes]
        return replace(self, comparison=comparison, notes=[*self.notes, *notes])

    def print(self, console: Console, *, per_class: bool = False) -> None:
        summary = [{"measure": name, "value": value} for name, value in self.summary.items()]
        classes = f", {count(len(self.per_class), 'class', 'classes')}" if self.per_class else ""
        console.print(_table(self.benchmark + classes, summary))
        for title, rows in self.tables.items():
            console.print(_table(title, rows))
        if per_class:
            console.print(_table("by class", self.per_class))
        if self.comparison:
            other = single_line(self.comparison.other)
            images = count(self.comparison.images, "image")
            halves = count(self.comparison.resamples, "random half", "random halves")
            differences = []
            for name, measure in self.comparison.measures.items():
                differences.append({"measure": name, **vars(measure)})
            title = f"Compared with {other}: {images}, {halves}, 95% intervals"
            console.print(_table(title, differences))
        for note in self.notes:
            console.print(f"NOTE: {note}", soft_wrap=True)

    def as_json(self) -> str:
        """Return the whole result, in lines; NaN becomes null."""
        content: dict[str, object] = {
            "benchmark": self.benchmark,
            "settings": self.settings,
            "summary": self.summary,
            "notes": self.notes,
            "per_class": self.per_class,
        }
        for title, rows in self.tables.items():
            content[title.replace(" ", "_")] = rows
        if self.counts:
            content["counts"] = self.counts
        if self.comparison:
            content["comparison"] = asdict(self.comparison)
        return f"{json.dumps(_without_nan(content), indent=1, allow_nan=False)}\n"

    def as_csv(self) -> str:
        """Return one row per class; NaN becomes an empty cell."""
        text = io.StringIO()
        columns = list(self.per_class[0]) if self.per_class else []
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_without_nan(self.per_class))
        return text.getvalue()

    def as_svg(self) -> str:
        """Return precision over recall of the class groups; the legend gives the mean precision of
        each.
        """
        lines = []
        for name, precision in self.curves.items():
            points = list(zip(RECALLS.tolist(), precision.tolist(), strict=True))
            lines.append(Line(points, name=f"{name}: {precision.mean():.3f}"))
        return Plot(self.benchmark, "recall", "precision", lines, size=(400, 400)).file()


@dataclass
class ScoredImages:
    """The annotated images that were scored, filled while they are read.

    unpredicted: those without predictions, if they count as missed. lacking: how many are without,
    by what became of them. notes: for the reader.
    """

    names: list[str] = field(default_factory=list)
    predicted: set[str | int] = field(default_factory=set)
    unpredicted: frozenset[str | int] = frozenset()
    lacking: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def named(self, images: Iterable[NamedImage]) -> Iterator[NamedImage]:
        for image in images:
            self.names.append(image.name)
            yield image

    def add(self, name: str | int, annotated: Collection[str | int], place: str) -> None:
        """Note that an image has predictions.

        Raises:
            UserError: it is not annotated, or already had some.
        """
        if name in self.predicted or name not in annotated:
            problem = "occurs twice" if name in self.predicted else "is not annotated"
            raise UserError(f"{place}: image {name!r} {problem}")
        self.predicted.add(name)

    def lack(self, annotated: Collection[str | int], *, missed: bool) -> None:
        """Note images without predictions, which count as missed or are left out.

        Raises:
            EvaluationError: all are.
        """
        if not self.predicted:
            raise EvaluationError("contains no predictions")
        lacking = len(annotated) - len(self.predicted)
        self.lacking["images without predictions" if missed else "images left out"] = lacking
        if missed:
            self.unpredicted = frozenset(annotated).difference(self.predicted)
        if lacking:
            fate = "counted as missed" if missed else "left out (official protocol)"
            images = f"{lacking:,} of {count(len(annotated), 'annotated image')}"
            self.notes.append(f"no predictions for {images}: {fate}")

    def result(
        self,
        benchmark: str,
        settings: Mapping[str, object],
        scores: Scores,
        summary: Callable[[Scores], Mapping[str, float]],
        per_class: Rows,
        curves: Mapping[str, Array] | None = None,
    ) -> EvaluationResult:
        """Return the result of a benchmark on these images, of `scores`, which have a method
        `resampled`.
        """
        return EvaluationResult(
            benchmark,
            settings,
            summary(scores),
            per_class,
            [f"scored {count(len(self.names), 'image')}", *self.notes],
            counts={"images": len(self.names), **self.lacking},
            curves=curves or {},
            resampling=Resampling(
                self.names, lambda counts: summary(scores.resampled(counts)), self.unpredicted
            ),
        )


def precision_at(recall: Array, precision: Array) -> Array:
    """`[101]`: the best at each of `RECALLS` or above, or 0; of rising recall and monotone
    precision `[points]`.
    """
    points: Array = np.append(precision, 0.0)[np.searchsorted(recall, RECALLS - 1e-9, side="left")]
    return points


def mean_curve(curves: Iterable[Array]) -> Array:
    """`[101]`, the unweighted mean over classes; 0 without any."""
    return np.mean(list(curves) or [np.zeros(len(RECALLS))], axis=0)


def class_curve(scores: ClassScores, classes: Array | None = None) -> Array:
    """`[101]`, the mean over the given classes (None: all) that occur in the ground truth."""
    curves = []
    for number, targets in zip(scores.classes.tolist(), scores.targets.tolist(), strict=True):
        if classes is None or number in classes:
            recall, precision = curve(scores.of_class(number)[1], targets)
            curves.append(precision_at(recall, monotone(precision)))
    return mean_curve(curves)


def class_rows(scores: ClassScores, names: Sequence[Mapping[str, str]]) -> Rows:
    """Return one row per class; `names` are the columns that identify it."""
    columns = {
        "ground_truth": scores.targets.tolist(),
        "detections": scores.detections.tolist(),
        "hits": scores.true_positives.tolist(),
        "average_precision": scores.average_precision.tolist(),
        "max_recall": scores.max_recall.tolist(),
    }
    rows = []
    for name, *values in zip(names, *columns.values(), strict=True):
        rows.append({**name, **dict(zip(columns, values, strict=True))})
    return rows


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title)
    for name, value in (rows[0] if rows else {}).items():
        table.add_column(
            name.replace("_", " "), justify="left" if isinstance(value, str) else "right"
        )
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: object) -> str:
    if isinstance(value, tuple):  # an interval
        return "–" if math.isnan(value[0]) else " to ".join(map(_cell, value))
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return single_line(str(value), _LONGEST)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
