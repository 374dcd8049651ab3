"""`tag.method` and `pair.candidates` layout: relations from boxes and captions, and no image is
opened.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.recipe import PACKAGED_LAYOUT, PairConfig, TagConfig
from sgpipe.records import NO_OBJECT, Box, Caption, Pair, Record, Triplet
from sgpipe.stages.layout_pair import LayoutPairStage
from sgpipe.stages.tag.layout.candidates import APART, OVERLAPPING
from sgpipe.stages.tag.layout.equivalents import actions_of, says
from sgpipe.stages.tag.layout.evidence import FILE, CaptionEvidence
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.stages.tag.layout.prior import LayoutPrior
from sgpipe.stages.tag.layout.stage import LayoutStage
from tests.values import values_of

RIDER = (100.0, 50.0, 60.0, 120.0)
HORSE = (60.0, 110.0, 160.0, 130.0)
FAR = (500.0, 60.0, 60.0, 120.0)
CLASSES = ("person", "horse", "dog", "skateboard", "thingamajig")
LANGUAGES = ["reitet auf", "乗る", "", "ridding", "🐎"]
ODD = [
    (0.0, 0.0, 0.0, 0.0),
    (10.0, 10.0, 0.0, 5.0),
    (-50.0, -50.0, 20.0, 20.0),
    (900.0, 900.0, 50.0, 50.0),
    RIDER,
    RIDER,
    (0.0, 0.0, 640.0, 480.0),
    (1e9, 1e9, 1e9, 1e9),
]
SIDE = st.floats(-1e4, 1e4, allow_nan=False, width=32)


def record(
    *objects: tuple[str, tuple[float, float, float, float]], pairs: list[Pair] | None = None
) -> Record:
    boxes = [Box(name, 1, box) for name, box in objects]
    return Record("1", "coco", "val", "absent.jpg", 640, 480, boxes, pairs=pairs or [])


def riding(*predicates: str) -> Record:
    """A rider on a horse, and another person far away: both are candidates."""
    names = list(predicates or ("riding",))
    pairs = [Pair(0, 1, [*names]), Pair(2, 1, [*names])]
    return record(("person", RIDER), ("horse", HORSE), ("person", FAR), pairs=pairs)


def stage(
    evidence: CaptionEvidence | None = None, pair: PairConfig | None = None, **changes: object
) -> LayoutStage:
    config = TagConfig.model_validate({"method": "layout", "threshold": 0.0, **changes})
    layout_stage = LayoutStage(config, pair, evidence)
    layout_stage.check()
    layout_stage.setup()
    return layout_stage


def pairing(candidates: str = "layout", **changes: object) -> LayoutPairStage:
    config = PairConfig.model_validate({"candidates": candidates, **changes})
    layout_pair_stage = LayoutPairStage(config, "coco", CLASSES)
    layout_pair_stage.check()
    layout_pair_stage.setup()
    return layout_pair_stage


def confidences(tagged: Record) -> dict[tuple[int, str, int], float]:
    return {
        (one.subject, one.predicate, one.object): one.confidence or 0.0 for one in tagged.relations
    }


def test_the_confidence_is_that_of_the_pair_times_that_of_the_predicate() -> None:
    [tagged] = stage()([riding("riding", "next to")])
    model = LayoutModel.load(PACKAGED_LAYOUT)
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in (RIDER, HORSE, FAR)], np.float32)
    from sgpipe.stages.tag.layout.scene import ImageLayout

    scores = model.score(
        ImageLayout(boxes, ["person", "horse", "person"], 640, 480), np.array([(0, 1), (2, 1)])
    )
    ride = scores.actions[:, actions_of("riding", model.actions)].max(1)
    confidence_of = confidences(tagged)
    assert set(values_of(tagged.relations, "origin")) == {"layout"}
    for row, subject in enumerate((0, 2)):
        assert confidence_of[subject, "next to", 1] == pytest.approx(
            scores.interacts[row], rel=1e-4
        )
        assert confidence_of[subject, "riding", 1] == pytest.approx(
            scores.interacts[row] * ride[row], rel=1e-4
        )
    assert confidence_of[0, "riding", 1] > 0.5 > 0.1 > confidence_of[2, "riding", 1]


def test_only_confidences_of_at_least_the_threshold() -> None:
    everything = confidences(stage()([riding()])[0])
    highest = max(everything.values())
    [tagged] = stage(threshold=highest)([riding()])
    assert confidences(tagged) == {(0, "riding", 1): highest}


def captioned(predicate: str = "riding") -> Record:
    """The same, with a caption that relates persons to horses."""
    rider = riding("riding", "ride", "kicking")
    rider.captions = [Caption("A woman.")]
    rider.triplets = [
        Triplet("woman", predicate, "horse", "woman", "horse", predicate, 0, "person", "horse")
    ]
    return rider


def test_captions_that_relate_the_classes_and_state_the_predicate_count() -> None:
    related = CaptionEvidence(pair=(0.0, 1.0, 2.0))
    stated = CaptionEvidence(predicate=(0.0, 1.0, 2.0, 1.0))
    plain = confidences(stage(CaptionEvidence())([captioned()])[0])
    by_pair = confidences(stage(related)([captioned()])[0])
    by_predicate = confidences(stage(stated)([captioned()])[0])
    without = confidences(stage(related)([riding("riding", "ride", "kicking")])[0])
    assert all(by_pair[key] > plain[key] == pytest.approx(without[key]) for key in plain)
    assert by_predicate[0, "riding", 1] > plain[0, "riding", 1]
    assert by_predicate[0, "ride", 1] > plain[0, "ride", 1], "in other words"
    assert by_predicate[0, "kicking", 1] == pytest.approx(plain[0, "kicking", 1])


def test_of_subjects_that_the_model_does_not_know_the_overlap_decides() -> None:
    pairs = [Pair(0, 1, ["behind"]), Pair(2, 1, ["behind"])]
    dogs = record(("dog", RIDER), ("horse", HORSE), ("thingamajig", FAR), pairs=pairs)
    [tagged] = stage()([copy.deepcopy(dogs)])
    expected = {(0, "behind", 1): OVERLAPPING, (2, "behind", 1): APART}
    assert confidences(tagged) == pytest.approx(expected)
    [tagged] = stage(pair=PairConfig(candidates="image"))([dogs])
    assert not tagged.relations, "captions state it of other classes"


def test_candidates_need_no_captions_and_are_the_probable_actions() -> None:
    plain = record(("person", RIDER), ("horse", HORSE), ("person", FAR), ("dog", FAR))
    [paired] = pairing()([plain])
    predicates = {(pair.subject, pair.object): pair.predicates for pair in paired.pairs}
    assert "ride" in predicates[0, 1]
    assert all(paired.objects[pair.subject].category == "person" for pair in paired.pairs)
    assert set().union(*predicates.values()) <= set(LayoutModel.load().actions)
    [fewer] = pairing(probability=0.5)(
        [record(("person", RIDER), ("horse", HORSE), ("person", FAR))]
    )
    assert values_of(fewer.pairs, "subject", "object") == [(0, 1)]


def test_candidates_of_captions_are_kept_beside_those_of_the_model_and_not_repeated() -> None:
    rider = captioned()
    rider.pairs = []
    [paired] = pairing("captions+layout")([rider])
    [of_rider] = [pair.predicates for pair in paired.pairs if (pair.subject, pair.object) == (0, 1)]
    assert of_rider[0] == "riding"
    assert "ride" not in of_rider
    assert len(of_rider) > 1


@settings(max_examples=30, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(
            st.sampled_from((*CLASSES, NO_OBJECT)),
            st.one_of(st.sampled_from(ODD), st.tuples(*[SIDE] * 4)),
        ),
        max_size=6,
    ),
    predicate=st.sampled_from(["riding", *LANGUAGES]),
    crowds=st.booleans(),
)
def test_odd_boxes_classes_and_words_give_probabilities(
    boxes: list[tuple[str, tuple[float, float, float, float]]], predicate: str, crowds: bool
) -> None:
    """Boxes without area or outside the image, equal ones, unknown classes, no persons, only
    persons.
    """
    indices = range(len(boxes))
    pairs = [
        Pair(subject, object_, [predicate])
        for subject in indices
        for object_ in indices
        if subject != object_
    ]
    odd = record(*boxes, pairs=pairs)
    for box in odd.objects[:1]:
        box.iscrowd = crowds
    [tagged, paired] = [*_STAGE([copy.deepcopy(odd)]), *_PAIRING([odd])]
    assert all(0 <= (one.confidence or 0.0) <= 1 for one in tagged.relations)
    assert all(pair.subject != pair.object for pair in paired.pairs)


_STAGE = stage()
_PAIRING = pairing()


def test_images_do_not_depend_on_those_beside_them() -> None:
    records = [
        captioned(),
        record(),
        riding("looking at"),
        record(("dog", RIDER)),
        record(("person", RIDER)),
    ]
    together = stage()(copy.deepcopy(records))
    alone = [stage()([copy.deepcopy(source)])[0] for source in records]
    assert together == alone
    paired = pairing()(copy.deepcopy(records))
    assert paired == [pairing()([copy.deepcopy(source)])[0] for source in records]


def test_error_rows_stay_as_they_are() -> None:
    failed = riding()
    failed.fail("load", "no such file")
    [tagged] = stage()([failed])
    assert not tagged.relations
    assert pairing()([tagged])[0].pairs == failed.pairs


def test_too_many_boxes_are_counted() -> None:
    boxes = [("person", (float(at), 0.0, 50.0, 50.0)) for at in range(40)]
    [paired] = pairing(max_pairs=100)([record(*boxes)])
    assert len(paired.pairs) <= 100
    assert paired.left_out["pairs"] == 40 * 39 - 100


def test_of_thousands_of_boxes_the_largest_are_paired() -> None:
    boxes = [
        ("person" if at % 2 else "cup", (at % 600.0, at % 400.0, 9.0, 9.0)) for at in range(2_000)
    ]
    [paired] = pairing()([record(*boxes, ("person", RIDER), ("horse", HORSE))])
    rider = len(boxes)
    assert "ride" in {
        text for pair in paired.pairs if pair.subject == rider for text in pair.predicates
    }
    assert paired.left_out["pairs"] > 10**6


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"pair": [0, 1]}', '{"pair": [0, 1, 0], "predicate": ["a"]}']
)
def test_a_damaged_file_of_evidence_is_one_line(tmp_path: Path, content: str) -> None:
    LayoutModel.load().save(tmp_path)
    assert CaptionEvidence.load(tmp_path) == CaptionEvidence()
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=FILE):
        stage(tagger=str(tmp_path))


def test_a_prior_lowers_what_is_unlikely_and_leaves_unknown_subjects() -> None:
    pairs = [Pair(0, 1, ["riding", "near"]), Pair(2, 1, ["near"]), Pair(3, 1, ["near"])]
    source = record(("person", RIDER), ("horse", HORSE), ("person", FAR), ("dog", FAR), pairs=pairs)
    full, half = (LayoutPrior(power).factors(source) for power in (1.0, 0.5))
    assert full[0] == full[1] > 0.5 > full[2] > 0
    assert full[3] == half[3] == 1.0
    assert half == pytest.approx([factor**0.5 for factor in full])


def test_words_say_actions() -> None:
    assert says({"swing"}, "hold")
    assert not says({"with"}, "hold")
    actions = ("hold", "ride", "skateboard on")
    assert actions_of("is riding", actions) == [1, 2]
    assert actions_of("skateboarding on", actions) == [2]
    assert actions_of("on", actions) == []
