import math

import numpy as np
import pytest

from rlip_model.evaluation.vcoco import Actions, People, PeopleImage, PredictedPeople, Role, VcocoScores, evaluate_vcoco

ACTIONS = Actions(("hold", "point", "walk"), (Role(0, "obj"), Role(1, "instr")))
PERSON, OTHER, FAR = [10, 10, 59, 109], [200, 10, 249, 109], [300, 300, 350, 390]
THING = [50, 50, 89, 89]
NOTHING, ZEROS = [math.nan] * 4, [0.0] * 4

Holding = tuple[list[float], list[float], float]  # person, object, score


def scene(
    found: list[Holding],
    *,
    role: list[float] = THING,
    persons: list[list[float]] = [PERSON],  # noqa: B006
    does: list[list[int]] = [[1, 0, 1]],  # noqa: B006
) -> PeopleImage:
    """Persons of which only the first can have a role; what is found holds, and does everything else as surely."""
    role_boxes = np.full((len(persons), 2, 4), math.nan)
    role_boxes[:1, 0] = role
    scores = np.array([item[2] for item in found], dtype=float)
    found_roles = np.full((len(found), 2, 4), math.nan)
    found_roles[:, 0] = np.reshape([item[1] for item in found], (-1, 4))
    return PeopleImage(
        "1",
        People(np.array(persons, dtype=float).reshape(-1, 4), np.array(does).reshape(-1, 3), role_boxes),
        PredictedPeople(
            np.array([item[0] for item in found], dtype=float).reshape(-1, 4),
            np.tile(scores[:, None], (1, 3)),
            np.tile(scores[:, None], (1, 2)),
            found_roles,
        ),
    )


def scores(*images: PeopleImage) -> VcocoScores:
    return evaluate_vcoco(images, ACTIONS)


def hold(*images: PeopleImage) -> list[float]:
    """Role AP of hold-obj in both scenarios, and agent AP of hold."""
    found = scores(*images)
    return [*(float(found.role_precisions(scenario)[0]) for scenario in (1, 2)), float(found.agent_precisions()[0])]


def test_equal_scores_are_turned_round_in_an_image_and_again_in_the_data_set() -> None:
    wrong, right = (PERSON, FAR, 0.9), (PERSON, THING, 0.9)
    assert hold(scene([right, wrong]))[0] == 1
    assert hold(scene([wrong, right]))[0] == 0.5
    assert hold(scene([right, right]))[0] == 0.5  # the second takes the person, the first comes first
    empty = scene([wrong], persons=[], does=[])
    assert hold(scene([right]), empty)[0] == 0.5
    assert hold(empty, scene([right]))[0] == 1
    nearly = (PERSON, THING, 0.9 + 1e-12)  # equal in single precision, in which scores of all images are sorted
    assert hold(scene([nearly]), empty)[0] == 0.5


def test_persons_without_the_action_count_for_recall_as_official() -> None:
    image = scene([(PERSON, THING, 0.9)], persons=[PERSON, OTHER], does=[[1, 0, 1], [1, 0, 0]])
    assert hold(image) == [0.5, 0.5, 0.5]
    assert scores(image).positives.tolist() == [2, 0, 1]


@pytest.mark.filterwarnings("error")
def test_actions_that_nobody_does_have_no_precision() -> None:
    found = scores(scene([(PERSON, THING, 0.9)]))
    assert math.isnan(found.agent_precisions()[1])
    assert found.agent_mean() == 1
    assert math.isnan(scores().agent_mean())
    assert math.isnan(scores().role_mean(1))
