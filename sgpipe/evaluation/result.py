"""What an evaluation found, on the screen, as JSON, as a table with a line per class, and as a plot."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import ClassScores
from sgpipe.errors import UserError
from sgpipe.evaluation.curves import precision_recall_svg

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluationResult:
    """summary: the benchmark's numbers by their usual names; per_class: one row per class; notes: what to know.

    tables: further tables by their titles; counts: what was compared, and what was not.
    curves: precision `[101]` over recall (`plot.RECALLS`) by the names of class groups.
    """

    benchmark: str
    settings: Mapping[str, Any]
    summary: Mapping[str, float]
    per_class: Rows
    notes: Sequence[str]
    tables: Mapping[str, Rows] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Array] = field(default_factory=dict)

    def print(self, console: Console) -> None:
        summary = [{"measure": name, "value": value} for name, value in self.summary.items()]
        console.print(_table(f"{self.benchmark}, {len(self.per_class)} classes", summary))
        for title, rows in self.tables.items():
            console.print(_table(title, rows))
        for note in self.notes:
            console.print(f"NOTE: {note}", soft_wrap=True)

    def as_json(self) -> str:
        """Everything; what is no number becomes null."""
        content = {
            "benchmark": self.benchmark,
            "settings": dict(self.settings),
            "summary": self.summary,
            "notes": list(self.notes),
            "per_class": self.per_class,
            **{title.replace(" ", "_"): rows for title, rows in self.tables.items()},
            **({"counts": self.counts} if self.counts else {}),
        }
        return json.dumps(_without_nan(content), indent=1, allow_nan=False)

    def write_json(self, path: Path) -> None:
        _write(path, f"{self.as_json()}\n")

    def write_csv(self, path: Path) -> None:
        """The classes; what is no number is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.per_class[0]) if self.per_class else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_without_nan(self.per_class))
        _write(path, text.getvalue())

    def write_plot(self, path: Path) -> None:
        """Precision over recall of the class groups, as SVG."""
        _write(path, precision_recall_svg(self.benchmark, self.curves))


def class_rows(scores: ClassScores, names: Sequence[Mapping[str, str]]) -> Rows:
    """One row per class; `names` are the columns that say which it is."""
    columns = {
        "ground_truth": scores.targets,
        "detections": scores.detections,
        "hits": scores.true_positives,
        "average_precision": scores.average_precision,
        "max_recall": scores.max_recall,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{**name, **dict(zip(columns, own, strict=True))} for name, own in zip(names, values, strict=True)]


def _table(title: str, rows: Rows) -> Table:
    """The columns are the first row's."""
    table = Table(title=title)
    for name, value in (rows[0] if rows else {}).items():
        table.add_column(name.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, text: str) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
