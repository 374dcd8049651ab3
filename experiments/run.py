"""Run the experiments of experiments.yaml: `python -m experiments.run [NAME …]`, or `make experiments`.

Results are appended to results/NAME.jsonl, a line per trained network and per set of labels. What is there is not done
again; a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from experiments.measures import curve, measure, measure_labels
from experiments.plan import PLAN, load_plan
from experiments.results import RESULTS, Results, Row
from experiments.workshop import Network, Workshop, cpu_seconds
from sgpipe.errors import DivergedError, UserError
from sgpipe.utils.console import run_command

WORK = Path("build/experiments")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """A piece of work for one process: an arm with a seed, or (arm None) a set of labels to compare."""

    experiment: str
    arm: str | None
    item: str

    def __str__(self) -> str:
        return f"{self.experiment}: {f'{self.arm}, seed {self.item}' if self.arm else f'labels {self.item}'}"


def run_arm(workshop: Workshop, results: Results, name: str, arm: str, seed: int) -> None:
    """Train the stages of an arm and write a line for each that is measured and has none yet.

    A training whose loss is not finite gets a line that says so, and ends the arm.
    """
    stages = workshop.plan.experiments[name].arms[arm]
    known = {row["key"] for row in results.current(name) if row.get("arm") == arm}
    network: Network | None = None
    for stage, key in zip(stages, workshop.plan.stage_keys(stages, seed), strict=True):
        row: Row = {"arm": arm, "seed": seed, "stage": stage.name, "key": key, "steps": stage.steps}
        before = cpu_seconds()
        try:
            network = workshop.network(stage, seed, network)
        except DivergedError as reason:
            if key not in known:
                results.append(name, {**row, "diverged": str(reason)})
            return
        if stage.measured and key not in known:
            measures = measure(workshop, stage, network)
            points = {"curve": curve(network)} if stage.validate_every else {}
            row |= {"measures": measures, **points, "cpu_seconds": round(cpu_seconds() - before, 1)}
            results.append(name, row)


def compare_labels(workshop: Workshop, results: Results, name: str, labels: str) -> None:
    """Write a line with the quality of a pseudo-labelled set."""
    before = cpu_seconds()
    measures = measure_labels(workshop, labels)
    key = workshop.plan.set_key(labels)
    row = {"labels": labels, "key": key, "measures": measures, "cpu_seconds": round(cpu_seconds() - before, 1)}
    results.append(name, row)


def open_tasks(results: Results, names: Sequence[str]) -> list[Task]:
    """What has no line yet: labels first, then the first seed of all arms, then the next."""
    tasks = []
    for name in names:
        experiment, rows = results.plan.experiments[name], results.current(name)
        compared = {row["labels"] for row in rows if "labels" in row}
        tasks += [Task(name, None, each) for each in experiment.compared_sets if each not in compared]
        for seed in range(experiment.seeds):
            for arm, stages in experiment.arms.items():
                own = [row for row in rows if (row.get("arm"), row.get("seed")) == (arm, seed)]
                missing = {stage.name for stage in stages if stage.measured} - {row["stage"] for row in own}
                if missing and not any("diverged" in row for row in own):
                    tasks.append(Task(name, arm, str(seed)))
    return tasks


def run_task(workshop: Workshop, results: Results, task: Task) -> None:
    """Do a piece of work in this process, on one thread."""
    torch.set_num_threads(1)
    if task.arm is None:
        compare_labels(workshop, results, task.experiment, task.item)
    else:
        run_arm(workshop, results, task.experiment, task.arm, int(task.item))


@dataclass(frozen=True)
class Runner:
    """Runs tasks in processes of their own, as many at a time as `processes`."""

    plan: Path
    work: Path
    results: Path
    processes: int
    console: Console

    def run(self, tasks: Sequence[Task], stop_at: float) -> int:
        """Start no task after `stop_at`, on the clock `time.monotonic`; return how many failed or were not started."""
        waiting, running, failed = list(tasks), dict[Task, subprocess.Popen[bytes]](), 0
        try:
            while running or (waiting and time.monotonic() < stop_at):
                while waiting and len(running) < self.processes and time.monotonic() < stop_at:
                    task = waiting.pop(0)
                    self.console.print(f"{len(tasks) - len(waiting)}/{len(tasks)} {task}")
                    running[task] = self._start(task)
                for task in [task for task, process in running.items() if process.poll() is not None]:
                    if running.pop(task).returncode:
                        failed += 1
                        self.console.print(f"{task} failed; see {self._log(task)}")
                time.sleep(_POLL_SECONDS)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        return failed + len(waiting)

    def _log(self, task: Task) -> Path:
        return self.work / "logs" / f"{task.experiment}-{task.arm or 'labels'}-{task.item}.log"

    def _start(self, task: Task) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "experiments.run",
            "--task",
            json.dumps([task.experiment, task.arm, task.item]),
        ]
        command += ["--plan", str(self.plan), "--work", str(self.work), "--results", str(self.results)]
        self._log(task).parent.mkdir(parents=True, exist_ok=True)
        with self._log(task).open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main(
    names: Annotated[list[str] | None, typer.Argument(help="experiments of the plan; default: all")] = None,
    processes: Annotated[int, typer.Option(min=1, help="trainings at a time, one thread each")] = os.cpu_count() or 1,
    minutes: Annotated[float, typer.Option(help="start nothing new after as many minutes")] = math.inf,
    work: Annotated[Path, typer.Option(help="folder for images, labels and networks")] = WORK,
    plan: Annotated[Path, typer.Option(help="YAML file of the experiments")] = PLAN,
    results: Annotated[Path, typer.Option(help="folder for the results")] = RESULTS,
    task: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run experiments; what is done is not done again."""
    loaded, work, lines = load_plan(plan), work.absolute(), Results(load_plan(plan), results)
    if task is not None:
        run_task(Workshop(loaded, work), lines, Task(*json.loads(task)))
        return
    chosen = names or list(loaded.experiments)
    if unknown := [name for name in chosen if name not in loaded.experiments]:
        raise UserError(f"no experiment {unknown[0]!r}; there are {', '.join(loaded.experiments)}")
    tasks, console = open_tasks(lines, chosen), Console(markup=False, highlight=False, soft_wrap=True)
    left = Runner(plan, work, results, processes, console).run(tasks, time.monotonic() + 60 * minutes)
    console.print(f"{left} of {len(tasks)} left" if left else "all done")


if __name__ == "__main__":
    run_command(main)
