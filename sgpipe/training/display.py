"""A training on the terminal: a live bar, or plain lines anywhere else; and its last screen.

Metrics of a training as files: metrics.jsonl, and event files for TensorBoard.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sgpipe.training.run import TrainSummary
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_SECONDS_BETWEEN_LINES = 10.0
MEASURES = ("ap", "recall@20", "recall@50", "recall@100", "precision", "recall")


class Display:
    """Shows lines of metrics as they come; use it in a `with` statement."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console, self.epochs = console, epochs
        self._began, self._first_step = time.monotonic(), 0
        self._last = float("-inf")
        self._bar: Progress | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
            )
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=None, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """One line of metrics."""
        if row["event"] == "validation":
            measures = ", ".join(f"{name} {row[name]:.3f}" for name in ("loss", *MEASURES) if name in row)
            self._print(f"epoch {row['epoch']}/{self.epochs} validated: {measures or 'no pictures'}")
        elif self._bar:
            self._bar.update(self._task, total=row["steps"], completed=row["step"], note=note(row))
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES or row["step"] == row["steps"]:
            self._last = time.monotonic()
            self._print(f"step {row['step']}/{row['steps']}, {note(row)}, {self._left(row)} left")

    def _left(self, row: dict[str, Any]) -> str:
        """Time left at the pace since the first line."""
        if not self._first_step:
            self._first_step, self._began = row["step"], time.monotonic()
            return "?"
        pace = (time.monotonic() - self._began) / max(row["step"] - self._first_step, 1)
        seconds = int(pace * (row["steps"] - row["step"]))
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"

    def _print(self, line: str) -> None:
        self.console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def note(row: dict[str, Any]) -> str:
    skipped = f", {row['skipped']} pictures unreadable" if row["skipped"] else ""
    return (
        f"epoch {row['epoch']}, loss {row['loss']:.3f}, {row['images_per_second']:.1f} images/s, "
        f"waiting {row['waited']:.0%}{skipped}"
    )


def print_training(summary: TrainSummary, use: str, console: Console) -> None:
    """What was trained, how good it is, where it is; `use`: what to do with it."""
    table = Table(title=Text(str(summary.out)), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("network", summary.kind)
    table.add_row("pictures", f"{summary.pictures:,}")
    table.add_row("epochs", f"{summary.epochs:,}")
    table.add_row("steps", f"{summary.steps:,}")
    if summary.last:
        table.add_row("loss", f"{summary.last['loss']:.3f}")
        table.add_row("time spent waiting for pictures", f"{summary.last['waited']:.1%}")
    for name in MEASURES:
        if name in summary.validation:
            table.add_row(f"validation {name}", f"{summary.validation[name]:.3f}")
    if summary.best is not None:
        table.add_row(f"best validation {summary.best_by}", f"{abs(summary.best):.3f}")
    console.print(table)
    console.print(use, soft_wrap=True)


METRICS = "metrics.jsonl"
_NOT_MEASURES = {"event", "epoch", "step", "steps"}


class MetricsLog:
    """Appends lines of metrics; use it in a `with` statement.

    Args:
        step: where the training goes on; lines of later steps, which are done again, are removed.
        enabled: False in workers that leave it to another one.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool, enabled: bool = True) -> None:
        self.path, self.step = out / METRICS, step
        self.tensorboard = out / "tensorboard" if tensorboard else None
        self.enabled = enabled
        self._file: TextIO | None = None
        self._events: ScalarEvents | None = None

    def __enter__(self) -> MetricsLog:
        if self.enabled:
            rows = [row for row in read_metrics(self.path.parent) if row["step"] <= self.step]
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            os.replace(temporary, self.path)
            self._file = self.path.open("a", encoding="utf-8")
            if self.tensorboard:
                self._events = ScalarEvents(self.tensorboard, self.step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, self._events):
            if file:
                file.close()

    def write(self, row: dict[str, Any]) -> None:
        """One line."""
        if self._file:
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()
        if self._events:
            group = "validation" if row["event"] == "validation" else "train"
            measures = {f"{group}/{name}": value for name, value in row.items() if name not in _NOT_MEASURES}
            self._events.write(measures, row["step"])


class ScalarEvents:
    """A file of numbers for TensorBoard, written at once: a full disk is an error here, not in a thread somewhere.

    Args:
        step: where the training goes on; TensorBoard forgets what earlier files say of later steps.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines so far; one that was cut short by a crash is left out."""
    path = out / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]
