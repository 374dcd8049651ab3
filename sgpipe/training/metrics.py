"""Write the metrics of a training: metrics.jsonl, and event files for TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from sgpipe.utils.atomic import write_text

METRICS = "metrics.jsonl"
_NOT_MEASURES = {"event", "epoch", "step", "steps", "compile_error"}


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
    """The lines written so far; an incomplete last line, left by a crash, is ignored."""
    path = out / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]
