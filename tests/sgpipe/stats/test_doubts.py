"""`sgpipe stats --doubts`: what the layout model doubts of annotated relations."""

import json
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record
from sgpipe.stats.doubts import IMPROBABLE, PROBABLE, find_doubts, plan_doubts
from tests.sgpipe.stats.runs import invoke, make_shards, scene
from tests.values import values_of

RIDER = Box("person", 1, (110, 40, 50, 110))
HORSE = Box("horse", 2, (80, 90, 120, 110))
PASSER_BY = Box("person", 1, (2, 150, 12, 30))
FAR_CUP = Box("cup", 3, (300, 5, 8, 8))
BOXES = (RIDER, HORSE, PASSER_BY, FAR_CUP)


def images(count: int = 3, dataset: str = "drawn") -> list[Record]:
    """The passer-by is said to hold a cup that is far away, and nobody to ride the horse."""
    return [
        scene(str(number), [(2, "holding", 3), (2, "looking at", 3)], BOXES, dataset=dataset)
        for number in range(count)
    ]


def test_improbable_annotations_and_likely_missing_ones(tmp_path: Path) -> None:
    ridden = scene("ridden", [(0, "riding", 1)], BOXES)
    bare = scene("bare", [], BOXES)
    run = make_shards(tmp_path / "run", [*images(), ridden, bare])
    doubts = find_doubts(run, 2)
    assert (doubts.images, doubts.relations) == (4, 7)
    assert (doubts.improbable_count, doubts.missing_count) == (3, 3)  # two of each are listed
    for doubt in doubts.improbable:
        assert (doubt.subject, doubt.predicate, doubt.object) == (2, "holding", 3)
        assert doubt.probability < IMPROBABLE
    for doubt in doubts.missing:
        # in the run's own words, not the model's "ride"
        assert (doubt.subject, doubt.predicate, doubt.object) == (0, "riding", 1)
        assert doubt.probability > PROBABLE
        assert (doubt.subject_box, doubt.object_box) == ([*RIDER.bbox], [*HORSE.bbox])


@pytest.mark.parametrize("relation", [(0, "with", 1), (1, "under", 0), (4, "riding", 5)])
def test_a_pair_is_not_missing_if_it_is_annotated_either_way_or_with_other_boxes_of_the_objects(
    tmp_path: Path, relation: tuple[int, str, int]
) -> None:
    shifted = [Box("person", 1, (111, 41, 50, 110)), Box("horse", 2, (81, 91, 120, 110))]
    run = make_shards(
        tmp_path / "run", [scene("0", [relation, (2, "near", 3)], [*BOXES, *shifted])]
    )
    assert find_doubts(run, 5).missing_count == 0


def test_images_that_the_model_was_trained_on_are_told(tmp_path: Path) -> None:
    notes = {}
    for dataset in ("vcoco", "vg"):
        run = make_shards(tmp_path / dataset, images(1, dataset))
        notes[dataset] = find_doubts(run, 5).notes
    assert "1 image of V-COCO's train and val splits" in notes["vcoco"][0]
    assert notes["vg"] == []


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ([], "no annotated relations"),
        ([(2, "holding", 3, 0.9)], "no annotated relations"),
        ([(1, "near", 3)], "whose subject is a person"),
    ],
)
def test_a_run_without_annotated_relations_of_persons_is_one_line(
    tmp_path: Path, relations: list, message: str
) -> None:
    run = make_shards(tmp_path / "run", [scene("0", relations, BOXES)])
    with pytest.raises(UserError, match=message) as caught:
        find_doubts(run, 5)
    assert "\n" not in str(caught.value)


def test_the_report_lists_doubts_and_a_plan_asks_about_both_kinds_in_turn(tmp_path: Path) -> None:
    run = make_shards(tmp_path / "run", images())
    printed = invoke("stats", run, "--doubts", "2").output
    assert "3 of 6 annotated relations of persons improbable" in printed
    assert "likely missing: 3 pairs that nobody annotated" in printed
    doubts = json.loads(invoke("stats", run, "--doubts", "2", "--json").stdout)["doubts"]
    assert values_of(doubts["improbable"], "predicate") == ["holding"] * 2
    plan = plan_doubts(find_doubts(run, 2), "drawn", "anna")
    assert values_of(plan.questions, "stratum") == [0, 1, 0, 1]
    assert values_of(plan.strata, "relations") == [2, 2]
