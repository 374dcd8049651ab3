"""The results of the experiments: a JSON line per trained network and per set of labels, in
results/NAME.jsonl.

A line has the key of the settings that decide it, and the commit of the code that made it. A line
of other settings does not count; one of other code does, but the runner says so.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.code_state import ROOT, commit
from experiments.plan import Experiment, Plan
from sgpipe.utils.hashing import fingerprint

RESULTS = ROOT / "experiments" / "results"
Row = dict[str, Any]


class Results:
    """The lines of a plan's experiments, in a folder. Several processes may append to it."""

    def __init__(self, plan: Plan, folder: Path = RESULTS) -> None:
        self.plan = plan
        self.folder = folder

    def append(self, name: str, row: Row) -> None:
        """Add a line to an experiment, in one write; after a line that a crash cut, on a new
        one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / f"{name}.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            start = b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""
            os.write(file, start + f"{json.dumps({**row, 'commit': commit()})}\n".encode())
        finally:
            os.close(file)

    def current(self, name: str) -> list[Row]:
        """The lines of an experiment that belong to the plan as it is now; of equal ones the
        last.
        """
        experiment = self.plan.experiments[name]
        sets = {
            (labels, seed): self.plan.set_key(labels, seed)
            for labels, seed in experiment.label_sets(self.plan)
        }
        rows: dict[tuple[Any, ...], Row] = {}
        for row in self._lines(name):
            if "labels" in row:
                item = (row["labels"], row.get("seed", 0))
                if sets.get(item) == row["key"]:
                    rows["labels", *item] = row
            elif "compared" in row:
                item = (row["stage"], row["measure"], *row["compared"])
                if row["key"] == self.comparison_key(experiment, item, row.get("seeds")):
                    rows[*item, row.get("seeds")] = row
            elif "arm" in row and row["key"] == self._keys(experiment, row["arm"], row["seed"]).get(
                row["stage"]
            ):
                rows[row["arm"], row["seed"], row["stage"]] = row
        return list(rows.values())

    def comparison_key(
        self, experiment: Experiment, item: tuple[str, ...], seeds: int | None = None
    ) -> str:
        """A hash of all networks of two arms, or of the first `seeds`; `item`: stage, measure and
        both arms.
        """
        keys = [
            self._keys(experiment, arm, seed)
            for arm in item[2:]
            for seed in experiment.seeds_of(arm)[:seeds]
        ]
        return fingerprint({"item": item, "networks": [list(key.values()) for key in keys]})

    def _keys(self, experiment: Experiment, arm: str, seed: int) -> dict[str, str]:
        """The hash of each stage of an arm by its name; none if the experiment has no such arm or
        seed.
        """
        if arm not in experiment.arms or seed not in experiment.seeds_of(arm):
            return {}
        stages = experiment.arms[arm]
        return dict(
            zip((stage.name for stage in stages), self.plan.stage_keys(stages, seed), strict=True)
        )

    def _lines(self, name: str) -> list[Row]:
        """All lines; those that a crash cut are ignored."""
        path = self.folder / f"{name}.jsonl"
        rows: list[Row] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows
