"""The metrics of a training: written (metrics.jsonl, TensorBoard), shown while it runs, and summed
up at its end.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.training.recipe import BENCHMARKS
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import Progress, count, print_rows

Row: TypeAlias = dict[str, Any]  # a line of metrics, by name: numbers, and some texts
METRICS = "metrics.jsonl"
_FIELDS = {
    "step": ("epoch", "step", "steps", "loss", "images_per_second", "waited", "skipped"),
    "validation": ("epoch", "step"),
}
_NOT_MEASURES = {"event", "epoch", "step", "steps", "compile_error"}
MEASURES = (*BENCHMARKS, "ap", "recall@20", "recall@50", "recall@100", "precision", "recall")


@contextmanager
def metrics_log(out: Path, step: int, tensorboard: bool) -> Iterator[Callable[[Row], None]]:
    """Yield a function that appends a line of metrics, for TensorBoard too if asked for. Lines of
    later steps than `step`, from which the training resumes and which are repeated, are removed.
    """
    rows = [row for row in read_metrics(out) if row["step"] <= step]
    write_text(out / METRICS, "".join(f"{json.dumps(row)}\n" for row in rows))
    board = (
        _tensorboard(out / "tensorboard", step) if tensorboard else nullcontext(lambda row: None)
    )
    with (out / METRICS).open("a", encoding="utf-8") as file, board as show:

        def write(row: Row) -> None:
            print(json.dumps(row), file=file, flush=True)
            show(row)

        yield write


@contextmanager
def _tensorboard(folder: Path, step: int) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes to an event file at once: thus a full disk is an error here, not
    in a thread.
    """
    # It imports boto3 where that is installed.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    folder.mkdir(parents=True, exist_ok=True)
    with closing(EventsWriter(str(folder / "events"), f".{step}")) as writer:
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

        def write(row: Row) -> None:
            group = "validation" if row["event"] == "validation" else "train"
            for name, value in row.items():
                if name not in _NOT_MEASURES:
                    summary = scalar(f"{group}/{name}", value)
                    writer.write_event(
                        Event(wall_time=time.time(), step=row["step"], summary=summary)
                    )
            writer.flush()

        yield write


def read_metrics(out: Path) -> list[Row]:
    """Return the lines so far, without an incomplete last one, left by a crash.

    Raises:
        UserError: one is damaged.
    """
    path = out / METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        for row in rows:
            for name in {*_FIELDS[row["event"]], *row} - {"event", "compile_error"}:
                math.isnan(row[name])  # raises TypeError if it is not a number
        return rows
    except (ValueError, LookupError, TypeError, OverflowError):
        raise UserError(f"{path} is damaged: delete it, or its damaged lines") from None


@dataclass(frozen=True)
class TrainSummary:
    """The state of a training when it ends: complete epochs, and the last lines of step and of
    validation metrics.

    `network` is the folder to use: that of the best validation (by `best_by`), or without
    validations the last one.
    """

    out: Path
    kind: str
    epochs: int
    steps: int
    images: int
    last: Row
    validation: Row
    best: float | None
    best_by: str
    network: Path


@contextmanager
def training_display(progress: Progress) -> Iterator[Callable[[Row], None]]:
    compile_error = ""
    with progress.bar("training") as bar:

        def show(row: Row) -> None:
            nonlocal compile_error
            error = row.get("compile_error", compile_error)
            if error != compile_error:
                compile_error = error
                progress.say(f"NOTE: training continues without torch.compile: {error}")
            if row["event"] == "validation":
                progress.say(_describe_validation(row))
            else:
                bar(row["step"], row["steps"], _describe_step(row))

        yield show


def _describe_validation(row: Row) -> str:
    measures = [f"{name} {row[name]:.3f}" for name in ("loss", *MEASURES) if name in row]
    described = ", ".join(measures) or "no images"
    return f"epoch {row['epoch']}, step {row['step']} validation: {described}"


def _describe_step(row: Row) -> str:
    parts = [
        f"epoch {row['epoch']}",
        f"loss {row['loss']:.3f}",
        f"{row['images_per_second']:.1f} images/s",
        f"waiting for images {row['waited']:.0%}",
    ]
    if "gpu_memory" in row:
        parts.append(f"GPU {row['gpu_memory'] / 1e9:.1f} GB")
    if row["skipped"]:
        parts.append(count(row["skipped"], "unreadable image"))
    return ", ".join(parts)


def print_training(summary: TrainSummary, use: str, console: Console) -> None:
    """Print what was trained and how good it is; `use` says where the network is and how to use
    it.
    """
    last = summary.last
    validation = summary.validation
    rows = {
        "network": summary.kind,
        "images": f"{summary.images:,}",
        "complete epochs": f"{summary.epochs:,}",
        "steps": f"{summary.steps:,}",
    }
    if last:
        rows["loss"] = f"{last['loss']:.3f}"
        rows["time spent waiting for images"] = f"{last['waited']:.1%}"
    if "gpu_utilization" in last:
        rows["GPU utilization"] = f"{last['gpu_utilization']:.1%}"
    for name in MEASURES:
        if name in validation:
            rows[f"validation {name}"] = f"{validation[name]:.3f}"
    if summary.best is not None:
        rows[f"best validation {summary.best_by}"] = f"{abs(summary.best):.3f}"
    print_rows(str(summary.out), rows, console)
    console.print(use, soft_wrap=True)
