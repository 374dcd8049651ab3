"""Visual Genome's official figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation import visual_genome as vg
from rlip_model.evaluation.inputs import Array, table
from rlip_model.evaluation.recall import RECALL_AT
from tests.parity.evaluation.compare import compare
from tests.parity.golden import Report


def check_set(
    inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report, folder: Path
) -> None:
    report.require(
        section, f"boxes overlap by {vg.MATCH_OVERLAP}", inputs["iou_threshold"] == vg.MATCH_OVERLAP
    )
    num_predicates = inputs["num_predicates_with_bg"] - 1
    images = [
        graph_image(image, f"{section}, image {n}", num_predicates)
        for n, image in enumerate(inputs["images"])
    ]
    unseen = zero_shot_triplets(folder, inputs["zeroshot_triplets_file"])
    scores = vg.evaluate_graphs(
        images, inputs["mode"], zero_shot=unseen, num_predicates=num_predicates
    )
    compare(report, section, figures_of(scores, list(expected["mean_recall_list_100"])), expected)


def graph_image(image: dict[str, Any], name: str, num_predicates: int) -> vg.GraphImage:
    truth = image["gt"]
    pred = image["pred"]
    return vg.GraphImage(
        name,
        vg.GroundTruthGraph(
            table(truth["boxes"], (-1, 4), np.float32),
            table(truth["labels"], (-1,), int),
            table(truth["relation_tuple"], (-1, 3), int),
        ),
        vg.PredictedGraph(
            table(pred["boxes"], (-1, 4), np.float32),
            table(pred["pred_labels"], (-1,), int),
            table(pred["pred_scores"], (-1,), np.float32),
            table(pred["rel_pair_idxs"], (-1, 2), int),
            table(pred["pred_rel_scores"], (-1, num_predicates + 1), np.float32),
        ),
    )


def zero_shot_triplets(folder: Path, name: str) -> Array:
    """From the file of this name, beside the folder or above it; without one the packaged ones."""
    paths = [parent / name for parent in (folder, *folder.resolve().parents)]
    path = next((path for path in paths if path.is_file()), None)
    return np.array(json.loads(path.read_text())) if path else vg.vg150_zero_shot()


def figures_of(scores: vg.GraphScores, predicates: list[str]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    for recall, plain, other in (
        (scores.constrained, "", ""),
        (scores.unconstrained, "_nogc", "ng_"),
    ):
        metrics[f"recall{plain}_images"] = len(recall.per_image[RECALL_AT[0]])
        metrics[f"{other}zeroshot_recall_images"] = len(recall.zero_shot_per_image[RECALL_AT[0]])
        for limit in RECALL_AT:
            metrics[f"recall{plain}@{limit}"] = recall.recall(limit)
            metrics[f"{other}mean_recall@{limit}"] = recall.mean_recall(limit)
            metrics[f"{other}zeroshot_recall@{limit}"] = recall.zero_shot_recall(limit)
    metrics.update(
        {f"pair_accuracy@{limit}": share for limit, share in scores.pair_accuracy.items()}
    )
    return {
        "metrics": metrics,
        "mean_recall_list_100": dict(
            zip(predicates, scores.constrained.per_predicate[100].tolist(), strict=True)
        ),
        "ng_mean_recall_list_100": dict(
            zip(predicates, scores.unconstrained.per_predicate[100].tolist(), strict=True)
        ),
        "per_image_recall_100": scores.constrained.per_image[100].tolist(),
    }
