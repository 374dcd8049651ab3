"""What an evaluation found, on the screen, as JSON and as a table with a line per class."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.scores import ClassScores

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluationResult:
    """summary: the benchmark's numbers by their usual names; per_class: one row per class; notes: what to know."""

    benchmark: str
    settings: Mapping[str, Any]
    summary: Mapping[str, float]
    per_class: Rows
    notes: Sequence[str]

    def print(self, console: Console) -> None:
        table = Table("measure", "value", title=f"{self.benchmark}, {len(self.per_class)} classes")
        for name, value in self.summary.items():
            table.add_row(name, "–" if math.isnan(value) else f"{value:.4f}")
        console.print(table)
        for note in self.notes:
            console.print(f"NOTE: {note}", soft_wrap=True)

    def write_json(self, path: Path) -> None:
        """Everything; what is no number becomes null."""
        content = {
            "benchmark": self.benchmark,
            "settings": dict(self.settings),
            "summary": {name: None if math.isnan(value) else value for name, value in self.summary.items()},
            "notes": list(self.notes),
            "per_class": self.per_class,
        }
        _write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def write_csv(self, path: Path) -> None:
        """The classes."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.per_class[0]) if self.per_class else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.per_class)
        _write(path, text.getvalue())


def class_rows(scores: ClassScores, names: Sequence[Mapping[str, str]]) -> Rows:
    """One row per class; `names` are the columns that say which it is."""
    columns = {
        "ground_truth": scores.truths,
        "detections": scores.detections,
        "hits": scores.hits,
        "average_precision": scores.average_precision,
        "max_recall": scores.max_recall,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{**name, **dict(zip(columns, own, strict=True))} for name, own in zip(names, values, strict=True)]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
