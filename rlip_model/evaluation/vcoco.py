"""V-COCO (Gupta and Malik, 2015), counted as by its official evaluator: role AP in two scenarios,
and agent AP.

Each prediction, whatever its action, is assigned to the annotated person that it overlaps most. It
is a true positive if that person performs the action, the IoU of their boxes is at least 0.5, no
better prediction was matched to the person before, and the role is correct: its box has an IoU of
at least 0.5 with the annotated one. Where the person's role has no box, scenario 1 expects no box,
and scenario 2 accepts anything. Of equal scores in an image, the last prediction is assigned first;
of equal scores overall, the last one ranks first, as in the official evaluator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import (
    Array,
    EvaluationError,
    check_boxes,
    check_equal,
    check_finite,
)
from rlip_model.evaluation.matching import NO_MATCH, best_matches, equal_rows
from rlip_model.evaluation.overlap import pixel_iou
from rlip_model.evaluation.precision import area
from rlip_model.evaluation.scores import ClassScores, Tally, mean
from rlip_model.evaluation.triplets import IMAGES_AT_ONCE, blocks

MATCH_OVERLAP = 0.5
NOT_ANNOTATED = -1
LEFT_OUT_ROLE = "point"  # left out of the mean that papers report, as it has too few instances

Scenario = Literal[1, 2]


@dataclass(frozen=True)
class Role:
    """A role of an action besides the agent: "hit" has "instr" and "obj"."""

    action: int
    name: str


@dataclass(frozen=True)
class Actions:
    """The names of the actions, and their roles, which are the columns `roles` of all arrays
    below.
    """

    names: tuple[str, ...]
    roles: tuple[Role, ...]

    def role_names(self) -> list[str]:
        """Return the official name of each role, such as "hit-instr"."""
        return [f"{self.names[role.action]}-{role.name}" for role in self.roles]


@dataclass(frozen=True)
class People:
    """The annotated persons of one image, including those without annotated actions.

    boxes `[persons, 4]` pixel xyxy; actions `[persons, actions]` 1, 0 or `NOT_ANNOTATED`;
    role_boxes `[persons, roles, 4]`, NaN where the role has no box.
    """

    boxes: Array
    actions: Array
    role_boxes: Array


@dataclass(frozen=True)
class PredictedPeople:
    """The persons predicted in one image, with a score for each action, and a score and a box for
    each role.

    boxes `[predicted, 4]` pixel xyxy; agent_scores `[predicted, actions]`; role_scores `[predicted,
    roles]` and role_boxes `[predicted, roles, 4]`, NaN where there is none.
    """

    boxes: Array
    agent_scores: Array
    role_scores: Array
    role_boxes: Array

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class PeopleImage:
    """One image: its name (for messages), the annotated persons, and the predicted ones."""

    name: str
    ground_truth: People
    predicted: PredictedPeople

    def check(self, actions: Actions) -> None:
        """Raise EvaluationError if a value is not finite or an array has the wrong shape."""
        check_boxes(self.name, "box of an annotated person", self.ground_truth.boxes)
        check_boxes(self.name, "box of a predicted person", self.predicted.boxes)
        check_finite(self.name, "score of an agent", self.predicted.agent_scores)
        if np.isinf(self.predicted.role_scores).any():
            raise EvaluationError(
                f"{self.name}: a score of a role is infinite; leave it out or fix the model's"
                " output"
            )
        people = len(self.ground_truth.boxes)
        predicted = len(self.predicted)
        for name, columns, shape in (
            (
                "actions of annotated persons",
                self.ground_truth.actions,
                (people, len(actions.names)),
            ),
            (
                "roles of annotated persons",
                self.ground_truth.role_boxes,
                (people, len(actions.roles)),
            ),
            (
                "action scores of predicted persons",
                self.predicted.agent_scores,
                (predicted, len(actions.names)),
            ),
            (
                "role scores of predicted persons",
                self.predicted.role_scores,
                (predicted, len(actions.roles)),
            ),
            (
                "role boxes of predicted persons",
                self.predicted.role_boxes,
                (predicted, len(actions.roles)),
            ),
        ):
            for axis, count in enumerate(shape):
                check_equal(self.name, name, columns.shape[axis], count)
        present = ~np.isnan(self.predicted.role_boxes).any(2) & ~np.isnan(
            self.predicted.role_scores
        )
        check_boxes(self.name, "box of a predicted role", self.predicted.role_boxes[present])


@dataclass(frozen=True)
class VcocoScores:
    """Average precision as the area under the curve.

    roles: by scenario; classes are columns of `Actions.roles`; agents: classes are actions;
    positives: `[actions]`, the number of persons that perform each action.
    """

    actions: Actions
    roles: dict[Scenario, ClassScores]
    agents: ClassScores
    positives: Array

    def resampled(self, counts: Array) -> VcocoScores:
        """As `ClassScores.resampled`."""
        roles = {scenario: scores.resampled(counts) for scenario, scores in self.roles.items()}
        agents = self.agents.resampled(counts)
        positives = np.zeros_like(self.positives)
        positives[agents.classes] = agents.targets
        return VcocoScores(self.actions, roles, agents, positives)

    def role_precisions(self, scenario: Scenario) -> Array:
        """Average precision `[roles]`; NaN for actions that nobody performs."""
        return _spread(self.roles[scenario], len(self.actions.roles))

    def agent_precisions(self) -> Array:
        """Average precision `[actions]`; NaN for actions that nobody performs."""
        return _spread(self.agents, len(self.actions.names))

    def role_mean(self, scenario: Scenario, *, without_point: bool = True) -> float:
        """Mean over roles; papers report it without "point"."""
        precisions = self.role_precisions(scenario)
        if without_point:
            point = [
                self.actions.names[role.action] == LEFT_OUT_ROLE for role in self.actions.roles
            ]
            precisions = precisions[~np.array(point, dtype=bool)]
        return _mean_without_nan(precisions)

    def agent_mean(self) -> float:
        """Mean over actions."""
        return _mean_without_nan(self.agent_precisions())


def _spread(scores: ClassScores, count: int) -> Array:
    precisions = np.full(count, np.nan)
    precisions[scores.classes] = scores.average_precision
    return precisions


def _mean_without_nan(values: Array) -> float:
    return mean(values[~np.isnan(values)])


def evaluate_vcoco(images: Iterable[PeopleImage], actions: Actions) -> VcocoScores:
    """Evaluate a dataset, read as a stream.

    Args:
        images: persons with an action that is not annotated are ignored, together with the
            predictions assigned to them. Predictions in images without annotated persons are wrong
            (the official evaluator fails there).

    Raises:
        EvaluationError: arrays that do not fit `actions`, scores that are not finite, inverted
            boxes.
    """
    agents = Tally()
    roles: dict[Scenario, Tally] = {1: Tally(), 2: Tally()}
    positives = np.zeros(len(actions.names), dtype=int)
    for number, block in enumerate(blocks(images)):
        for image in block:
            image.check(actions)
        assigned = _AssignedPeople.from_images(block, number * IMAGES_AT_ONCE)
        positives += (assigned.ground_truth.actions == 1).sum(0)
        for action in range(len(actions.names)):
            assigned.count(
                agents, action, action, assigned.predicted.agent_scores[:, action], assigned.close
            )
        for column, role in enumerate(actions.roles):
            role_scores, has_box, fits, empty = assigned.role(column)
            for scenario, tally in roles.items():
                correct = assigned.close & np.where(has_box, fits, empty | (scenario == 2))
                assigned.count(tally, column, role.action, role_scores, correct)
    scores = {
        scenario: tally.class_scores(area, last_first=True) for scenario, tally in roles.items()
    }
    return VcocoScores(actions, scores, agents.class_scores(area, last_first=True), positives)


@dataclass(frozen=True)
class _AssignedPeople:
    """The predicted persons of a block of images, image by image, each with the annotated person
    assigned to it.

    All `[predicted]`. image: its number in the dataset; person: index in the block (`NO_MATCH`
    where nobody is annotated); close: whether the IoU with that person is at least 0.5; ignored:
    whether an action of that person is not annotated. owner: `[annotated persons]`, their images.
    """

    ground_truth: People
    predicted: PredictedPeople
    image: Array
    person: Array
    close: Array
    ignored: Array
    owner: Array

    @classmethod
    def from_images(cls, block: Sequence[PeopleImage], first: int) -> _AssignedPeople:
        """`first`: the number of the first image."""
        people = People(*_joined([image.ground_truth for image in block]))
        predicted = PredictedPeople(*_joined([image.predicted for image in block]))
        numbers = first + np.arange(len(block))
        owner = np.repeat(numbers, [len(image.ground_truth.boxes) for image in block])
        place = np.repeat(numbers, [len(image.predicted.boxes) for image in block])
        rows, persons = equal_rows(place, owner)
        overlap = pixel_iou(predicted.boxes[rows], people.boxes[persons], touching=True)
        person = best_matches(rows, persons, overlap, len(place))
        best = np.zeros(len(place))
        np.maximum.at(best, rows, overlap)
        unknown = np.append((people.actions == NOT_ANNOTATED).any(1), False)
        return cls(people, predicted, place, person, best >= MATCH_OVERLAP, unknown[person], owner)

    def role(self, column: int) -> tuple[Array, Array, Array, Array]:
        """Four arrays `[predicted]`: the role's score; whether the assigned person has a box for
        the role; whether the predicted box fits it; whether no box is predicted (NaN or zeros)."""
        no_box = np.full((1, 4), np.nan)
        target_boxes = np.append(self.ground_truth.role_boxes[:, column], no_box, 0)[self.person]
        boxes = self.predicted.role_boxes[:, column]
        fits = pixel_iou(boxes, target_boxes, touching=True) >= MATCH_OVERLAP
        empty = np.isnan(boxes).all(1) | (boxes == 0).all(1)
        return self.predicted.role_scores[:, column], ~np.isnan(target_boxes).any(1), fits, empty

    def count(self, tally: Tally, number: int, action: int, scores: Array, correct: Array) -> None:
        """Add one class to a tally.

        Args:
            number: of the class.
            scores: `[predicted]`, NaN for no prediction.
            correct: `[predicted]`, whether boxes are correct; whether the person performs the
                action is checked here.
        """
        performing = self.ground_truth.actions[:, action] == 1
        targets = int(performing.sum())
        places = np.append(np.where(performing, np.cumsum(performing) - 1, NO_MATCH), NO_MATCH)
        matches = np.where(correct, places[self.person], NO_MATCH)
        judged = np.flatnonzero(~np.isnan(scores) & ~self.ignored)
        judged = judged[np.lexsort((-judged, -scores[judged], self.image[judged]))]
        # The official evaluator compares scores in single precision.
        single = scores[judged].astype(np.float32)
        images = self.owner[performing], self.image[judged]
        tally.add(
            np.full(targets, number), np.full(len(judged), number), single, matches[judged], images
        )


def _joined(parts: Sequence[People] | Sequence[PredictedPeople]) -> list[Array]:
    return [
        np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(parts[0])
    ]
