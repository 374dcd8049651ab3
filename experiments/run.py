"""Run the experiments of experiments.yaml: `python -m experiments.run [NAME …]`, or `make
experiments`.

Results are appended to results/NAME.jsonl, a line per trained network and per set of labels. What
is there is not done again; a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from experiments.code_state import changed_code
from experiments.command import run_command
from experiments.measures import curve, image_interval, measure, measure_labels, resampling
from experiments.plan import PLAN, Experiment, Stage, load_plan
from experiments.results import RESULTS, Results, Row
from experiments.workshop import Network, Workshop, turn
from sgpipe.errors import DivergedError, UserError

WORK = Path("build/experiments")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """A piece of work for one process: (set, seed) to compare its labels with the ground truth,
    (arm, seed) to train and to measure, or (stage, measure, arm, arm, seeds) to compare two arms
    image by image.
    """

    experiment: str
    kind: Literal["labels", "arm", "comparison"]
    item: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.experiment}, {self.kind}: {' | '.join(self.item)}"

    @property
    def file_name(self) -> str:
        """For its log and its lock."""
        return re.sub(r"\W+", "-", str(self))


def run_arm(workshop: Workshop, results: Results, name: str, arm: str, seed: int) -> None:
    """Train the stages of an arm and write a line for each that is measured and has none yet.

    A training whose loss is not finite gets a line that says so, and ends the arm.
    """
    stages = workshop.plan.experiments[name].arms[arm]
    known = {row["key"] for row in results.current(name) if row.get("arm") == arm}
    network: Network | None = None
    for stage, key in zip(stages, workshop.plan.stage_keys(stages, seed), strict=True):
        row: Row = {"arm": arm, "seed": seed, "stage": stage.name, "key": key, "steps": stage.steps}
        before = workshop.cpu_seconds()
        try:
            network = workshop.network(stage, seed, network)
        except DivergedError as reason:
            if key not in known:
                results.append(name, {**row, "diverged": str(reason)})
            return
        if stage.measured and key not in known:
            measures = measure(workshop, stage, network)
            points = {"curve": curve(network)} if stage.validate_every else {}
            row |= {
                "measures": measures,
                **points,
                "cpu_seconds": round(workshop.cpu_seconds() - before, 1),
            }
            results.append(name, row)


def compare_labels(workshop: Workshop, results: Results, name: str, labels: str, seed: int) -> None:
    """Write a line with the quality of a pseudo-labelled set."""
    before = workshop.cpu_seconds()
    row: Row = {"labels": labels, "seed": seed, "key": workshop.plan.set_key(labels, seed)}
    row["measures"] = measure_labels(workshop, labels, seed)
    results.append(name, {**row, "cpu_seconds": round(workshop.cpu_seconds() - before, 1)})


def compare_arms(workshop: Workshop, results: Results, name: str, item: tuple[str, ...]) -> None:
    """Write a line with the interval over images of the difference between two arms, averaged over
    seeds.
    """
    stage, measure, better, worse, seeds = *item[:4], int(item[4])
    experiment = workshop.plan.experiments[name]
    before = workshop.cpu_seconds()
    sides = []
    for arm in (better, worse):
        networks = [
            _network(workshop, experiment.arms[arm], seed, stage)
            for seed in experiment.seeds_of(arm)[:seeds]
        ]
        sides.append([resampling(workshop, measure, *network) for network in networks])
    row: Row = {"compared": [better, worse], "stage": stage, "measure": measure, "seeds": seeds}
    interval = image_interval(sides[0], sides[1], measure)
    row |= {
        "key": results.comparison_key(experiment, item[:4], seeds),
        "interval": interval,
        "method": "half samples",
    }
    results.append(name, {**row, "cpu_seconds": round(workshop.cpu_seconds() - before, 1)})


def _network(
    workshop: Workshop, stages: Sequence[Stage], seed: int, last: str
) -> tuple[Stage, Network]:
    """The network of an arm after the stage of this name."""
    network: Network | None = None
    for stage in stages:
        network = workshop.network(stage, seed, network)
        if stage.name == last:
            return stage, network
    raise UserError(f"no stage {last!r}")


def open_tasks(results: Results, names: Sequence[str], seeds: int | None = None) -> list[Task]:
    """What has no line yet: labels, then the first seed of all arms, then the next; then arms that
    can be compared.

    Args:
        seeds: as many of each experiment; None: all.
    """
    return [task for name in names for task in _open_tasks(results, name, seeds)]


def _open_tasks(results: Results, name: str, seeds: int | None) -> Iterator[Task]:
    experiment = results.plan.experiments[name]
    rows = results.current(name)
    seeds = min(experiment.seeds, seeds or experiment.seeds)
    compared = {(row["labels"], row.get("seed", 0)) for row in rows if "labels" in row}
    for labels, seed in experiment.label_sets(results.plan):
        if seed < seeds and (labels, seed) not in compared:
            yield Task(name, "labels", (labels, str(seed)))
    incomparable = {row["arm"] for row in rows if "diverged" in row}
    for arm, seed in _unfinished(experiment, rows, seeds):
        incomparable.add(arm)
        yield Task(name, "arm", (arm, str(seed)))
    if seeds > 1:
        for item in _open_comparisons(experiment, rows, seeds):
            if incomparable.isdisjoint(item[2:4]):
                yield Task(name, "comparison", item)


def _unfinished(
    experiment: Experiment, rows: Sequence[Row], seeds: int
) -> Iterator[tuple[str, int]]:
    """Yield the arms that have stages without a measured line, and did not diverge, seed by
    seed.
    """
    for seed in range(seeds):
        for arm, stages in experiment.arms.items():
            if seed not in experiment.seeds_of(arm):
                continue
            arm_rows = [row for row in rows if (row.get("arm"), row.get("seed")) == (arm, seed)]
            missing = {stage.name for stage in stages if stage.measured}
            missing -= {row["stage"] for row in arm_rows}
            if missing and not any("diverged" in row for row in arm_rows):
                yield arm, seed


def _open_comparisons(
    experiment: Experiment, rows: Sequence[Row], seeds: int
) -> Iterator[tuple[str, ...]]:
    """Yield the expected comparisons without a line: stage, measure, both arms, and seeds."""
    known = set()
    for row in rows:
        if "compared" in row:
            row_seeds = str(row.get("seeds", experiment.seeds))
            known.add((row["stage"], row["measure"], *row["compared"], row_seeds))
    for expected in experiment.expected:
        for pair in pairwise(expected.order):
            item = (expected.stage, expected.measure, *pair, str(seeds))
            if item not in known:
                yield item


def run_task(workshop: Workshop, results: Results, task: Task) -> None:
    """Do a piece of work in this process, on one thread, unless another runner does it
    meanwhile.
    """
    torch.set_num_threads(1)
    with turn(workshop.root / "tasks" / f"{task.file_name}.lock"):
        if task not in open_tasks(
            results, [task.experiment], int(task.item[4]) if task.kind == "comparison" else None
        ):
            return
        if task.kind == "labels":
            compare_labels(workshop, results, task.experiment, task.item[0], int(task.item[1]))
        elif task.kind == "arm":
            run_arm(workshop, results, task.experiment, task.item[0], int(task.item[1]))
        else:
            compare_arms(workshop, results, task.experiment, task.item)


@dataclass(frozen=True)
class Runner:
    """Runs tasks in processes of their own, as many at a time as `processes`."""

    plan: Path
    work: Path
    results: Path
    processes: int
    console: Console

    def run(self, tasks: Sequence[Task], stop_at: float) -> int:
        """Start no task after `stop_at`, on the clock `time.monotonic`; return how many failed or
        were not started.
        """
        waiting = list(tasks)
        running = dict[Task, subprocess.Popen[bytes]]()
        failed = 0
        try:
            while running or (waiting and time.monotonic() < stop_at):
                while waiting and len(running) < self.processes and time.monotonic() < stop_at:
                    task = waiting.pop(0)
                    self.console.print(f"{len(tasks) - len(waiting)}/{len(tasks)} {task}")
                    running[task] = self._start(task)
                failed += self._collect(running)
                time.sleep(_POLL_SECONDS)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        return failed + len(waiting)

    def _collect(self, running: dict[Task, subprocess.Popen[bytes]]) -> int:
        """Remove the tasks that have ended, and return how many of these failed."""
        ended = [task for task, process in running.items() if process.poll() is not None]
        failed = [task for task in ended if running.pop(task).returncode]
        for task in failed:
            self.console.print(f"{task} failed; see {self._log(task)}")
        return len(failed)

    def _log(self, task: Task) -> Path:
        return self.work / "logs" / f"{task.file_name}.log"

    def _start(self, task: Task) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "experiments.run",
            "--task",
            json.dumps([task.experiment, task.kind, task.item]),
        ]
        command += [
            "--plan",
            str(self.plan),
            "--work",
            str(self.work),
            "--results",
            str(self.results),
        ]
        self._log(task).parent.mkdir(parents=True, exist_ok=True)
        with self._log(task).open("ab") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="experiments of the plan; default: all")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="trainings at a time, one thread each")
    ] = os.cpu_count() or 1,
    minutes: Annotated[
        float, typer.Option(help="start nothing new after as many minutes")
    ] = math.inf,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="seeds of each arm, which are also compared; default: as planned"),
    ] = None,
    work: Annotated[Path, typer.Option(help="folder for images, labels and networks")] = WORK,
    plan: Annotated[Path, typer.Option(help="YAML file of the experiments")] = PLAN,
    results: Annotated[Path, typer.Option(help="folder for the results")] = RESULTS,
    task: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run experiments; what is done is not done again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop in order, with all processes
    loaded = load_plan(plan)
    work = work.absolute()
    lines = Results(loaded, results)
    if task is not None:
        experiment, kind, item = json.loads(task)
        run_task(Workshop(loaded, work), lines, Task(experiment, kind, tuple(item)))
        return
    chosen = names or list(loaded.experiments)
    unknown = [name for name in chosen if name not in loaded.experiments]
    if unknown:
        raise UserError(f"no experiment {unknown[0]!r}; there are {', '.join(loaded.experiments)}")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    stop_at = time.monotonic() + 60 * minutes
    for name in chosen:
        for measured_with, changes in changed_code(lines.current(name)):
            console.print(
                f"NOTE: {name}: code has changed since the results of {measured_with} ({changes}); delete lines"
                " to repeat them"
            )
    runner = Runner(plan, work, results, processes, console)
    left = 0
    tasks = open_tasks(lines, chosen, seeds)
    while tasks and not left:
        left = runner.run(tasks, stop_at)
        tasks = open_tasks(lines, chosen, seeds)  # arms are compared after they were trained
    console.print(f"{left} left" if left else "all done")
    if left and time.monotonic() < stop_at:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
