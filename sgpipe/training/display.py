"""The progress of a training (a live bar on a terminal, plain lines elsewhere) and its final summary."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sgpipe.training.recipe import BENCHMARKS

_SECONDS_BETWEEN_LINES = 10.0
MEASURES = (*BENCHMARKS, "ap", "recall@20", "recall@50", "recall@100", "precision", "recall")


@dataclass(frozen=True)
class TrainSummary:
    """The state of a training when it ends.

    Args:
        epochs: complete ones.
        last: the last line of step metrics.
        validation: the last line of validation metrics.
        best: the best score of a validation, by the measure `best_by`.
        network: the folder of the network to use: that of the best validation if one is better than others, otherwise
            the last one.
        tied: the value of `best_by` that all validations have, to three decimals, so that none of them is best; None if
            they differ.
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
    tied: float | None = None


class TrainingDisplay:
    """Shows metrics as they arrive; use it in a `with` statement.

    Args:
        epochs: epochs of the whole training; None: a training, or its validations, by steps.
    """

    def __init__(self, console: Console, epochs: int | None) -> None:
        self.console, self.epochs = console, epochs
        self._began, self._first_step = time.monotonic(), 0
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
            self._print(f"step {row['step']}/{row['steps']}, {_step_note(row)}{self._left(row)}")

    def _left(self, row: dict[str, Any]) -> str:
        """The time left at the speed since the first line; empty: unknown, or done."""
        if not self._first_step:
            self._first_step, self._began = row["step"], time.monotonic()
            return ""
        if row["step"] == row["steps"]:
            return ""
        seconds_per_step = (time.monotonic() - self._began) / max(row["step"] - self._first_step, 1)
        seconds = int(seconds_per_step * (row["steps"] - row["step"]))
        return f", {seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d} left"

    def _print(self, line: str) -> None:
        self.console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _step_note(row: dict[str, Any]) -> str:
    images = "1 unreadable image" if row["skipped"] == 1 else f"{row['skipped']} unreadable images"
    skipped = f", {images}" if row["skipped"] else ""
    return (
        f"epoch {row['epoch']}, loss {row['loss']:.3f}, {row['images_per_second']:.1f} images/s, "
        f"waiting for images {row['waited']:.0%}{_gpu_note(row)}{skipped}"
    )


def _gpu_note(row: dict[str, Any]) -> str:
    if "gpu_memory" not in row:
        return ""
    utilization = f" {row['gpu_utilization']:.0%} used," if "gpu_utilization" in row else ""
    return f", GPU{utilization} {row['gpu_memory'] / 1e9:.1f} GB"


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
    if summary.best is not None and summary.tied is None:
        table.add_row(f"best validation {summary.best_by}", f"{abs(summary.best):.3f}")
    console.print(table)
    if summary.tied is not None:
        console.print(
            f"NOTE: validation {summary.best_by} was {summary.tied:.3f} each time, so no checkpoint is better than "
            "another: use the last one",
            soft_wrap=True,
        )
    console.print(use, soft_wrap=True)
