"""How captions count beside the layout model: logistic coefficients, fitted on images with
annotated interactions.

`python -m experiments.photographs --evidence` fits them and writes them beside the packaged
weights, with the figures of `tag.method: layout` on the same images by cross-validation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from sgpipe.recipe import PairConfig
from sgpipe.records import Record
from sgpipe.stages.tag.layout.candidates import Candidates, CandidateScorer
from sgpipe.stages.tag.layout.equivalents import says
from sgpipe.stages.tag.layout.evidence import FILE, CaptionEvidence, log_odds
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.utils.atomic import write_text
from sgpipe.utils.hashing import model_sha256
from sgpipe.utils.lemmas import predicate_lemma

FOLDS = 5
_SEED = 48
_RIDGE = 0.1  # towards coefficients that change nothing

Floats = NDArray[np.float64]


def fold_numbers(images: int) -> list[int]:
    """Return the fold of each image."""
    shuffled = np.random.default_rng(_SEED).permutation(images)
    return (shuffled % FOLDS).tolist()


def fit_evidence(
    model: LayoutModel, truth: Sequence[Record], labelled: Sequence[Sequence[Record]]
) -> list[CaptionEvidence]:
    """Fit coefficients on all images but those of a fold, for each fold, and last on all images.

    Args:
        model: the layout model
        truth: the images with annotated relations
        labelled: the same images with candidates of the pair stage, once for each number of
            captions
    """
    folds = fold_numbers(len(truth))
    pair_rows: list[tuple[int, list[float]]] = []
    predicate_rows: list[tuple[int, list[float]]] = []
    scorer = CandidateScorer(model, PairConfig(candidates="image"))
    for records in labelled:
        for fold, annotated, candidates in zip(folds, truth, scorer.score(records), strict=True):
            pairs, predicates = _rows(annotated, candidates)
            pair_rows += [(fold, row) for row in pairs]
            predicate_rows += [(fold, row) for row in predicates]
    excluded = (*range(FOLDS), None)
    return [
        CaptionEvidence(_fit_pairs(pair_rows, fold), _fit_predicates(predicate_rows, fold))
        for fold in excluded
    ]


def _rows(annotated: Record, candidates: Candidates) -> tuple[list[list[float]], list[list[float]]]:
    """Return rows of pairs (log odds, related, whether they interact) and of predicates of pairs
    that do (…).
    """
    verbs: dict[tuple[int, int], set[str]] = {}
    for relation in annotated.relations:
        verbs.setdefault((relation.subject, relation.object), set()).add(
            predicate_lemma(relation.predicate)
        )
    interacts = log_odds(candidates.interacts)
    predicate_odds = log_odds(np.nan_to_num(candidates.says, nan=0.5))
    pairs: dict[tuple[int, int], list[float]] = {}
    predicates = []
    for row, (subject, object_) in enumerate(candidates.pairs.tolist()):
        if candidates.interacts[row] == 0:
            continue
        own = verbs.get((subject, object_))
        related = float(candidates.related[row])
        pairs[subject, object_] = [interacts[row], related, float(own is not None)]
        if own and not np.isnan(candidates.says[row]):
            lemma = predicate_lemma(candidates.predicates[row])
            holds = any(says({lemma}, verb) for verb in own)
            predicates.append([predicate_odds[row], float(candidates.stated[row]), float(holds)])
    return list(pairs.values()), predicates


def _fit_pairs(
    rows: Sequence[tuple[int, list[float]]], excluded: int | None
) -> tuple[float, float, float]:
    odds, related, interacts = _columns(rows, excluded)
    offset, slope, addition = _logistic(
        np.stack([np.ones_like(odds), odds, related], 1), interacts, [0, 1, 0]
    )
    return offset, slope, addition


def _fit_predicates(
    rows: Sequence[tuple[int, list[float]]], excluded: int | None
) -> tuple[float, float, float, float]:
    odds, stated, holds = _columns(rows, excluded)
    columns = np.stack([np.ones_like(odds), odds * (1 - stated), stated, odds * stated], 1)
    offset, slope, addition, stated_slope = _logistic(columns, holds, [0, 1, 0, 1])
    return offset, slope, addition, stated_slope


def _columns(rows: Sequence[tuple[int, list[float]]], excluded: int | None) -> Floats:
    remaining = [row for fold, row in rows if fold != excluded]
    return np.array(remaining, np.float64).reshape(-1, 3).T


def _logistic(columns: Floats, labels: Floats, default: Sequence[float]) -> list[float]:
    """Fit a logistic regression with a ridge towards the default coefficients."""
    start = np.array(default, np.float64)
    signs = 2 * labels - 1

    def loss(coefficients: Floats) -> float:
        margins = signs * (columns @ coefficients)
        away = coefficients - start
        return float(np.logaddexp(0, -margins).sum() + _RIDGE * away @ away / 2)

    return [round(value, 4) for value in minimize(loss, start).x.tolist()]


def write_evidence(
    folder: Path, evidence: CaptionEvidence, images: int, figures: dict[str, Any]
) -> None:
    """Write coefficients beside the weights of a model, with where they come from and what was
    measured.
    """
    (folder / FILE).unlink(missing_ok=True)
    values = {
        "pair": evidence.pair,
        "predicate": evidence.predicate,
        "made_by": "python -m experiments.photographs --evidence",
        "data": (
            f"{images} COCO photographs of V-COCO's test set with 5 human captions each, the dev"
            " half"
        ),
        "weights": model_sha256(str(folder)),
        "figures": figures,
    }
    write_text(folder / FILE, json.dumps(values, indent=1) + "\n")
