"""Metrics of a training as files: metrics.jsonl, and event files for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tensorboardX import SummaryWriter

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
        self._events: SummaryWriter | None = None

    def __enter__(self) -> MetricsLog:
        if self.enabled:
            rows = [row for row in read_metrics(self.path.parent) if row["step"] <= self.step]
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            os.replace(temporary, self.path)
            self._file = self.path.open("a", encoding="utf-8")
            if self.tensorboard:
                self._events = SummaryWriter(str(self.tensorboard), purge_step=self.step + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()

    def write(self, row: dict[str, Any]) -> None:
        """One line."""
        if self._file:
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()
        if self._events:
            group = "validation" if row["event"] == "validation" else "train"
            for name, value in row.items():
                if name not in _NOT_MEASURES:
                    self._events.add_scalar(f"{group}/{name}", value, row["step"])
            self._events.flush()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines so far; one that was cut short by a crash is left out."""
    path = out / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]
