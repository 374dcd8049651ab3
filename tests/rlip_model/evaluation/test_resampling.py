"""Resampled scores beside evaluating repeated and left-out images; scores are equal only between
images.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import ClassSplit
from rlip_model.evaluation.inputs import Array, EvaluationImage
from rlip_model.evaluation.matching import NO_MATCH
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.evaluation.precision import area, coco_point, eleven_point
from rlip_model.evaluation.scores import ClassScores, Tally
from rlip_model.evaluation.vcoco import evaluate_vcoco
from rlip_model.evaluation.vcoco_files import (
    people_images,
    read_actions,
    read_people,
    read_predicted_people,
)
from rlip_model.evaluation.visual_genome import evaluate_graphs, vg150_zero_shot
from tests.parity.evaluation.compare import pair_images
from tests.parity.evaluation.visual_genome import graph_image

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation"
IMAGES = 40
# of Open Images
OBJECTS = 601
PREDICATES = 30


def golden(name: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress((GOLDEN / f"{name}.inputs.json.gz").read_bytes())))


def draws(images: int) -> list[Array]:
    """How often each image occurs: once, and as in resamples."""
    rng = np.random.default_rng(7)
    resamples = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(5)]
    return [np.ones(images, dtype=int), *resamples, np.zeros(images, dtype=int)]


def pairs() -> list[EvaluationImage]:
    images = []
    for image in pair_images(
        golden("openimages/main300")["images"][:IMAGES], "image", "rels", PREDICATES
    ):
        scores = image.predicted.scores
        scores = scores + 1e-5 * np.arange(scores.size, dtype=np.float32).reshape(scores.shape)
        images.append(replace(image, predicted=replace(image.predicted, scores=scores)))
    return images


def repeated(images: Sequence[Any], counts: Array) -> list[Any]:
    return [image for image, count in zip(images, counts, strict=True) for _ in range(count)]


def check_resampled(
    images: Sequence[Any], evaluate: Callable[[Sequence[Any]], Any], *split: ClassSplit
) -> None:
    scores = evaluate(images)
    for counts in draws(len(images)):
        summary, expected = (
            benchmark_scores.summary(*split)
            for benchmark_scores in (scores.resampled(counts), evaluate(repeated(images, counts)))
        )
        assert summary.keys() == expected.keys()
        assert list(summary.values()) == pytest.approx(
            list(expected.values()), abs=1e-12, nan_ok=True
        )


def test_hico() -> None:
    settings = HicoSettings(np.ones((PREDICATES, OBJECTS)))
    classes = np.arange(PREDICATES * OBJECTS)
    division = ClassSplit(classes[::2], classes[1::2])
    check_resampled(pairs(), lambda images: evaluate_hico(images, settings), division)


def test_open_images() -> None:
    settings = OpenImagesSettings(OBJECTS, PREDICATES)
    check_resampled(pairs(), lambda images: evaluate_open_images(images, settings))


def test_vcoco() -> None:
    inputs = golden("vcoco/main300")
    actions = read_actions(inputs["vsrl"])
    people = read_people(inputs["coco"], inputs["vsrl"])
    chosen = {image: people[image] for image in list(dict.fromkeys(inputs["image_ids"]))[:IMAGES]}
    people_found = [
        detection for detection in inputs["detections"] if detection["image_id"] in chosen
    ]
    images = list(people_images(chosen, read_predicted_people(people_found, actions), actions))
    scores = evaluate_vcoco(images, actions)
    for counts in draws(len(images)):
        if counts.any():
            expected = evaluate_vcoco(repeated(images, counts), actions)
            resampled = scores.resampled(counts)
            assert resampled.agent_mean() == pytest.approx(expected.agent_mean(), abs=1e-12)
            for which in (1, 2):
                precisions = pytest.approx(expected.role_precisions(which), abs=1e-12, nan_ok=True)
                assert resampled.role_precisions(which) == precisions
            assert resampled.positives.tolist() == expected.positives.tolist()


def test_visual_genome() -> None:
    images = [
        graph_image(image, str(number), 50)
        for number, image in enumerate(golden("vg/sgcls")["images"][:IMAGES])
    ]
    assert evaluate_graphs(images, "sgcls").pair_accuracy
    check_resampled(
        images, lambda images: evaluate_graphs(images, "sgcls", zero_shot=vg150_zero_shot())
    )


@pytest.mark.parametrize("measure", [eleven_point, coco_point, area])
def test_every_average_precision_of_repeated_detections(measure) -> None:
    """Many equal scores, and recalls that are just at the points of the measure."""
    rng = np.random.default_rng(4)
    images = 20
    blocks = [
        (rng.integers(0, 3, 4), rng.integers(0, 4, 8), rng.permutation(12)[:8] / 12)
        for _ in range(images)
    ]
    drawn = [rng.choice([NO_MATCH, 0, 1, 2, 3], 8) for _ in range(images)]
    both = zip(drawn, blocks, strict=True)
    claims = [
        np.where(labels[claim] == classes, claim, NO_MATCH) for claim, (labels, classes, _) in both
    ]

    def scores(counts: Array) -> ClassScores:
        tally = Tally()
        for image, ((labels, classes, confidences), claim) in enumerate(
            zip(blocks, claims, strict=True)
        ):
            for _ in range(counts[image]):
                tally.add(
                    labels, classes, confidences, claim, (np.full(4, image), np.full(8, image))
                )
        return tally.class_scores(measure)

    once = scores(np.ones(images, dtype=int))
    for counts in draws(images):
        expected = scores(counts)
        resampled = once.resampled(counts)
        assert resampled.average_precision == pytest.approx(expected.average_precision, abs=1e-12)
        for name in ("classes", "targets", "detections", "true_positives"):
            assert getattr(resampled, name).tolist() == getattr(expected, name).tolist(), name
    assert 0 < once.mean() < 1
