"""Evaluate a judge of the miniworld: `python -m experiments.miniworld.judge_quality --judge
FOLDER`.

The packaged models label images of the val split with threshold 0, so that the run has every
candidate. The judge gives each a score. Exact ground truth says how good the R-Tagger, the judge,
both, and neither are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from experiments.command import run_command
from experiments.miniworld.network_quality import print_tables
from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality import Relations, area, label_quality, precision_recall
from sgpipe.generation.run import generate
from sgpipe.generation.scoring import score_run, vlm_identity, vlm_scorer
from sgpipe.recipe import TagConfig, load_recipe
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.precision import JudgedRelations, area_under_roc
from sgpipe.storage.run_folder import GroundTruth, ground_truth_of
from sgpipe.storage.shards import VLM_SCORE
from sgpipe.utils.console import Progress

_RECALLS = (0.80, 0.84, 0.86)
_DOUBTED = (0.02, 0.1, 0.5)  # scores below which labels are dropped


@dataclass(frozen=True)
class Candidates:
    """Every candidate of a run, arrays `[candidates]`; `targets`: how many relations recall
    counts.
    """

    relations: Relations
    vlm_score: Array
    targets: int

    def ranked_by(self, score: Array, is_kept: Array | None = None) -> Relations:
        """The candidates, or those that are kept, with a score as their confidence."""
        relations = replace(self.relations, confidence=score.astype(np.float32))
        return relations if is_kept is None else relations[is_kept]


@dataclass(frozen=True)
class MethodQuality:
    """The relations of a method with a confidence of 0.2 or more, and its ranking of all
    candidates.
    """

    method: str
    predicted: int
    precision: float
    recall: float
    average_precision: float
    auc: float | None
    calibration_error: float | None


def read_candidates(run: Path, truth: GroundTruth) -> Candidates:
    """The candidates of a run that was made with threshold 0 and has a score of all of them.

    Raises UserError: some have none.
    """
    by_tagger, by_judge = (
        label_quality(run, truth, source=source) for source in ("relations", "vlm_score")
    )
    if len(by_tagger.relations) != len(by_judge.relations):
        raise UserError(f"{run} has relations without another model's score")
    return Candidates(
        by_tagger.relations, by_judge.relations.confidence, len(by_tagger.target_images)
    )


def measure_methods(candidates: Candidates) -> list[MethodQuality]:
    """How good it is to keep what the R-Tagger, the judge, both (the product), or nobody finds
    probable.
    """
    tagger = candidates.relations.confidence
    vlm_score = candidates.vlm_score
    scores = {
        "R-Tagger": tagger,
        "judge (clip)": vlm_score,
        "R-Tagger × judge": tagger * vlm_score,
        "all": np.ones_like(tagger),
    }
    return [
        _measure(name, candidates.ranked_by(score), candidates.targets)
        for name, score in scores.items()
    ]


def _measure(name: str, relations: Relations, targets: int) -> MethodQuality:
    confident = relations.above(TRAINING_CONFIDENCE)
    judged = JudgedRelations(relations.confidence, relations.true_positive)
    return MethodQuality(
        method=name,
        predicted=len(confident),
        precision=float(confident.true_positive.mean()) if len(confident) else float("nan"),
        recall=float(confident.matched.sum() / targets),
        average_precision=area(*precision_recall(relations, targets), targets),
        auc=area_under_roc(relations.confidence, relations.true_positive),
        calibration_error=judged.calibration.calibration_error,
    )


def precision_at(relations: Relations, recall: float, targets: int) -> float | None:
    """The precision of the fewest most confident relations that have a recall; None: all of them
    have a lower one.
    """
    order = np.argsort(-relations.confidence, kind="stable")
    matched = np.cumsum(relations.matched[order])
    enough = np.flatnonzero(matched >= recall * targets)
    if not len(enough):
        return None
    return float(relations.true_positive[order][: enough[0] + 1].mean())


def filtered_rows(candidates: Candidates) -> list[list[str]]:
    """Table cells: precision at equal recall without and with a filter by the score; first the
    header.
    """
    rows = [
        ["labels of the R-Tagger", *(f"precision at recall {recall:.0%}" for recall in _RECALLS)]
    ]
    for name, minimum in (
        ("all", 0.0),
        *((f"score ≥ {minimum:g}", minimum) for minimum in _DOUBTED),
    ):
        ranked = candidates.ranked_by(
            candidates.relations.confidence, candidates.vlm_score >= minimum
        )
        precisions = [precision_at(ranked, recall, candidates.targets) for recall in _RECALLS]
        rows.append([name, *("–" if value is None else f"{value:.1%}" for value in precisions)])
    both = candidates.ranked_by(candidates.relations.confidence * candidates.vlm_score)
    precisions = [precision_at(both, recall, candidates.targets) for recall in _RECALLS]
    rows.append(
        [
            "ranked by confidence × score",
            *("–" if value is None else f"{value:.1%}" for value in precisions),
        ]
    )
    return rows


def method_rows(methods: list[MethodQuality]) -> list[list[str]]:
    """Table cells; the first row is the header."""
    head = ["who decides", "relations", "precision", "recall", "AP", "AUC", "ECE"]
    return [head] + [
        [
            method.method,
            f"{method.predicted:,}",
            f"{method.precision:.1%}",
            f"{method.recall:.1%}",
            f"{method.average_precision:.3f}",
            *(
                "–" if value is None else f"{value:.3f}"
                for value in (method.auc, method.calibration_error)
            ),
        ]
        for method in methods
    ]


def judge_run(run: Path, judge: Path, out: Path, progress: Progress) -> None:
    """Copy a run with the judge's scores of its relations."""
    config = TagConfig(method="clip", tagger=str(judge), device="cpu")
    score_run(run, out, VLM_SCORE, partial(vlm_scorer, config, out), vlm_identity(config), progress)


def main(
    judge: Annotated[Path, typer.Option(help="folder of the judge")],
    run: Annotated[
        Path | None,
        typer.Option(
            help="a miniworld run with tag.threshold=0; default: a new one that is not kept"
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="number of images of a new run")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print how good the labels of the miniworld are with a judge, without one, and with the judge
    alone.
    """
    progress = Progress(Console(stderr=True))
    console = Console()
    with TemporaryDirectory() as folder:
        if run is None:
            run = Path(folder) / "run"
            drawn = {"images": images, "seed": seed, "split": "val"}
            generate(
                load_recipe("miniworld", {"source.miniworld": drawn, "tag.threshold": 0}),
                run,
                progress,
            )
        truth = ground_truth_of(run)
        if truth is None:
            raise UserError(f"{run} has no ground truth of its own")
        judge_run(run, judge, Path(folder) / "judged", progress)
        candidates = read_candidates(Path(folder) / "judged", truth)
    print_tables(console, method_rows(measure_methods(candidates)), filtered_rows(candidates))


if __name__ == "__main__":
    run_command(main)
