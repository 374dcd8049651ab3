"""Score the caption parser against gold triplets.

    python -m tests.parity.parser FOLDER

FOLDER holds `gold_dev.json` (captions with gold triplets, in sets of short and long captions) and `score.py`,
the scorer whose protocol is in its docstring. Both written forms of a predicate are scored: as the caption
words it, and its lemma. Exits 0 if all bars are passed by both, 1 if one is missed, 2 if FOLDER is not of this form.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from sgpipe.stages.parse.parser import CaptionParser

LEVELS = ("strict", "relaxed", "pair")
# F1 by set of captions; `random` are the short ones.
BARS: dict[str, dict[str, float]] = {
    "random": {"strict": 0.55, "relaxed": 0.72, "pair": 0.76},
    "all": {"strict": 0.42, "relaxed": 0.58, "pair": 0.62},
}
Predictions = dict[str, list[list[str]]]


def load(folder: Path) -> tuple[dict[str, Any], ModuleType]:
    """The gold captions by id, and the scorer.

    Raises:
        ValueError: a file is missing, or not of the form described above.
    """
    try:
        gold = json.loads((folder / "gold_dev.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(error) from None
    if not isinstance(gold, dict) or not all({"caption", "set", "triplets"} <= item.keys() for item in gold.values()):
        raise ValueError("gold_dev.json: not captions by id with their set and triplets")
    path = folder / "score.py"
    spec = importlib.util.spec_from_file_location("parser_score", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path} is missing")
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    return gold, scorer


def predict(gold: Mapping[str, Any], parser: CaptionParser) -> dict[str, Predictions]:
    """Triplets by caption id, with predicates as worded and with their lemmas."""
    parsed = parser.parse(item["caption"] for item in gold.values())
    worded = {key: [[t.subject, t.predicate, t.object] for t in found] for key, found in zip(gold, parsed, strict=True)}
    lemmas = {
        key: [[t.subject, t.predicate_lemma, t.object] for t in found] for key, found in zip(gold, parsed, strict=True)
    }
    return {"surface": worded, "lemma": lemmas}


def scores(gold: Mapping[str, Any], predictions: Predictions, scorer: ModuleType) -> dict[str, dict[str, Any]]:
    """The scorer's figures for every set of captions and for all."""
    sets = {"all": None} | {
        name: {key for key, item in gold.items() if item["set"] == name}
        for name in sorted({item["set"] for item in gold.values()})
    }
    return {name: scorer.score(gold, predictions, members) for name, members in sets.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score the caption parser against gold triplets.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    try:
        gold, scorer = load(folder)
    except ValueError as error:
        print(f"not a folder of gold triplets: {error}", file=sys.stderr)
        return 2
    table = Table("captions", "predicate", "level", "P", "R", "F1", "bar")
    missed = 0
    for form, predictions in predict(gold, CaptionParser()).items():
        for name, result in scores(gold, predictions, scorer).items():
            for level in LEVELS:
                bar = BARS.get(name, {}).get(level, 0.0)
                missed += result[level]["F1"] < bar
                figures = [f"{result[level][key]:.3f}" for key in ("P", "R", "F1")]
                table.add_row(name, form, level, *figures, f"{bar:.2f}" if bar else "")
    Console().print(table)
    print("all bars passed" if not missed else f"{missed} bars missed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
