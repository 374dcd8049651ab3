"""Other ways to decide which candidates are relations: all, those whose boxes overlap, and a scorer."""

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgpipe.calibration import scoring_of_recipe
from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig, Recipe, TagConfig, recipe_notes
from sgpipe.records import NO_OBJECT, Box, Pair, Record
from sgpipe.stages.score.scorer import Refusal
from sgpipe.stages.tag.methods import AssumedStage, check_tagger
from sgpipe.stages.tag.stage import ScoredStage
from tests.clip_checkpoints import make_clip
from tests.factories import make_calibration

OBJECTS = [
    Box("person", 0, (10, 10, 40, 60)), Box("dog", 1, (50, 20, 30, 30)),  # touches the person
    Box("bench", 2, (20, 50, 70, 30)), Box("cup", 3, (25, 55, 0, 5)), Box(NO_OBJECT, 0, (0, 0, 0, 0)),
]  # fmt: skip
PAIRS = [
    Pair(0, 1, ["holding", "next to"]), Pair(0, 2, ["sitting on"]), Pair(0, 3, ["holding"]), Pair(0, 4, ["smiling"]),
    Pair(2, 1, ["next to"]),
]  # fmt: skip
ALL = [(pair.subject, pair.object, text) for pair in PAIRS for text in pair.predicates]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    make_clip(folder / "clip")
    noise = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(noise.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def record(index: int, pairs: list[Pair] | None = None) -> Record:
    own = copy.deepcopy(PAIRS if pairs is None else pairs)
    return Record(str(index), "test", "val", f"{index}.png", 120, 90, copy.deepcopy(OBJECTS), pairs=own)


def statements(tagged: Record) -> list[tuple[int, int, str]]:
    return [(item.subject, item.object, item.predicate) for item in tagged.relations]


def scored(folder: Path, **changes: object) -> ScoredStage:
    settings = {"method": "clip", "tagger": str(folder / "clip"), "threshold": 0.0, **changes}
    stage = ScoredStage(TagConfig.model_validate(settings), {"val": folder})
    stage.check()
    stage.setup()
    return stage


def test_all_candidates_are_relations_with_confidence_1() -> None:
    stage = AssumedStage(TagConfig(method="all", threshold=0.9), {})
    [tagged, bare] = stage([record(0), record(9, [])])
    assert statements(tagged) == ALL
    assert {item.confidence for item in tagged.relations} == {1.0}
    assert (bare.ok, bare.relations) == (True, [])


def test_overlapping_boxes_share_some_area() -> None:
    moved = record(0)
    moved.objects[1] = Box("dog", 1, (49, 20, 30, 30))
    [tagged, nearer] = AssumedStage(TagConfig(method="overlap"), {})([record(0), moved])
    assert statements(tagged) == [(0, 2, "sitting on")]
    assert statements(nearer) == [(0, 1, "holding"), (0, 1, "next to"), (0, 2, "sitting on")]


def test_a_scorer_keeps_what_is_above_the_threshold(folder: Path) -> None:
    [tagged] = scored(folder)([record(0)])
    assert tagged.ok
    assert statements(tagged) == [each for each in ALL if each[1] != 3], "a cup without area is not seen"
    least = sorted(item.confidence for item in tagged.relations)[2]
    [fewer] = scored(folder, threshold=least)([record(0)])
    assert fewer.relations == [item for item in tagged.relations if item.confidence > least]


def test_a_scorer_gives_the_same_confidences_whatever_is_beside(folder: Path) -> None:
    together = scored(folder)([record(0), record(1), record(2)])
    for index in range(3):
        assert scored(folder)([record(index)])[0] == together[index]
    [reversed_] = scored(folder)([record(1, PAIRS[::-1])])
    assert {item.confidence for item in reversed_.relations} == {item.confidence for item in together[1].relations}


def test_what_cannot_be_scored_is_an_error_row(folder: Path) -> None:
    stage = scored(folder)
    missing, broken = stage([record(7), record(0)])
    assert missing.error.startswith("tag: image file not found")
    assert broken.ok
    stage.scorer.scores = lambda image, objects, relations: [0.5, *[Refusal("too long")] * (len(relations) - 1)]
    [refused] = stage([record(0)])
    assert (refused.error, refused.relations) == ("tag: too long", [])


def test_what_a_method_needs_and_those_without_a_model_do_not() -> None:
    served = {"method": "clip", "tagger": "a/b", "endpoint": "http://localhost:1/v1"}
    for settings in ({}, {"method": "clip"}, served, {"method": "all", "precision": 0.9}):
        with pytest.raises(UserError):
            check_tagger(TagConfig.model_validate(settings))
    for method in ("all", "overlap"):
        check_tagger(TagConfig(method=method, tagger="./no/such/folder"), PairConfig())
        assert "confidence 1" in recipe_notes(Recipe(tag=TagConfig(method=method)), detects=False)[0]
    check_tagger(TagConfig(method="vlm", tagger="any/name/there", endpoint="http://localhost:1/v1"))
    with pytest.raises(UserError, match=r"pair\.restrict=group is for rtagger"):
        check_tagger(TagConfig(method="all"), PairConfig(restrict="group"))
    assert recipe_notes(Recipe(tag=TagConfig(tagger="a")), detects=False) == []


def test_a_calibration_is_of_the_same_method_and_model(folder: Path, tmp_path: Path) -> None:
    config = TagConfig(method="clip", tagger=str(folder / "clip"))
    scoring = scoring_of_recipe(config, PairConfig())
    own = make_calibration(tmp_path / "own.json", scoring)
    scored(folder, calibration=str(own), threshold=0.5)
    for method in ("rtagger", "vlm"):
        other = scoring_of_recipe(config.model_copy(update={"method": method}), PairConfig())
        file = make_calibration(tmp_path / f"{method}.json", other)
        with pytest.raises(UserError, match="does not fit the model"):
            scored(folder, calibration=str(file), threshold=0.5)
    assert "method" not in scoring_of_recipe(TagConfig(tagger="a"), PairConfig()), "as earlier versions wrote it"
