"""The report of the experiments: `python -m experiments.report` writes docs/experiments.md and its
plots.

The page answers each question; experiments/results/README.md has the tables of all arms. A
difference between two arms is shown if two intervals of 95 % exclude 0: the t-interval over the
seeds, in pairs of equal seeds, and that of half samples of the images, with the seeds averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev

from scipy.stats import t

from experiments.code_state import ROOT
from experiments.plan import Experiment, Plan, load_plan
from experiments.results import Results, Row
from sgpipe.plots import Line, Plot
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import count

PAGE = "docs/experiments.md"
TABLES = "experiments/results/README.md"
PLOTS = "experiments"
_LEVEL = 0.95
WIDENED = 1.2  # half samples against percentiles, where classes have few targets

INTRODUCTION = """\
# What the labels are worth

The claims of RLIPv2 in miniature: small networks, trained and measured on the [miniworld](concepts.md), whose ground
truth is exact. `make experiments` repeats everything, `make experiment NAME=assignment` one. The expected orders were
[written down](https://github.com/sgpipe/sgpipe/blob/main/experiments/experiments.yaml) before.

*Seen* and *unseen*: 500 test images each of combinations that training has, or lacks. *mAP* follows HICO-DET's
protocol, *AP* is a tagger's. A difference is *shown* if two 95 % intervals exclude 0, over seeds (±) and over images.
[All arms, seeds and intervals](../experiments/results/README.md).\
"""

TABLES_INTRODUCTION = """\
# Results of the experiments

The tables behind [What the labels are worth](../../docs/experiments.md), by `python -m experiments.report`. ± is the
95 % interval over the seeds, which decide new weights, the order of the images, and which random images are used.
Pseudo-labels, and networks from which several arms start, were made once. A difference is *incomplete* if an arm has
not been trained with all seeds or has diverged.

Intervals over images come from half samples. Those marked * are older: only the percentiles of a bootstrap were
stored, which are biased. They are moved to the difference and widened by a fifth, as much as half samples are wider in
simulations where classes have few targets.

*1%, pre-trained*, seed 0, trained again by the code of `b41d3909ca`, has the same measures to the last digit.\
"""


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % t-interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def report(plan: Plan, results: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Return the files of the report by path."""
    rows = [row for result in results.values() for row in result]
    hours = sum(row.get("cpu_seconds", 0.0) for row in rows) / 3600
    answers = [INTRODUCTION]
    tables = [TABLES_INTRODUCTION, f"\n{count(len(rows), 'result')} in {hours:.1f} CPU-hours."]
    files = {}
    for name, experiment in plan.experiments.items():
        if results[name]:
            answers += ["", *_answers(experiment, results[name])]
        tables += ["", *_tables(experiment, results[name])]
        commits = sorted({row["commit"] for row in results[name] if row.get("commit")})
        if commits:
            tables.append(f"\nCode of {', '.join(f'`{commit}`' for commit in commits)}.")
        plot = _curves(experiment, results[name])
        if plot:
            files[f"docs/{PLOTS}/{name}.svg"] = plot
            answers.append(f"\n![{experiment.title}]({PLOTS}/{name}.svg)")
    for names in same_networks(plan):
        tables.append(
            f"\nThe same networks under several names: {', '.join(f'*{name}*' for name in names)}."
        )
    return {PAGE: "\n".join(answers) + "\n", TABLES: "\n".join(tables) + "\n", **files}


def same_networks(plan: Plan) -> list[list[str]]:
    """The names of arms that have the same networks, also of several experiments."""
    names: dict[tuple[str, ...], dict[str, None]] = {}
    for experiment in plan.experiments.values():
        for arm, stages in experiment.arms.items():
            names.setdefault(tuple(plan.stage_keys(stages, 0)), {})[arm] = None
    return [list(name) for name in names.values() if len(name) > 1]


def _for_every_seed(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    """The results, those of a shared network for every seed that starts from it."""
    shared = [row for row in rows if row.get("arm") in experiment.shared]
    return [
        *rows,
        *({**row, "seed": seed} for row in shared for seed in range(1, experiment.seeds)),
    ]


def _answers(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    rows = _for_every_seed(experiment, rows)
    yield (
        f"## {experiment.title}\n\n{experiment.question}{f' {experiment.limits}' if experiment.limits else ''}"
    )
    decided = False
    for stage, measure in dict.fromkeys(
        (expected.stage, expected.measure) for expected in experiment.expected
    ):
        lines = []
        for expected in (
            each for each in experiment.expected if (each.stage, each.measure) == (stage, measure)
        ):
            for pair in pairwise(expected.order):
                at = (rows, stage, measure, *pair)
                if len(paired(*at)) > 1:
                    lines.append(
                        f"|{' > '.join(pair)}|{_difference(*at)}|{_outcome(experiment, *at)}|"
                    )
        if lines:
            yield "\n".join((f"\n|expected|{measure}, {stage}|outcome|", "|---|---|---|", *lines))
            decided = True
    if not decided:
        seeds = f"1 of {count(experiment.seeds, 'seed')} has run, which decides nothing"
        yield f"\n{seeds}: [figures so far](../experiments/results/README.md)."


def _difference(rows: Sequence[Row], stage: str, measure: str, better: str, worse: str) -> str:
    differences = paired(rows, stage, measure, better, worse)
    if len(differences) < 2:
        return f"{differences[0]:+.3f}" if differences else ""
    return f"{fmean(differences):+.3f} ± {interval(differences):.3f}"


def _outcome(experiment: Experiment, rows: Sequence[Row], *at: str) -> str:
    """Return the outcome, and of how many seeds it is if not of all."""
    done = len(paired(rows, *at))
    return outcome(rows, *at) + (
        f", {done} of {experiment.seeds} seeds" if 0 < done < experiment.seeds else ""
    )


def outcome(rows: Sequence[Row], stage: str, measure: str, better: str, worse: str) -> str:
    """Whether `better` has a higher measure than `worse`: shown, open, or the opposite shown."""
    differences = paired(rows, stage, measure, better, worse)
    if len(differences) < 2:
        return "incomplete" if differences else "not measured"
    mean = fmean(differences)
    half = interval(differences)
    low, high, _ = image_interval(rows, stage, measure, better, worse)
    if math.isnan(low):
        return "incomplete"
    if mean - half > 0 and low > 0:
        return "shown"
    return "**the opposite**" if mean + half < 0 and high < 0 else "open"


def paired(rows: Sequence[Row], stage: str, measure: str, better: str, worse: str) -> list[float]:
    """The differences of a measure between two arms, one for each seed that both have."""
    first, second = (_by_seed(rows, arm, stage, measure) for arm in (better, worse))
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def image_interval(
    rows: Sequence[Row], stage: str, measure: str, better: str, worse: str
) -> tuple[float, float, bool]:
    """The interval over images of the difference between two arms, NaN if it was not computed; and
    whether it is exact.

    Of older results only percentiles of a bootstrap are known, which are biased and too narrow.
    """
    seeds = len(paired(rows, stage, measure, better, worse))
    for row in rows:
        is_of_arms = row.get("compared") == [better, worse] and (row["stage"], row["measure"]) == (
            stage,
            measure,
        )
        if is_of_arms and row.get("seeds", seeds) == seeds:
            low, high = row["interval"]
            if "method" in row:
                return low, high, True
            middle = fmean(paired(rows, stage, measure, better, worse))
            half = WIDENED * (high - low) / 2
            return middle - half, middle + half, False
    return math.nan, math.nan, False


def _by_seed(rows: Sequence[Row], arm: str, stage: str, measure: str) -> dict[int, float]:
    rows_of_arm = [
        row
        for row in rows
        if row.get("arm") == arm and row["stage"] == stage and measure in row.get("measures", {})
    ]
    return {row["seed"]: row["measures"][measure] for row in rows_of_arm}


def _tables(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    yield f"## {experiment.title}\n"
    labels = [row for row in rows if "labels" in row]
    if labels:
        yield from _label_table(labels)
    yield from _arm_table(experiment, rows)
    yield from _differences(experiment, rows)
    yield from _speed_table(experiment, rows)


def _label_table(rows: Sequence[Row]) -> Iterator[str]:
    """The measures of each set of labels, averaged over the seeds for which it was made."""
    names = list(rows[0]["measures"])
    yield f"| labels | {' | '.join(names)} |"
    yield f"|---|{'---|' * len(names)}"
    for labels in dict.fromkeys(row["labels"] for row in rows):
        rows_of_labels = [row["measures"] for row in rows if row.get("labels") == labels]
        seeds = f", {len(rows_of_labels)} seeds" if len(rows_of_labels) > 1 else ""
        yield (
            f"| {labels}{seeds} |"
            f" {' | '.join(_figure(fmean(measures[name] for measures in rows_of_labels)) for name in names)} |"
        )
    yield ""


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value > 1 else f"{value:.3f}"


def _arm_table(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    columns = list(
        dict.fromkeys(
            (row["stage"], name) for row in rows for name in row.get("measures", {}) if "arm" in row
        )
    )
    stages = {stage for stage, _ in columns}
    heads = [f"{name}, {stage}" if len(stages) > 1 else name for stage, name in columns]
    yield f"| {' | '.join(('arm', 'seeds', *heads))} |"
    yield f"|---|---|{'---|' * len(heads)}"
    for arm in experiment.arms:
        rows_of_arm = [row for row in rows if row.get("arm") == arm]
        seeds = f"{len({row['seed'] for row in rows_of_arm})} of {len(experiment.seeds_of(arm))}"
        diverged = len({row["seed"] for row in rows_of_arm if "diverged" in row})
        if diverged:
            seeds += f", {diverged} diverged"
        cells = [_mean(list(_by_seed(rows, arm, *column).values())) for column in columns]
        yield f"| {' | '.join((arm, seeds, *cells))} |"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    half = interval(values)
    return f"{fmean(values):.3f}" if math.isnan(half) else f"{fmean(values):.3f} ± {half:.3f}"


def _differences(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    rows = _for_every_seed(experiment, rows)
    yield "\n| expected | measure | difference, over seeds | over images | |"
    yield "|---|---|---|---|---|"
    for expected in experiment.expected:
        for better, worse in pairwise(expected.order):
            at = (rows, expected.stage, expected.measure, better, worse)
            low, high, exact = image_interval(*at)
            images = "" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}{'' if exact else ' *'}"
            measure = f"{expected.measure}, {expected.stage}"
            yield (
                f"| {better} > {worse} | {measure} | {_difference(*at)} | {images} |"
                f" {_outcome(experiment, *at)} |"
            )


def _speed_table(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    """The steps until the curves of the arms of a stage reach the largest multiple of 0.1 that all
    of them reach.
    """
    curves: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    for row in (row for row in rows if row.get("curve")):
        curves.setdefault(row["stage"], {}).setdefault(row["arm"], []).append(row["curve"])
    for arms in curves.values():
        reached = min(max(value for _, value in curve) for arm in arms.values() for curve in arm)
        level = math.floor(10 * reached) / 10
        yield f"\n| arm | steps to an average precision of {level:.1f} |"
        yield "|---|---|"
        for arm in (arm for arm in experiment.arms if arm in arms):
            steps = [steps_to(curve, level) for curve in arms[arm]]
            half = interval(steps)
            yield f"| {arm} | {fmean(steps):.0f}{'' if math.isnan(half) else f' ± {half:.0f}'} |"


def steps_to(curve: Sequence[tuple[float, float]], level: float) -> float:
    """The step at which a curve that starts at (0, 0) first reaches a level, on straight lines
    between its points.
    """
    before = 0.0
    value_before = 0.0
    for step, value in curve:
        if value >= level:
            return (
                before + (step - before) * (level - value_before) / (value - value_before)
                if level
                else 0.0
            )
        before = step
        value_before = value
    return math.nan


def _curves(experiment: Experiment, rows: Sequence[Row]) -> str | None:
    """A plot of the mean curve of each arm over its seeds; None if no arm has one."""
    lines = []
    for arm in experiment.arms:
        curves = [dict(row["curve"]) for row in rows if row.get("arm") == arm and row.get("curve")]
        if curves:
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            points = [(float(step), fmean(curve[step] for curve in curves)) for step in steps]
            lines.append(Line(points, [f"{arm}, step {x:g}: {y:.3f}" for x, y in points], arm))
    if not lines:
        return None
    end = max(x for line in lines for x, _ in line.points)
    return Plot(
        experiment.title, "steps", "average precision", lines, x_end=end, size=(560, 360)
    ).file()


def write_report(results: Results) -> None:
    """Write the page, the tables and the plots."""
    for path, text in report(
        results.plan, {name: results.current(name) for name in results.plan.experiments}
    ).items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        write_text(ROOT / path, text)


if __name__ == "__main__":
    write_report(Results(load_plan()))
