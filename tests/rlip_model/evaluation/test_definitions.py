"""The evaluators beside their rules written out in loops, on many small crowded scenes."""

from __future__ import annotations

import numpy as np
import pytest

from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.inputs import NOT_PREDICTED, EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.suppression import PairSuppression
from rlip_model.evaluation.triplets import TripletClasses
from rlip_model.evaluation.vcoco import Actions, People, PeopleImage, PredictedPeople, Role, evaluate_vcoco
from rlip_model.evaluation.visual_genome import GraphImage, GroundTruthGraph, PredictedGraph, evaluate_graphs
from tests.rlip_model.evaluation import definitions

OBJECTS, PREDICATES = 2, 3
SEEDS = range(3)
ACTIONS = Actions(("hold", "hit", "walk"), (Role(0, "obj"), Role(1, "obj"), Role(1, "instr")))


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """In few places, so that many overlap by about a half, touch, or are equal."""
    corners = rng.integers(0, 12, (count, 2)).astype(np.float32)
    sides = rng.integers(0, 9, (count, 2)) + rng.choice([0, 0.25], (count, 2))
    return np.concatenate((corners, corners + sides), 1).astype(np.float32)


def near(rng: np.random.Generator, true: np.ndarray) -> np.ndarray:
    """Shifted by a pixel at most."""
    return (true + np.tile(rng.integers(-1, 2, (len(true), 2)), 2)).astype(np.float32)


def pair_scene(rng: np.random.Generator, name: str) -> EvaluationImage:
    """Pairs that are found lie at true triplets, or anywhere in images without."""
    count, pairs = rng.choice([0, 2, 3, 5]), rng.choice([0, 40, 40])
    true_boxes, labels = boxes(rng, count), rng.integers(0, OBJECTS, count)
    triplets = rng.integers(0, count, (rng.choice([0, 3, 8, 8]), 3)) if count else np.zeros((0, 3), dtype=int)
    triplets[:, 2] = rng.integers(0, PREDICATES, len(triplets))
    if len(triplets):
        subjects, objects, _ = triplets[rng.integers(0, len(triplets), pairs)].T
        ends, found_labels = [near(rng, true_boxes[own]) for own in (subjects, objects)], labels[[subjects, objects]]
    else:
        ends, found_labels = [boxes(rng, pairs) for _ in range(2)], rng.integers(0, OBJECTS, (2, pairs))
    scores = (rng.integers(0, 30, (pairs, PREDICATES)) / 30).astype(np.float32)  # many are equal
    scores[rng.random(scores.shape) < 0.1] = NOT_PREDICTED
    return EvaluationImage(
        name, ImageGroundTruth.from_lists(true_boxes, labels, triplets), PredictedPairs(*ends, *found_labels, scores)
    )


def pair_scenes(seed: int) -> list[EvaluationImage]:
    rng = np.random.default_rng(seed)
    return [pair_scene(rng, str(number)) for number in range(30)]


def hold_equal(scores: ClassScores, rankings: dict, classes: TripletClasses) -> None:
    names = [tuple(labels) for labels in classes.labels(scores.classes).tolist()]
    assert sorted(names) == sorted(rankings)
    for place, name in enumerate(names):
        expected = rankings[name]
        assert scores.targets[place] == expected.truths
        assert scores.of_class(scores.classes[place])[1].tolist() == expected.sorted_hits()
        assert scores.average_precision[place] == pytest.approx(expected.eleven_points(), abs=1e-12)
    assert 5 < scores.true_positives.sum() < scores.targets.sum()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("known_object", [False, True])
