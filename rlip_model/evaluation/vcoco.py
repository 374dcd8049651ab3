"""V-COCO (Gupta and Malik, 2015), as its official evaluator counts: role AP in two scenarios, and agent AP.

What was found is given, whatever its action, to the annotated person that it overlaps most. It is right if that
person does the action, overlaps by half or more, is not found before, and the role is right: its box overlaps the
true one by half; where the person's role has no box, scenario 1 asks for no box, scenario 2 for nothing. Of equal
scores in an image the last is given a person first; of all these the last comes first, as officially.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationError, check_boxes, check_equal, check_finite
from rlip_model.evaluation.matching import NO_MATCH, best_matches, equal_rows
from rlip_model.evaluation.overlap import pixel_iou
from rlip_model.evaluation.precision import area
from rlip_model.evaluation.scores import ClassScores, Tally
from rlip_model.evaluation.triplets import blocks

MATCH_OVERLAP = 0.5
NOT_ANNOTATED = -1
LEFT_OUT_ROLE = "point"  # the mean that papers report is without it, as it has too few instances

Scenario = Literal[1, 2]


@dataclass(frozen=True)
class Role:
    """What an action has beside the person that does it: "hit" has "instr" and "obj"."""

    action: int
    name: str


@dataclass(frozen=True)
class Actions:
    """names `[actions]` and the roles, columns of what follows, in their order."""

    names: tuple[str, ...]
    roles: tuple[Role, ...]

    def role_names(self) -> list[str]:
        return [f"{self.names[role.action]}-{role.name}" for role in self.roles]


@dataclass(frozen=True)
class People:
    """The annotated persons of one image, those without annotated actions included.

    boxes `[persons, 4]` xyxy, pixels; does `[persons, actions]` 1, 0 or `NOT_ANNOTATED`;
    role_boxes `[persons, roles, 4]`, NaN where the role has no box.
    """

    boxes: Array
    does: Array
    role_boxes: Array


@dataclass(frozen=True)
class PredictedPeople:
    """The persons found in one image, with a score and a box for each action and role.

    boxes `[found, 4]` xyxy, pixels; agent_scores `[found, actions]`; role_scores `[found, roles]`, NaN for none;
    role_boxes `[found, roles, 4]`, NaN where there is none.
    """

    boxes: Array
    agent_scores: Array
    role_scores: Array
    role_boxes: Array

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class PeopleImage:
    """One image: its name (for messages), the persons in it, and those that were found in it."""

    name: str
    truth: People
    found: PredictedPeople

    def check(self, actions: Actions) -> None:
        """Raises EvaluationError."""
        check_boxes(self.name, "true person's box", self.truth.boxes)
        check_boxes(self.name, "found person's box", self.found.boxes)
        check_finite(self.name, "score of an agent", self.found.agent_scores)
        if np.isinf(self.found.role_scores).any():
            raise EvaluationError(f"{self.name}: a role's score is infinite; leave it out or mend the model's output")
        people, found = len(self.truth.boxes), len(self.found)
        for what, columns, shape in (
            ("actions of true persons", self.truth.does, (people, len(actions.names))),
            ("roles of true persons", self.truth.role_boxes, (people, len(actions.roles))),
            ("actions' scores of found persons", self.found.agent_scores, (found, len(actions.names))),
            ("roles' scores of found persons", self.found.role_scores, (found, len(actions.roles))),
            ("roles' boxes of found persons", self.found.role_boxes, (found, len(actions.roles))),
        ):
            for axis, count in enumerate(shape):
                check_equal(self.name, what, columns.shape[axis], count)
        there = ~np.isnan(self.found.role_boxes).any(2) & ~np.isnan(self.found.role_scores)
        check_boxes(self.name, "found role's box", self.found.role_boxes[there])


@dataclass(frozen=True)
class VcocoScores:
    """roles: by scenario, classes are columns of `Actions.roles`; agents: classes are actions. Area under the curve."""

    actions: Actions
    roles: dict[Scenario, ClassScores]
    agents: ClassScores
    positives: Array  # `[actions]`, persons that do each

    def role_precisions(self, scenario: Scenario) -> Array:
        """Average precision `[roles]`; NaN of actions that nobody does."""
        return _spread(self.roles[scenario], len(self.actions.roles))

    def agent_precisions(self) -> Array:
        """Average precision `[actions]`; NaN of actions that nobody does."""
        return _spread(self.agents, len(self.actions.names))

    def role_mean(self, scenario: Scenario, *, without_point: bool = True) -> float:
        """Mean over roles; without that of "point" it is what papers report."""
        precisions = self.role_precisions(scenario)
        if without_point:
            point = [self.actions.names[role.action] == LEFT_OUT_ROLE for role in self.actions.roles]
            precisions = precisions[~np.array(point, dtype=bool)]
        return _known_mean(precisions)

    def agent_mean(self) -> float:
        return _known_mean(self.agent_precisions())


def _spread(scores: ClassScores, count: int) -> Array:
    precisions = np.full(count, np.nan)
    precisions[scores.classes] = scores.average_precision
    return precisions


def _known_mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def evaluate_vcoco(images: Iterable[PeopleImage], actions: Actions) -> VcocoScores:
    """Scores of a data set, read as a stream.

    Args:
        images: persons with an action that is not annotated are ignored, with what is found at their place. What
            is found where nobody is annotated is wrong (the official evaluator stops there).

    Raises:
        EvaluationError: numbers of actions or roles that are not those of `actions`, scores that are not numbers,
            boxes inside out.
    """
    agents = Tally()
    roles: dict[Scenario, Tally] = {1: Tally(), 2: Tally()}
    positives = np.zeros(len(actions.names), dtype=int)
    for block in blocks(images):
        for image in block:
            image.check(actions)
        met = _Meeting.of(block)
        positives += (met.truth.does == 1).sum(0)
        for action in range(len(actions.names)):
            met.judge(agents, action, action, met.found.agent_scores[:, action], met.close)
        for column, role in enumerate(actions.roles):
            role_scores, has_box, fits, empty = met.role(column)
            for scenario, tally in roles.items():
                right = met.close & np.where(has_box, fits, empty | (scenario == 2))
                met.judge(tally, column, role.action, role_scores, right)
    scores = {scenario: tally.class_scores(area, last_first=True) for scenario, tally in roles.items()}
    return VcocoScores(actions, scores, agents.class_scores(area, last_first=True), positives)


@dataclass(frozen=True)
class _Meeting:
    """What was found in a block of images, image by image, and the person at the place of each.

    image, person `[found]`: numbers in the block (`NO_MATCH` where nobody is annotated); close, ignored `[found]`:
    whether it overlaps that person by half, and whether that person's actions are not annotated.
    """

    truth: People
    found: PredictedPeople
    image: Array
    person: Array
    close: Array
    ignored: Array

    @classmethod
    def of(cls, block: Sequence[PeopleImage]) -> _Meeting:
        truth = People(*_joined([image.truth for image in block]))
        found = PredictedPeople(*_joined([image.found for image in block]))
        numbers = np.arange(len(block))
        owner = np.repeat(numbers, [len(image.truth.boxes) for image in block])
        place = np.repeat(numbers, [len(image.found.boxes) for image in block])
        rows, persons = equal_rows(place, owner)
        overlap = pixel_iou(found.boxes[rows], truth.boxes[persons], touching=True)
        person = best_matches(rows, persons, overlap, len(place))
        best = np.zeros(len(place))
        np.maximum.at(best, rows, overlap)
        unknown = np.append((truth.does == NOT_ANNOTATED).any(1), False)
        return cls(truth, found, place, person, best >= MATCH_OVERLAP, unknown[person])

    def role(self, column: int) -> tuple[Array, Array, Array, Array]:
        """Of what was found, `[found]` each: the role's score; whether the person has a box for the role; whether
        the found box fits that; whether none was found (no numbers, or zeros)."""
        nowhere = np.full((1, 4), np.nan)
        true_boxes = np.append(self.truth.role_boxes[:, column], nowhere, 0)[self.person]
        boxes = self.found.role_boxes[:, column]
        fits = pixel_iou(boxes, true_boxes, touching=True) >= MATCH_OVERLAP
        empty = np.isnan(boxes).all(1) | (boxes == 0).all(1)
        return self.found.role_scores[:, column], ~np.isnan(true_boxes).any(1), fits, empty

    def judge(self, tally: Tally, number: int, action: int, scores: Array, right: Array) -> None:
        """Count one class. `scores` `[found]`, NaN for what was not found; `right` `[found]`, but for the action."""
        doing = self.truth.does[:, action] == 1
        count = int(doing.sum())
        places = np.append(np.where(doing, np.cumsum(doing) - 1, NO_MATCH), NO_MATCH)
        claims = np.where(right, places[self.person], NO_MATCH)
        judged = np.flatnonzero(~np.isnan(scores) & ~self.ignored)
        judged = judged[np.lexsort((-judged, -scores[judged], self.image[judged]))]
        single = scores[judged].astype(np.float32)  # scores that differ by less are equal officially
        tally.add(np.full(count, number), np.full(len(judged), number), single, claims[judged])


def _joined(parts: Sequence[People] | Sequence[PredictedPeople]) -> list[Array]:
    return [np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(parts[0])]
