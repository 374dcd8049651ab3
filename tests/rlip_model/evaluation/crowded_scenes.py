"""Many small crowded scenes for the evaluators: boxes that overlap by about a half, touch or are equal."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import NOT_PREDICTED, EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.vcoco import Actions, People, PeopleImage, PredictedPeople, Role
from rlip_model.evaluation.visual_genome import GraphImage, GroundTruthGraph, PredictedGraph

OBJECTS, PREDICATES = 2, 3
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
