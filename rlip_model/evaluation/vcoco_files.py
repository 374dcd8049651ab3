"""Read V-COCO's files: COCO annotations and verb annotations as persons, official detections as
predicted persons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationError, table
from rlip_model.evaluation.vcoco import (
    NOT_ANNOTATED,
    Actions,
    People,
    PeopleImage,
    PredictedPeople,
    Role,
)

PERSON = 1  # category id in COCO
AGENT = "agent"


def read_actions(verbs: Sequence[Mapping[str, Any]]) -> Actions:
    """Read the actions of V-COCO's annotation file, a list with one entry per action."""
    roles = (
        Role(action, name)
        for action, verb in enumerate(verbs)
        for name in verb["role_name"]
        if name != AGENT
    )
    return Actions(tuple(verb["action_name"] for verb in verbs), tuple(roles))


def read_people(coco: Mapping[str, Any], verbs: Sequence[Mapping[str, Any]]) -> dict[int, People]:
    """Read the annotated persons, by image id, in the order of the images.

    As in the official evaluator, boxes become inclusive pixel corners, are clipped to the image,
    and are left out if nothing remains.

    Raises:
        EvaluationError: a person is missing in COCO's annotations, a role has no box, or a box or a
            label is invalid.
    """
    boxes, persons = _boxes(coco)
    images = {annotation["id"]: annotation["image_id"] for annotation in coco["annotations"]}
    actions = read_actions(verbs)
    rows = {person: row for owned in persons.values() for row, person in enumerate(owned)}
    performed = {
        image: np.full((len(owned), len(verbs)), NOT_ANNOTATED) for image, owned in persons.items()
    }
    shape = len(actions.roles), 4
    role_boxes = {image: np.full((len(owned), *shape), np.nan) for image, owned in persons.items()}
    for action, verb in enumerate(verbs):
        columns = [column for column, role in enumerate(actions.roles) if role.action == action]
        objects = np.reshape(verb["role_object_id"], (len(verb["role_name"]), -1))[
            [row for row, name in enumerate(verb["role_name"]) if name != AGENT]
        ]
        for person, label, objects_of_person in zip(
            verb["ann_id"], verb["label"], objects.T, strict=True
        ):
            if person not in images:
                raise EvaluationError(
                    f"person {person} of action {verb['action_name']!r} is missing in COCO's"
                    " annotations"
                )
            if label not in (NOT_ANNOTATED, 0, 1):
                name = verb["action_name"]
                raise EvaluationError(
                    f"label of person {person} of action {name!r} is {label}, expected 0, 1 or -1"
                )
            if person in rows:
                image = images[person]
                row = rows[person]
                performed[image][row, action] = label
                for column, object_ in zip(columns, objects_of_person.tolist(), strict=True):
                    if object_ and object_ not in boxes:
                        raise EvaluationError(
                            f"annotation {object_}, a role of person {person} of action"
                            f" {verb['action_name']!r}, has no box inside its image; set its"
                            " role_object_id to 0 or use the COCO file that V-COCO was made for"
                        )
                    if object_:
                        role_boxes[image][row, column] = boxes[object_]
    return {
        image: People(
            table([boxes[person] for person in owned], (-1, 4), float),
            performed[image],
            role_boxes[image],
        )
        for image, owned in persons.items()
    }


def _boxes(coco: Mapping[str, Any]) -> tuple[dict[int, Array], dict[int, list[int]]]:
    """xyxy boxes by annotation id, and the ids of the person annotations by image id."""
    sizes = {image["id"]: (image["width"] - 1, image["height"] - 1) for image in coco["images"]}
    boxes: dict[int, Array] = {}
    persons: dict[int, list[int]] = {number: [] for number in sizes}
    for annotation in coco["annotations"]:
        if annotation.get("ignore") == 1 or annotation["image_id"] not in sizes:
            continue
        left, top, width, height = annotation["bbox"]
        if not np.isfinite([left, top, width, height, annotation["area"]]).all():
            raise EvaluationError(
                f"bbox or area of annotation {annotation['id']} is NaN or infinite"
            )
        corners = np.array([[left, top], [left + max(0, width - 1), top + max(0, height - 1)]])
        corners = np.clip(corners, 0, sizes[annotation["image_id"]])
        if annotation["area"] > 0 and (corners[1] > corners[0]).all():
            boxes[annotation["id"]] = corners.reshape(4)
            if annotation["category_id"] == PERSON:
                persons[annotation["image_id"]].append(annotation["id"])
    return boxes, persons


def read_predicted_people(
    detections: Sequence[Mapping[str, Any]], actions: Actions
) -> dict[int, PredictedPeople]:
    """Read predicted persons, by image id, in the official format for detections.

    A detection is {image_id, person_box xyxy, "<action>_agent": score, "<action>_<role>": [x1, y1,
    x2, y2, score]}; None stands for NaN.

    Raises:
        EvaluationError: a key is missing, or a value has another type.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    return {image: _predicted(image, owned, actions) for image, owned in by_image.items()}


def _predicted(
    image: int, detections: Sequence[Mapping[str, Any]], actions: Actions
) -> PredictedPeople:
    agents = [f"{name}_{AGENT}" for name in actions.names]
    roles = [f"{actions.names[role.action]}_{role.name}" for role in actions.roles]
    try:
        boxes = [detection["person_box"] for detection in detections]
        agent_scores = [[detection[name] for name in agents] for detection in detections]
        role_values = [[detection[name] for name in roles] for detection in detections]
    except KeyError as reason:
        raise EvaluationError(f"image {image}: a detection has no {reason}") from reason
    values = table(role_values, (-1, len(roles), 5), float)
    return PredictedPeople(
        table(boxes, (-1, 4), float),
        table(agent_scores, (-1, len(agents)), float),
        values[..., 4],
        values[..., :4],
    )


def people_images(
    people: Mapping[int, People], predicted: Mapping[int, PredictedPeople], actions: Actions
) -> Iterator[PeopleImage]:
    """Yield every annotated image with its predictions.

    Raises:
        EvaluationError: there are predictions for an image that is not annotated.
    """
    unknown = sorted(predicted.keys() - people.keys(), key=str)
    if unknown:
        images = "1 image" if len(unknown) == 1 else f"{len(unknown)} images"
        raise EvaluationError(
            f"{images} with detections but without annotations; first: {unknown[0]}"
        )
    roles = len(actions.roles)
    nobody = PredictedPeople(
        np.zeros((0, 4)),
        np.zeros((0, len(actions.names))),
        np.zeros((0, roles)),
        np.zeros((0, roles, 4)),
    )
    for image, annotated in people.items():
        yield PeopleImage(str(image), annotated, predicted.get(image, nobody))
