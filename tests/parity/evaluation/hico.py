"""HICO-DET's official figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlip_model.evaluation.hico import HicoScores, HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import (
    CLASSES,
    NUM_VERBS,
    SETTINGS,
    ClassSplit,
    class_numbers,
    split,
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


def check_set(
    inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report
) -> None:
    images = pair_images(inputs["images"], section, "hois", NUM_VERBS, sparse=True)
    rarity = ClassSplit.from_labels(inputs["rare_triplets"], inputs["non_rare_triplets"])
    divisions: dict[str, ClassSplit] = {name: split(name) for name in SETTINGS}
    divisions.update(dict.fromkeys(("default", "NF", "pair_nms", "known_object"), rarity))
    for name, figures in stable_settings(report, section, expected["settings"], STABLE).items():
        setting = name.removesuffix(STABLE)
        if setting not in divisions:
            report.require(section, f"setting {name!r} is unknown", False)
            continue
        suppression = PairSuppression() if setting == "pair_nms" else None
        scores = evaluate_hico(
            images, HicoSettings(suppression=suppression, known_object=setting == "known_object")
        )
        theirs = {**figures, "per_class": by_class(figures["per_class"], "triplet")}
        compare(report, f"{section}, {name}", figures_of(scores, divisions[setting]), theirs)


def figures_of(scores: HicoScores, division: ClassSplit) -> dict[str, Any]:
    known = scores.per_class.classes
    return {
        "metrics": scores.summary(division),
        "n_rare_evaluated": int(np.isin(division.rare, known).sum()),
        "n_non_rare_evaluated": int(np.isin(division.non_rare, known).sum()),
        "n_triplets_evaluated": len(known),
        "per_class": class_table(scores.per_class, CLASSES),
    }


def check_micro(case: dict[str, Any], section: str, report: Report) -> None:
    images = pair_images(case["images"], section, "hois", NUM_VERBS, sparse=True)
    options = case.get("kw", {})
    rarity = (
        ClassSplit.from_labels(options["rare"], options["non"])
        if "rare" in options
        else split("default")
    )
    scores = evaluate_hico(
        images, HicoSettings(suppression=PairSuppression() if options.get("nms") else None)
    )
    per_class = class_table(scores.per_class, CLASSES)
    triplets = {}
    for number in scores.per_class.classes.tolist():
        name = str(CLASSES.labels(np.array(number)).tolist())
        confidences, correct = scores.per_class.of_class(number)
        curve = {"tp": correct.astype(int).tolist(), "score": confidences.tolist()}
        triplets[name] = {"gt": per_class["gt"][name], "ap": per_class["ap"][name], **curve}
    theirs = case["expected"]["per_triplet"]
    for curve in theirs.values():  # listed in the order of images; ours are sorted as for the curve
        order = np.argsort(-np.array(curve["score"]), kind="stable")
        curve.update(
            {column: [curve[column][place] for place in order] for column in ("score", "tp")}
        )
    ours = {"metrics": scores.summary(rarity), "per_triplet": triplets}
    compare(report, section, ours, case["expected"])


def check_zero_shot_lists(content: dict[str, Any], section: str, report: Report) -> None:
    """The packaged division of the 600 classes."""
    numbers = CLASSES.number(*np.array(content["triplets_600"]).T)
    report.require(section, "600 classes", np.array_equal(numbers, class_numbers()))
    for name in ("UC-RF", "UC-NF", "UO"):
        unseen = set(numbers[content[name]].tolist())
        report.require(section, f"{name}: unseen classes", set(split(name).rare.tolist()) == unseen)
        seen = set(numbers.tolist()) - unseen
        report.require(section, f"{name}: seen classes", set(split(name).non_rare.tolist()) == seen)


def check_small(content: dict[str, Any], section: str, report: Report) -> None:
    """The few classes and images of the model's reference folder."""
    possible = np.array(content["correct_mat"])
    images = pair_images(small_set(content), section, "hois", len(possible))
    rarity = ClassSplit.from_labels(
        content["rare"], content["non_rare"], HicoSettings(possible=possible).classes
    )
    for name, theirs in content["result"].items():
        suppression = PairSuppression() if name == "nms_True" else None
        scores = evaluate_hico(images, HicoSettings(possible=possible, suppression=suppression))
        compare(report, f"{section}, {name}", scores.summary(rarity), theirs)
