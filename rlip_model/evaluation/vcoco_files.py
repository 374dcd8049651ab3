"""Read V-COCO's files: COCO annotations and verb annotations as persons, official detections as
predicted persons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TypedDict, cast

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
Box = list[float]
Detection = Mapping[str, object]


class Verb(TypedDict):
    """An action in V-COCO's annotation file.

    role_name: the agent and the roles; ann_id, label: the annotation of each labelled person, and
    whether the person performs the action; role_object_id: per role, an annotation for each person.
    """

    action_name: str
    role_name: list[str]
    ann_id: list[int]
    label: list[int]
    role_object_id: list[int]


class CocoImage(TypedDict):
    """An image in COCO's annotation file."""

    id: int
    width: int
    height: int


class CocoAnnotation(TypedDict, total=False):
    """An object in COCO's annotation file; `bbox` is xywh in pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: Box
    area: float
    ignore: int


class CocoFile(TypedDict):
    """COCO's annotation file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]


def read_actions(verbs: Sequence[Verb]) -> Actions:
    """Read the actions of V-COCO's annotation file, a list with one entry per action."""
    names = tuple(verb["action_name"] for verb in verbs)
    roles = []
    for action, verb in enumerate(verbs):
        roles += [Role(action, name) for name in verb["role_name"] if name != AGENT]
    return Actions(names, tuple(roles))


def read_people(coco: CocoFile, verbs: Sequence[Verb]) -> dict[int, People]:
    """Read the annotated persons, by image id, in the order of the images.

    As in the official evaluator, boxes become inclusive pixel corners, are clipped to the image,
    and are left out if nothing remains.

    Raises:
        EvaluationError: a person is missing in COCO's annotations, a role has no box, or a box or a
            label is invalid.
    """
    boxes, persons_of_images = _boxes(coco)
    annotations = {annotation["id"] for annotation in coco["annotations"]}
    actions = read_actions(verbs)
    persons = list(chain.from_iterable(persons_of_images.values()))
    people = People(
        table([boxes[person] for person in persons], (-1, 4), float),
        np.full((len(persons), len(verbs)), NOT_ANNOTATED),
        np.full((len(persons), len(actions.roles), 4), np.nan),
    )
    rows = {person: row for row, person in enumerate(persons)}
    for action, verb in enumerate(verbs):
        columns = [column for column, role in enumerate(actions.roles) if role.action == action]
        for person, label, objects in _labelled_persons(verb):
            _check_label(verb, person, label, annotations)
            if person in rows:
                people.actions[rows[person], action] = label
                for column, object_ in zip(columns, objects, strict=True):
                    if object_:
                        box = _role_box(verb, person, object_, boxes)
                        people.role_boxes[rows[person], column] = box
    return _by_image(people, persons_of_images)


def _labelled_persons(verb: Verb) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the persons that an action is annotated for: annotation, label, and an object per role.

    An object is an annotation, or 0 for a role without a box.
    """
    roles = [row for row, name in enumerate(verb["role_name"]) if name != AGENT]
    objects = np.reshape(verb["role_object_id"], (len(verb["role_name"]), -1))[roles]
    yield from zip(verb["ann_id"], verb["label"], objects.T.tolist(), strict=True)


def _check_label(verb: Verb, person: int, label: int, annotations: set[int]) -> None:
    """Raise EvaluationError unless the person is annotated in COCO and the label is known."""
    name = verb["action_name"]
    if person not in annotations:
        raise EvaluationError(
            f"person {person} of action {name!r} is missing in COCO's annotations"
        )
    if label not in (NOT_ANNOTATED, 0, 1):
        raise EvaluationError(
            f"label of person {person} of action {name!r} is {label}, expected 0, 1 or -1"
        )


def _role_box(verb: Verb, person: int, object_: int, boxes: Mapping[int, Array]) -> Array:
    """Return the box of an object; raise EvaluationError if it has none."""
    if object_ not in boxes:
        raise EvaluationError(
            f"annotation {object_}, a role of person {person} of action"
            f" {verb['action_name']!r}, has no box inside its image; set its"
            " role_object_id to 0 or use the COCO file that V-COCO was made for"
        )
    return boxes[object_]


def _by_image(people: People, persons_of_images: Mapping[int, Sequence[int]]) -> dict[int, People]:
    """Divide people, which are in the order of the images, among these."""
    ends = np.cumsum([len(persons) for persons in persons_of_images.values()])[:-1]
    columns = (np.split(values, ends) for values in vars(people).values())
    parts = map(People, *columns)
    return dict(zip(persons_of_images, parts, strict=False))


def _boxes(coco: CocoFile) -> tuple[dict[int, Array], dict[int, list[int]]]:
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
    detections: Sequence[Detection], actions: Actions
) -> dict[int, PredictedPeople]:
    """Read predicted persons, by image id, in the official format for detections.

    A detection is {image_id, person_box xyxy, "<action>_agent": score, "<action>_<role>": [x1, y1,
    x2, y2, score]}; None stands for NaN.

    Raises:
        EvaluationError: a key is missing, or a value has another type.
    """
    by_image: dict[int, list[Detection]] = defaultdict(list)
    for detection in detections:
        by_image[cast(int, detection["image_id"])].append(detection)
    return {image: _predicted(image, persons, actions) for image, persons in by_image.items()}


def _predicted(image: int, detections: Sequence[Detection], actions: Actions) -> PredictedPeople:
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
