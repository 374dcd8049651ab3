"""The metrics of a training: written (metrics.jsonl, TensorBoard), shown while it runs, and summed up at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sgpipe.training.recipe import BENCHMARKS
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import count

METRICS = "metrics.jsonl"
_NOT_MEASURES = {"event", "epoch", "step", "steps", "compile_error"}
_SECONDS_BETWEEN_LINES = 10.0
MEASURES = (*BENCHMARKS, "ap", "recall@20", "recall@50", "recall@100", "precision", "recall")


class MetricsLog:
    """Appends lines of metrics; use it in a `with` statement.

    Args:
        step: the step from which the training resumes; lines of later steps, which are repeated, are removed.
        enabled: False in workers that do not write metrics.
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
            write_text(self.path, "".join(f"{json.dumps(row)}\n" for row in rows))
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
        """Append one line."""
        if self._file:
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()
        if self._events:
            group = "validation" if row["event"] == "validation" else "train"
            measures = {f"{group}/{name}": value for name, value in row.items() if name not in _NOT_MEASURES}
            self._events.write(measures, row["step"])


class ScalarEvents:
    """An event file for TensorBoard, written synchronously, so that a full disk is an error here and not in a thread.

    Args:
        step: the step from which the training resumes; TensorBoard discards later steps of earlier files.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # it imports boto3 where that is installed
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = Event, scalar
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            event = self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines written so far; an incomplete last line, left by a crash, is ignored."""
    path = out / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


@dataclass(frozen=True)
class TrainSummary:
    """The state of a training when it ends.

    Args:
        epochs: complete ones.
        last: the last line of step metrics.
        validation: the last line of validation metrics.
        best: the best score of a validation, by the measure `best_by`.
        network: the folder of the network to use: that of the best validation, or without validations the last one.
    """

    out: Path
    kind: str
    epochs: int
    steps: int
    images: int
    last: dict[str, Any]
    validation: dict[str, Any]
    best: float | None
    best_by: str
    network: Path


class TrainingDisplay:
    """Shows metrics as they arrive; use it in a `with` statement.

    Args:
        epochs: epochs of the whole training; None: a training, or its validations, by steps.
    """

    def __init__(self, console: Console, epochs: int | None) -> None:
        self.console, self.epochs = console, epochs
        self._last = float("-inf")
        self._compile_error = ""
        self._bar: Progress | None = None

    def __enter__(self) -> TrainingDisplay:
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
        """Show one line of metrics."""
        if (error := row.get("compile_error", self._compile_error)) != self._compile_error:
            self._compile_error = error
            self._print(f"NOTE: training continues without torch.compile: {error}")
        if row["event"] == "validation":
            measures = ", ".join(f"{name} {row[name]:.3f}" for name in ("loss", *MEASURES) if name in row)
            when = f"step {row['step']}" if self.epochs is None else f"epoch {row['epoch']}/{self.epochs}"
            self._print(f"{when} validation: {measures or 'no images'}")
        elif self._bar:
            self._bar.update(self._task, total=row["steps"], completed=row["step"], note=_step_note(row))
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES or row["step"] == row["steps"]:
            self._last = time.monotonic()
            self._print(f"step {row['step']}/{row['steps']}, {_step_note(row)}")

    def _print(self, line: str) -> None:
        self.console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _step_note(row: dict[str, Any]) -> str:
    skipped = f", {count(row['skipped'], 'unreadable image')}" if row["skipped"] else ""
    gpu = ""
    if "gpu_memory" in row:
        utilization = f" {row['gpu_utilization']:.0%} used," if "gpu_utilization" in row else ""
        gpu = f", GPU{utilization} {row['gpu_memory'] / 1e9:.1f} GB"
    return (
        f"epoch {row['epoch']}, loss {row['loss']:.3f}, {row['images_per_second']:.1f} images/s, "
        f"waiting for images {row['waited']:.0%}{gpu}{skipped}"
    )


def print_training(summary: TrainSummary, use: str, console: Console) -> None:
    """Print what was trained and how good it is; `use` says where the network is and how to use it."""
    table = Table(title=Text(str(summary.out)), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("network", summary.kind)
    table.add_row("images", f"{summary.images:,}")
    table.add_row("complete epochs", f"{summary.epochs:,}")
    table.add_row("steps", f"{summary.steps:,}")
    if summary.last:
        table.add_row("loss", f"{summary.last['loss']:.3f}")
        table.add_row("time spent waiting for images", f"{summary.last['waited']:.1%}")
        if "gpu_utilization" in summary.last:
            table.add_row("GPU utilization", f"{summary.last['gpu_utilization']:.1%}")
    for name in MEASURES:
        if name in summary.validation:
            table.add_row(f"validation {name}", f"{summary.validation[name]:.3f}")
    if summary.best is not None:
        table.add_row(f"best validation {summary.best_by}", f"{abs(summary.best):.3f}")
    console.print(table)
    console.print(use, soft_wrap=True)
