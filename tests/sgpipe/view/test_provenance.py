"""Where relations come from, for each way in which a run can have got them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sgpipe.recipe import PairConfig
from sgpipe.records import Box, Caption, Pair, Record, Relation, Triplet
from sgpipe.stages.pair import PairStage
from sgpipe.view.image_page import PairSettings, Provenance, how_matched

MAN = Triplet("young man", "riding", "horses", "man", "horse", "ride", 0)
BOXES = [Box("person", 1, (0, 0, 9, 9)), Box("horse", 2, (5, 5, 9, 9)), Box("dog", 3, (7, 7, 9, 9))]


def header(imported: str | None = None, **pair: Any) -> dict[str, Any]:
    """The header of an imported run, or of a generated one with these settings of the pair stage."""
    return {"identity": {"import": imported} if imported else {"pair": pair, "tag": {"threshold": 0.05}}}


def paired(triplets: list[Triplet], **settings: Any) -> Record:
    """A record with the pairs that the pair stage finds."""
    captions = [Caption("a young man riding horses"), Caption("a dog near a horse")]
    record = Record("0", "coco", "val", "0.jpg", 20, 20, list(BOXES), captions, [replace(t) for t in triplets])
    stage = PairStage(PairConfig(**settings), "coco", [])
    stage.setup()
    [found] = stage([record])
    return found


@pytest.mark.parametrize("match", ["head", "substring"])
def test_a_candidate_leads_back_to_the_triplets_that_state_it(match: str) -> None:
    spelled = replace(MAN, predicate="Riding  On")
    record = paired([MAN, spelled, replace(MAN, caption=1)], match=match)
    provenance = Provenance(record, header(candidates="captions", match=match))
    stated = {}
    for pair in record.pairs:
        for predicate in pair.predicates:
            relation = Relation(pair.subject, pair.object, predicate, 0.5)
            stated[predicate] = provenance.stating(relation)
            states = "2 of 2 captions state" if predicate == "riding" else "1 of 2 captions states"
            assert provenance.explain(relation) == f"{states} it of these two classes."
    assert stated == {"riding": ([0, 2], []), "riding on" if match == "head" else "Riding  On": ([1], [])}


def test_with_candidates_of_the_whole_image_a_pair_may_carry_what_is_said_of_others() -> None:
    record = paired([MAN], candidates="image")
    provenance = Provenance(record, header(candidates="image", match="head"))
    own, other = Relation(0, 1, "riding", 0.9), Relation(2, 1, "riding", 0.1)
    assert provenance.stating(own) == ([0], [])
    assert provenance.stating(other) == ([], [0])
    assert "pair.candidates: image" in provenance.explain(other)


@pytest.mark.parametrize(
    ("run", "confidence", "origin"),
    [
        (header(candidates="captions", restrict="group"), 0.4, "candidate of another pair"),
        (header(imported="visual_genome"), None, "It is annotated"),
        (header(imported="rlip"), 0.4, "imported with its confidence"),
        ({}, 0.4, "does not say"),
    ],
)
def test_a_relation_that_no_caption_states_says_so(run: dict[str, Any], confidence: float | None, origin: str) -> None:
    record = Record("0", "vg", "val", "0.jpg", 20, 20, list(BOXES), relations=[Relation(0, 1, "on", confidence)])
    provenance = Provenance(record, run)
    assert origin in provenance.explain(record.relations[0])
    [candidate] = provenance.candidates[0, 1]
    values = {"own": False, "relation": True, "rank": None if confidence is None else 1}
    assert candidate == {"predicate": "on", "confidence": confidence, **values}


def test_candidates_are_ranked_by_confidence_and_those_without_come_last() -> None:
    record = paired([MAN, replace(MAN, predicate="on"), replace(MAN, predicate="near"), replace(MAN, predicate="at")])
    record.relations = [
        Relation(0, 1, "on", 0.2), Relation(0, 1, "near", 0.7), Relation(0, 1, "near", 0.6), Relation(0, 1, "by", None)
    ]  # fmt: skip
    found = Provenance(record, header(candidates="captions")).candidates[0, 1]
    assert [tuple(candidate.values()) for candidate in found] == [
        ("near", 0.7, 1, True, True),
        ("on", 0.2, 2, True, True),
        ("by", None, None, True, False),
        ("riding", None, None, False, True),
        ("at", None, None, False, True),
    ]


def test_what_a_caption_implies_is_a_statement() -> None:
    boxes, pairs = [Box("person", 1, (0, 0, 9, 9)), Box("skis", 35, (5, 5, 9, 9))], [Pair(0, 1, ["skiing on"])]
    captions = [Caption("snow"), Caption("A skier.")]
    record = Record("0", "coco", "val", "0.jpg", 20, 20, boxes, captions, pairs=pairs)
    for loose, origin in ((True, "1 of 2 captions states it of these two classes."), (False, "The run does not say")):
        provenance = Provenance(record, header(candidates="captions", match="head", loose=loose))
        assert provenance.explain(Relation(0, 1, "skiing on", 0.5)).startswith(origin)
        assert [(each["caption"], each["predicate"]) for each in provenance.statements] == [(1, "skiing on")] * loose


def test_the_settings_are_those_of_the_last_run_that_has_them() -> None:
    made = header(candidates="image", match="head")["identity"]
    settings = PairSettings("image", "head", None, 0.05)
    assert PairSettings.of({"origin": [{"import": "vg"}], "identity": made}) == settings
    assert PairSettings.of({"origin": [made], "identity": {"scored": "x"}}) == settings
    assert PairSettings.of({"origin": [made], "identity": {"import": "hf"}}) == PairSettings(imported="hf")
    calibrated = {"identity": {"tag": {"threshold": 0.05, "calibration": "sha256:0"}}}
    assert PairSettings.of(calibrated).threshold is None
    for broken in ({"identity": {"pair": 3}}, {"origin": [None], "identity": {}}):
        assert PairSettings.of(broken) == PairSettings()


@pytest.mark.parametrize(
    ("phrase", "head", "category", "match"),
    [
        ("dog", "dog", "dog", "same name"),
        ("dogs", "dog", "dog", "other form"),
        ("knives", "knife", "knife", "other form"),
        ("surf board", "board", "surfboard", "other form"),
        ("big dogs", "dog", "dog", "head noun"),
        ("red fire hydrants", "hydrant", "fire hydrant", "head noun"),
        ("young man", "man", "person", "synonym"),
        ("狗", "狗", "dog", "synonym"),
        ("", "", "dog", "synonym"),
        ("sky", "sky", None, "none"),
    ],
)
def test_how_a_noun_met_a_class(phrase: str, head: str, category: str | None, match: str) -> None:
    assert how_matched(phrase, head, category) == match
