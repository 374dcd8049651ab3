"""The results of the experiments: a JSON line per trained network and per set of labels, in results/NAME.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from experiments.plan import Experiment, Plan
from sgpipe.utils.hashing import fingerprint

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


class Results:
    """The lines of a plan's experiments, in a folder. Several processes may append to it."""

    def __init__(self, plan: Plan, folder: Path = RESULTS) -> None:
        self.plan, self.folder = plan, folder

    def append(self, name: str, row: Row) -> None:
        """Add a line to an experiment, in one write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / f"{name}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{json.dumps(row)}\n".encode())
        finally:
            os.close(file)

    def current(self, name: str) -> list[Row]:
        """The lines of an experiment that belong to the plan as it is now; of equal ones the last."""
        experiment = self.plan.experiments[name]
        sets = {each: self.plan.set_key(each) for each in experiment.compared_sets}
        rows: dict[tuple[Any, ...], Row] = {}
        for row in self._lines(name):
            if "labels" in row and sets.get(row["labels"]) == row["key"]:
                rows["labels", row["labels"]] = row
            elif "compared" in row:
                item = (row["stage"], row["measure"], *row["compared"])
                if row["key"] == self.comparison_key(experiment, item):
                    rows[item] = row
            elif "arm" in row and row["key"] in self._keys(experiment, row["arm"], row["seed"]):
                rows[row["arm"], row["seed"], row["stage"]] = row
        return list(rows.values())

    def comparison_key(self, experiment: Experiment, item: tuple[str, ...]) -> str:
        """A hash of all networks of two arms; `item`: stage, measure and both arms."""
        keys = [self._keys(experiment, arm, seed) for arm in item[2:] for seed in range(experiment.seeds)]
        return fingerprint({"item": item, "networks": keys})

    def _keys(self, experiment: Experiment, arm: str, seed: int) -> list[str]:
        """The hashes of the stages of an arm; none if the experiment has no such arm or seed."""
        known = arm in experiment.arms and seed < experiment.seeds
        return self.plan.stage_keys(experiment.arms[arm], seed) if known else []

    def _lines(self, name: str) -> list[Row]:
        """All lines; an incomplete last one, left by a crash, is ignored."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("}\n")]