@pytest.mark.parametrize("pair_nms", [False, True])
def test_hico(seed: int, known_object: bool, pair_nms: bool) -> None:
    images = pair_scenes(seed)
    possible = np.random.default_rng(seed).random((PREDICATES, OBJECTS)) < 0.8
    settings = HicoSettings(possible.astype(int), PairSuppression() if pair_nms else None, known_object)
    expected = definitions.hico(images, possible, pair_nms=pair_nms, known_object=known_object)
    hold_equal(evaluate_hico(images, settings).per_class, expected, settings.classes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nms", [False, True])
def test_open_images(seed: int, nms: bool) -> None:
    images = pair_scenes(seed)
    settings = OpenImagesSettings(OBJECTS, PREDICATES, PairSuppression() if nms else None, "repaired")
    found = evaluate_open_images(images, settings)
    for most in (50, 100):
        expected = definitions.open_images(images, most, nms=nms)
        hold_equal(found.relations[most], expected["relations"], settings.classes)
        hold_equal(found.phrases[most], expected["phrases"], settings.classes)


def people_scene(rng: np.random.Generator, name: str) -> PeopleImage:
    people, found, roles = rng.choice([1, 2, 4]), rng.choice([0, 3, 12]), len(ACTIONS.roles)
    does = rng.integers(0, 2, (people, len(ACTIONS.names)))
    does[rng.random(people) < 0.2] = -1
    true_boxes = boxes(rng, people).astype(float)
    things = boxes(rng, people * roles).astype(float).reshape(people, roles, 4)
    things[rng.random((people, roles)) < 0.4] = np.nan
    places = rng.integers(0, people, found)
    near_boxes = near(rng, true_boxes[places])
    shift = np.tile(rng.integers(-1, 2, (found, roles, 2)), 2)
    anywhere = boxes(rng, found * roles).reshape(found, roles, 4)
    empty = np.where(rng.random((found, roles, 1)) < 0.5, 0, np.nan)
    unasked = np.where(rng.random((found, roles, 1)) < 0.5, anywhere, empty)
    role_boxes = np.where(np.isnan(things[places]), unasked, things[places] + shift)
    scores = rng.permutation(found * (roles + len(ACTIONS.names))) + rng.random()
    agents, of_roles = np.split(scores.reshape(found, roles + len(ACTIONS.names)), [len(ACTIONS.names)], axis=1)
    of_roles[rng.random(of_roles.shape) < 0.1] = np.nan
    return PeopleImage(
        name, People(true_boxes, does, things), PredictedPeople(near_boxes.astype(float), agents, of_roles, role_boxes)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_vcoco(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [people_scene(rng, str(number)) for number in range(30)]
    scores, expected = evaluate_vcoco(images, ACTIONS), definitions.vcoco(images, ACTIONS)
    assert scores.agent_precisions() == pytest.approx(expected["agent"], abs=1e-12)
    assert scores.role_precisions(1) == pytest.approx(expected["scenario 1"], abs=1e-12)
    assert scores.role_precisions(2) == pytest.approx(expected["scenario 2"], abs=1e-12)
    assert 0 < scores.role_mean(1) < scores.role_mean(2) < 0.9


def graph_scene(rng: np.random.Generator, name: str) -> GraphImage:
    count, found, pairs = rng.choice([2, 4]), rng.choice([2, 9]), rng.choice([0, 12, 150])
    true_boxes, labels = boxes(rng, count), 1 + rng.integers(0, OBJECTS, count)
    relations = rng.integers(0, count, (rng.choice([0, 3, 8]), 3))
    relations[:, 2] = 1 + rng.integers(0, PREDICATES, len(relations))
    places = rng.integers(0, count, found)
    found_boxes = near(rng, true_boxes[places])
    ends = rng.integers(0, found, (pairs, 2))
    scores = rng.random((pairs, 1 + PREDICATES)).astype(np.float32)
    return GraphImage(
        name,
        GroundTruthGraph(true_boxes, labels, relations),
        PredictedGraph(found_boxes, labels[places], rng.random(found).astype(np.float32), ends, scores),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_visual_genome(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [graph_scene(rng, str(number)) for number in range(30)]
    scores = evaluate_graphs(images, "sgdet", num_objects=OBJECTS, num_predicates=PREDICATES)
    for constrained, found in ((True, scores.constrained), (False, scores.unconstrained)):
        for most in (20, 50, 100):
            mean, per_predicate = definitions.recall(images, most, constrained=constrained)
            assert found.recall(most) == pytest.approx(mean, abs=1e-12)
            assert found.per_predicate[most] == pytest.approx(per_predicate, abs=1e-12)
    assert 0 < scores.constrained.recall(20) < 1
