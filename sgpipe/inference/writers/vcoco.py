"""Write predictions as V-COCO expects them: one record per person, with the scores of all actions and roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array, PredictedPairs
from rlip_model.evaluation.vcoco import Actions, PredictedPeople, Role
from rlip_model.evaluation.vcoco_files import AGENT
from sgpipe.errors import UserError
from sgpipe.inference.predictor import ImagePrediction
from sgpipe.inference.rows import coco_image_id
from sgpipe.inference.writers import WriteSummary, write_json_list
from sgpipe.records import NO_OBJECT
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.vocabulary import official_relation_names

_ROLES = ("obj", "instr")


def write_vcoco(predictions: Iterable[ImagePrediction], out: Path, converter: PeopleConverter) -> WriteSummary:
    """Write every pair of every image as a person. Raises UserError: an image id is not an integer."""

    def items(prediction: ImagePrediction, pairs: PredictedPairs) -> list[dict[str, Any]]:
        return _people_items(coco_image_id(prediction.row), converter.convert(pairs), converter.actions)

    return write_json_list(predictions, out, items)


def vcoco_actions(relations: Sequence[str]) -> Actions:
    """V-COCO's actions for sgpipe's predicates, with their roles: "hit" and "hit with" are roles of one action."""
    parts = [_official_role(name) for name in relations]
    names = tuple(dict.fromkeys(action for action, _ in parts))
    return Actions(names, tuple(Role(names.index(action), role) for action, role in parts if role))


@dataclass(frozen=True)
class PeopleConverter:
    """Converts pairs to persons with actions.

    Args:
        possible: `[relations, objects]`, 0 for impossible combinations, which get score 0; a relation without an object
            is always possible.
    """

    classes: DatasetClasses
    actions: Actions
    possible: Array | None = None

    def __post_init__(self) -> None:
        """Raises UserError: the classes lack an action or a role of V-COCO."""
        parts = [_official_role(name) for name in self.classes.relations]
        roles = {f"{self.actions.names[role.action]}_{role.name}" for role in self.actions.roles}
        missing = {*self.actions.names} - {action for action, _ in parts} | roles - {"_".join(part) for part in parts}
        if missing:
            raise UserError(f"the classes lack V-COCO's {min(missing)!r}; use shards of `sgpipe import vcoco`")

    def convert(self, pairs: PredictedPairs) -> PredictedPeople:
        """One person per pair. The score of an action is the best score of its roles."""
        scores = self._scores(pairs)
        parts = [_official_role(name) for name in self.classes.relations]
        agents = np.full((len(pairs), len(self.actions.names)), -np.inf)
        for column, (action, _) in enumerate(parts):
            index = self.actions.names.index(action)
            agents[:, index] = np.maximum(agents[:, index], scores[:, column])
        columns = [parts.index((self.actions.names[role.action], role.name)) for role in self.actions.roles]
        boxes = np.where(self._objectless(pairs)[:, None], np.nan, pairs.object_boxes.astype(float))
        role_boxes = np.repeat(boxes[:, None], len(columns), axis=1)
        return PredictedPeople(pairs.subject_boxes.astype(float), agents, scores[:, columns].astype(float), role_boxes)

    def _objectless(self, pairs: PredictedPairs) -> Array:
        """`[pairs]`: whether the object of a pair is the class "no object"."""
        objects = self.classes.objects
        no_object = objects.index(NO_OBJECT) if NO_OBJECT in objects else -1
        return pairs.object_labels == no_object

    def _scores(self, pairs: PredictedPairs) -> Array:
        if self.possible is None:
            return pairs.scores
        allowed = (self.possible.T[pairs.object_labels] != 0) | self._objectless(pairs)[:, None]
        return np.where(allowed, pairs.scores, np.float32(0))


def _people_items(image_id: int, people: PredictedPeople, actions: Actions) -> list[dict[str, Any]]:
    """Records in the format of V-COCO's evaluator; nulls stand for the box of a missing object."""
    keys = [f"{actions.names[role.action]}_{role.name}" for role in actions.roles]
    items = []
    for person in range(len(people.boxes)):
        boxes = np.append(people.role_boxes[person], people.role_scores[person][:, None], 1)
        values = [[None if value != value else value for value in row] for row in boxes.tolist()]
        items.append(
            {
                "image_id": image_id,
                "person_box": people.boxes[person].tolist(),
                **{
                    f"{name}_{AGENT}": score
                    for name, score in zip(actions.names, people.agent_scores[person].tolist(), strict=True)
                },
                **dict(zip(keys, values, strict=True)),
            }
        )
    return items


@cache
def _official_role(name: str) -> tuple[str, str]:
    """V-COCO's action and role for a predicate of sgpipe; the role is empty if only the person acts."""
    official_names = {own: official for official, own in official_relation_names("vcoco").items()}
    official = official_names.get(name, name)
    action, _, role = official.rpartition("_")
    return (action, role) if role in _ROLES else (official, "")
