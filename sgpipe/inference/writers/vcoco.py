"""Pairs of a person and an object as V-COCO wants them: one record per person, with all actions and roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array, PredictedPairs
from rlip_model.evaluation.vcoco import Actions, PredictedPeople, Role
from rlip_model.evaluation.vcoco_files import AGENT
from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT
from sgpipe.sources.annotated import ClassLists
from sgpipe.sources.vocabulary import official_relation_names

_ROLES = ("obj", "instr")


def vcoco_actions(relations: Sequence[str]) -> Actions:
    """The actions of relations by our names, each with its roles: "hit" and "hit with" are the roles of one."""
    parts = [official_role(name) for name in relations]
    names = tuple(dict.fromkeys(action for action, _ in parts))
    return Actions(names, tuple(Role(names.index(action), role) for action, role in parts if role))


@dataclass(frozen=True)
class PeopleReader:
    """Turns pairs into found persons.

    possible: `[relations, objects]`, 0 for what cannot be, which is scored 0; every relation may be without object.
    """

    classes: ClassLists
    actions: Actions
    possible: Array | None = None

    def __post_init__(self) -> None:
        """Raises UserError: an action or role of V-COCO is none of the classes."""
        have = [official_role(name) for name in self.classes.relations]
        roles = {f"{self.actions.names[role.action]}_{role.name}" for role in self.actions.roles}
        missing = {*self.actions.names} - {action for action, _ in have} | roles - {"_".join(part) for part in have}
        if missing:
            raise UserError(f"the classes lack V-COCO's {min(missing)!r}: use shards of `sgpipe import vcoco`")

    def read(self, pairs: PredictedPairs) -> PredictedPeople:
        """One person per pair. An action's score is its role's, or the best one's."""
        scores = self._scores(pairs)
        parts = [official_role(name) for name in self.classes.relations]
        agents = np.full((len(pairs), len(self.actions.names)), -np.inf)
        for column, (action, _) in enumerate(parts):
            place = self.actions.names.index(action)
            agents[:, place] = np.maximum(agents[:, place], scores[:, column])
        columns = [parts.index((self.actions.names[role.action], role.name)) for role in self.actions.roles]
        boxes = np.where(self._missing(pairs)[:, None], np.nan, pairs.object_boxes.astype(float))
        role_boxes = np.repeat(boxes[:, None], len(columns), axis=1)
        return PredictedPeople(pairs.subject_boxes.astype(float), agents, scores[:, columns].astype(float), role_boxes)

    def _missing(self, pairs: PredictedPairs) -> Array:
        objects = self.classes.objects
        nothing = objects.index(NO_OBJECT) if NO_OBJECT in objects else -1
        return pairs.object_labels == nothing

    def _scores(self, pairs: PredictedPairs) -> Array:
        if self.possible is None:
            return pairs.scores
        allowed = (self.possible.T[pairs.object_labels] != 0) | self._missing(pairs)[:, None]
        return np.where(allowed, pairs.scores, np.float32(0))


def people_items(image: int, found: PredictedPeople, actions: Actions) -> list[dict[str, Any]]:
    """Records as V-COCO's evaluator takes them; a box of nulls is a missing object."""
    keys = [f"{actions.names[role.action]}_{role.name}" for role in actions.roles]
    items = []
    for person in range(len(found.boxes)):
        boxes = np.append(found.role_boxes[person], found.role_scores[person][:, None], 1)
        values = [[None if value != value else value for value in row] for row in boxes.tolist()]
        items.append(
            {
                "image_id": image,
                "person_box": found.boxes[person].tolist(),
                **{
                    f"{name}_{AGENT}": score
                    for name, score in zip(actions.names, found.agent_scores[person].tolist(), strict=True)
                },
                **dict(zip(keys, values, strict=True)),
            }
        )
    return items


@cache
def official_role(name: str) -> tuple[str, str]:
    """V-COCO's action and role of our relation name; no role: only the person acts."""
    ours = {own: official for official, own in official_relation_names("vcoco").items()}
    official = ours.get(name, name)
    action, _, role = official.rpartition("_")
    return (action, role) if role in _ROLES else (official, "")
