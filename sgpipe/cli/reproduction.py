"""A paper as a list of sgpipe commands, which run one after the other; what is done is skipped
(`sgpipe reproduce`).
"""

import gc
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from pydantic import Field, TypeAdapter

from sgpipe.errors import EngineError, UserError
from sgpipe.plots import Line, Plot, round_end
from sgpipe.recipe import Config, packaged_model
from sgpipe.stats.report import render
from sgpipe.storage.run_folder import write_result_text
from sgpipe.training.metrics import METRICS, read_metrics
from sgpipe.utils.atomic import only_process, write_text
from sgpipe.utils.config_file import load, parse_set, recipe_folder
from sgpipe.utils.console import EXIT_BAD_INPUT, EXIT_INTERRUPTED, Progress, count, duration

# for each finished step its command, seconds and figure
STATE = "reproduce.json"
REPORT = "report.html"
PUBLISHED = "published"  # the scale of a list without overlay
_OUTPUTS = ("--out", "--json-file")
_PLACE = re.compile(r"\{(data|out|pipelines|models)\}/([^@]*)")


class Step(Config):
    """A command of the list, which reads and writes what it names below {data} and {out}."""

    name: str
    run: str = Field(description="an sgpipe command, without sgpipe; {NAME} is a value of the list")
    instead: str | None = Field(
        None, description="the command that replaces it if all its files are in {data}"
    )
    needs: tuple[str, ...] = Field((), description="what `run` reads in {data} without naming it")
    gives: str
    figure: str | None = Field(
        None, description="of an evaluation: the name of a measure in its summary"
    )
    published: str | None = Field(
        None, description="the published figures that it is compared with"
    )


class FinishedStep(Config):
    """A finished step in the state file; `figure`: in percent, if the step has one."""

    command: str
    seconds: float
    figure: float | None


_STATE = TypeAdapter(dict[str, FinishedStep])


class Reproduction(Config):
    title: str
    note: str = ""
    published: dict[str, dict[str, float]] = Field(
        {}, description="percent, by row and column of the final table"
    )
    values: dict[str, str | int | float] = Field(
        {}, description="what {NAME} in commands stands for"
    )
    steps: tuple[Step, ...] = Field(min_length=1)


def load_reproduction(paper: str, scale: str, assignments: list[str]) -> Reproduction:
    """Return a packaged list, at another scale than as published with the overlay
    PAPER/SCALE.yaml.
    """
    folder = recipe_folder() / "reproduce"
    changes = parse_set(assignments)
    overlays = [] if scale == PUBLISHED else [folder / paper / f"{scale}.yaml"]
    known = load(Reproduction, paper, folder, {}, *overlays).values
    for name in changes:
        if name.startswith("values.") and name.removeprefix("values.") not in known:
            raise UserError(f"--set {name}: the values are {', '.join(known)}")
    return load(Reproduction, paper, folder, changes, *overlays)


@dataclass(frozen=True)
class Task:
    """A step at its places."""

    step: Step
    written: str  # the command with {data} and {out}, which is the same wherever they are
    command: str
    words: tuple[str, ...]
    out: Path
    reads: set[Path]  # of other steps
    files: list[Path]  # of the user

    @property
    def missing(self) -> list[str]:
        return [str(file) for file in self.files if not file.exists()]

    def figure(self) -> float | None:
        """Return the figure in percent, if the step has one that is a number."""
        if self.step.figure is None:
            return None
        value = json.loads(self.out.read_text(encoding="utf-8"))["summary"][self.step.figure]
        return None if value is None else 100 * float(value)


def make_tasks(paper: Reproduction, data: Path, out: Path, until: str | None = None) -> list[Task]:
    """Return the steps that the figures need, or the step `until`, in their order.

    Raises:
        UserError: no such step.
    """
    steps = list(paper.steps)
    if until is not None:
        names = [step.name for step in steps]
        if until not in names:
            raise UserError(f"--until {until}: the steps are {', '.join(names)}")
        del steps[names.index(until) + 1 :]
    tasks = [_task_of(paper, step, data, out) for step in steps]
    needed = set[Path]()
    for task in reversed(tasks):
        is_wanted = task.step.figure or task.step.name == until
        if is_wanted or task.out in needed:
            needed |= {task.out, *task.reads}
    return [task for task in tasks if task.out in needed]


def _task_of(paper: Reproduction, step: Step, data: Path, out: Path) -> Task:
    """Return a step at its places, by the other command if the user has all files of that."""
    if step.instead is not None:
        other = _task(paper, step, step.instead, (), data, out)
        if not other.missing:
            return other
    return _task(paper, step, step.run, step.needs, data, out)


def _task(
    paper: Reproduction, step: Step, text: str, needs: Sequence[str], data: Path, out: Path
) -> Task:
    for name, value in paper.values.items():
        text = text.replace(f"{{{name}}}", str(value))
    words = text.split()
    output = next(value for option, value in pairwise(words) if option in _OUTPUTS)
    task_out = out / output.removeprefix("{out}/")
    reads = set[Path]()
    files: list[Path] = []
    for word in words:
        match = _PLACE.search(word)
        if match and match[1] == "out":
            reads.add(out / match[2].split("/")[0])
        elif match and match[1] == "data":
            files.append(data / match[2])
    reads.discard(task_out)
    files += [data / name for name in needs]
    places = {
        "data": data,
        "out": out,
        "pipelines": recipe_folder(),
        "models": packaged_model("parseda").parent,
    }
    words = [
        _PLACE.sub(lambda match: f"{places[match[1]]}/{match[2]}", word, count=1) for word in words
    ]
    return Task(
        step=step,
        written=f"sgpipe {text}",
        command=shlex.join(["sgpipe", *words]),
        words=tuple(words),
        out=task_out,
        reads=reads,
        files=files,
    )


