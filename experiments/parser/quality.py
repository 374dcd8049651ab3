"""How well a parser agrees with gold triplets, by a scorer whose protocol is in its docstring."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sgpipe.stages.parse.stage import Parser

LEVELS = ("strict", "relaxed", "pair")
Predictions = dict[str, list[list[str]]]


def load(folder: Path) -> tuple[dict[str, Any], ModuleType]:
    """The captions with gold triplets by id (`gold_dev.json`), and the scorer (`score.py`).

    Raises:
        ValueError: a file is missing, or not of this form.
    """
    try:
        gold = json.loads((folder / "gold_dev.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(error) from None
    if not isinstance(gold, dict) or not all(
        {"caption", "set", "triplets"} <= item.keys() for item in gold.values()
    ):
        raise ValueError("gold_dev.json: not captions by id with their set and triplets")
    path = folder / "score.py"
    spec = importlib.util.spec_from_file_location("parser_score", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path} is missing")
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    return gold, scorer


def predict(gold: Mapping[str, Any], parser: Parser) -> dict[str, Predictions]:
    """Triplets by caption id, with predicates as worded and with their lemmas."""
    parsed = parser.parse(item["caption"] for item in gold.values())
    worded = {
        key: [[t.subject, t.predicate, t.object] for t in triplets]
        for key, triplets in zip(gold, parsed, strict=True)
    }
    lemmas = {
        key: [[t.subject, t.predicate_lemma, t.object] for t in triplets]
        for key, triplets in zip(gold, parsed, strict=True)
    }
    return {"surface": worded, "lemma": lemmas}


def scores(
    gold: Mapping[str, Any], predictions: Predictions, scorer: ModuleType
) -> dict[str, dict[str, Any]]:
    """The scorer's figures for every set of captions and for all."""
    sets = {"all": None} | {
        name: {key for key, item in gold.items() if item["set"] == name}
        for name in sorted({item["set"] for item in gold.values()})
    }
    return {name: scorer.score(gold, predictions, members) for name, members in sets.items()}
