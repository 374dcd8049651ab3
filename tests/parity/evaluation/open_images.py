"""Open Images' official figures."""

from __future__ import annotations

from typing import Any

from rlip_model.evaluation.open_images import (
    OpenImagesScores,
    OpenImagesSettings,
    evaluate_open_images,
)
from rlip_model.evaluation.suppression import PairSuppression
from tests.parity.evaluation.compare import (
    by_class,
    class_table,
    compare,
    pair_images,
    small_set,
    stable_settings,
)
from tests.parity.golden import Report

STABLE = "_stable_sort"
REPAIRED = "nms_phrase_order_repaired"
LABELS_AT_MOST = 1000  # micro cases don't say how many there are


def settings_of(name: str, num_objects: int, num_predicates: int) -> OpenImagesSettings:
    suppression = PairSuppression() if name in ("nms", REPAIRED) else None
    return OpenImagesSettings(
        num_objects, num_predicates, suppression, "repaired" if name == REPAIRED else "published"
    )


def check_set(
    inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report
) -> None:
    sizes = len(inputs["object_names"]), len(inputs["predicate_names"])
    images = pair_images(inputs["images"], section, "rels", sizes[1])
    for name, figures in stable_settings(report, section, expected["settings"], STABLE).items():
        setting = name.removesuffix(STABLE)
        if setting not in ("default", "nms", REPAIRED):
            report.require(section, f"setting {name!r} is unknown", False)
            continue
        settings = settings_of(setting, *sizes)
        ours = figures_of(evaluate_open_images(images, settings), settings)
        theirs = {
            key: by_class(value, "triplet_sub_obj_pred") if key.startswith("per_class") else value
            for key, value in figures.items()
        }
        compare(report, f"{section}, {name}", ours, theirs)


def figures_of(scores: OpenImagesScores, settings: OpenImagesSettings) -> dict[str, Any]:
    return {
        "metrics": scores.summary(),
        "per_class_rel_top100": class_table(scores.relations[100], settings.classes),
        "per_class_phr_top100": class_table(scores.phrases[100], settings.classes),
    }


def check_micro(case: dict[str, Any], section: str, report: Report) -> None:
    pairs = [scores for image in case["images"] for scores in image["pred"]["verb_scores"]]
    num_predicates = len(pairs[0]) if pairs else LABELS_AT_MOST
    images = pair_images(case["images"], section, "rels", num_predicates)
    setting = "nms" if case.get("kw", {}).get("nms") else "default"
    summary = evaluate_open_images(
        images, settings_of(setting, LABELS_AT_MOST, num_predicates)
    ).summary()
    theirs = case["expected"]
    compare(
        report, section, {name: value for name, value in summary.items() if name in theirs}, theirs
    )


def check_small(content: dict[str, Any], section: str, report: Report) -> None:
    """The few classes and images of the model's reference folder."""
    num_predicates = len(content["preds"][0]["verb_scores"][0])
    images = pair_images(small_set(content), section, "rels", num_predicates)
    for name, theirs in content["result"].items():
        settings = settings_of(
            "nms" if name == "nms_True" else "default", LABELS_AT_MOST, num_predicates
        )
        compare(
            report, f"{section}, {name}", evaluate_open_images(images, settings).summary(), theirs
        )