def reproduce(
    paper: Reproduction,
    tasks: Sequence[Task],
    out: Path,
    run: Callable[[Sequence[str]], int],
    progress: Progress,
) -> dict[str, FinishedStep]:
    """Run the steps that are not done, and write the report; return the state of each.

    `run` runs a command of sgpipe in this process, and returns its exit code.

    Raises:
        UserError: files are missing, the folder has steps with other commands, or a step refused
            its input.
        EngineError: a step failed, those before it are done.
        SystemExit: a step was interrupted.
    """
    _read_state(tasks, out)  # before the folder is made
    with only_process(out / ".reproduce.lock", out):
        state, redone = _read_state(tasks, out)
        for number, task in enumerate(tasks, 1):
            if task.out not in redone:
                progress.say(f"[{number}/{len(tasks)}] {task.step.name}: done before")
                continue
            progress.say(f"[{number}/{len(tasks)}] {task.step.name}: {task.command}")
            began = time.monotonic()
            with redirect_stdout(sys.stderr):
                code = run(task.words)
            if code == EXIT_INTERRUPTED:
                sys.exit(code)  # the step has said so
            if code:
                kind = UserError if code == EXIT_BAD_INPUT else EngineError
                raise kind(f"step {task.step.name} failed with exit code {code}, as said above")
            seconds = round(time.monotonic() - began, 1)
            state[task.step.name] = FinishedStep(
                command=task.written, seconds=seconds, figure=task.figure()
            )
            write_text(out / STATE, json.dumps(_STATE.dump_python(state), indent=2))
            gc.collect()
            torch = sys.modules.get("torch")
            if torch and torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # workers of the next step may need it
        finished = {}
        for task in tasks:
            step = state[task.step.name]
            finished[task.step.name] = step.model_copy(update={"command": task.command})
        write_report(paper, tasks, finished, out / REPORT)
        return finished


def _read_state(tasks: Sequence[Task], out: Path) -> tuple[dict[str, FinishedStep], set[Path]]:
    """Return the state of each finished step, and what is made, again or for the first time. Raises
    UserError.
    """
    state = _finished_steps(out / STATE)
    redone: set[Path] = set()  # what changes, so that what reads it does
    for task in tasks:
        before = state.get(task.step.name)
        if before is not None and before.command != task.written:
            raise UserError(
                f"{out} ran step {task.step.name} with another command: choose another --out, or"
                f" revert to {before.command}"
            )
        if before is None or not task.out.exists() or task.reads & redone:
            redone.add(task.out)
    missing = set[str]()
    for task in tasks:
        if task.out in redone:
            missing.update(task.missing)
    if missing:
        raise UserError(f"{count(len(missing), 'input')} missing: {', '.join(sorted(missing))}")
    return state, redone


def _finished_steps(file: Path) -> dict[str, FinishedStep]:
    if not file.is_file():
        return {}
    try:
        return _STATE.validate_json(file.read_bytes())
    except ValueError:
        raise UserError(f"{file} is damaged: delete it, and every step runs again") from None


def figures(
    paper: Reproduction, tasks: Sequence[Task], state: Mapping[str, FinishedStep]
) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of the table: what was measured beside what was published, in
    percent.
    """
    columns = list(dict.fromkeys(chain.from_iterable(paper.published.values())))
    rows = []
    for task in tasks:
        if task.step.figure:
            published = paper.published.get(task.step.published or "", {})
            figures = [state[task.step.name].figure, *map(published.get, columns)]
            rows.append([task.step.gives, *map(_percent, figures)])
    return ["", "here", *columns], rows


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def write_report(
    paper: Reproduction, tasks: Sequence[Task], state: Mapping[str, FinishedStep], file: Path
) -> None:
    """Write the table, the steps and the training curves as an HTML page."""
    titles, rows = figures(paper, tasks, state)
    steps = []
    plots: list[Plot] = []
    for task in tasks:
        seconds = state[task.step.name].seconds
        steps.append((task.step.gives, task.command, duration(seconds)))
        if (task.out / METRICS).exists():
            plots += _training_curves(task)
    values = {
        "title": paper.title,
        "note": paper.note,
        "titles": titles,
        "rows": rows,
        "steps": steps,
        "plots": plots,
    }
    write_result_text(file, render("reproduction", values))


def _training_curves(task: Task) -> Iterator[Plot]:
    """Yield the loss by step, if there is a step yet."""
    points = []
    texts = []
    for row in read_metrics(task.out):
        if row["event"] == "step":
            points.append((float(row["step"]), row["loss"]))
            texts.append(f"step {row['step']:,}: {row['loss']:.3f}")
    if points:
        yield Plot(
            f"{task.step.name}: {task.step.gives}",
            "step",
            "loss",
            [Line(points, texts)],
            x_end=points[-1][0],
            y_end=round_end(max(loss for _, loss in points)),
        )
