"""Captions are true, and the parser and the class matcher understand their words."""

import numpy as np
import pytest

from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.relations import SPLITS, Statement
from sgpipe.miniworld.scene import Scene, SceneCaption, random_scene, scene_captions
from sgpipe.recipe import PairConfig, ParseConfig
from sgpipe.records import Box, Caption, Record, Triplet
from sgpipe.stages.pair import PairStage
from sgpipe.stages.parse.stage import CaptionParser
from sgpipe.utils.lemmas import verb_lemma
from tests.values import values_of

Sentences = list[tuple[Scene, SceneCaption]]


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    scenes = [random_scene(21, split, number) for split in SPLITS for number in range(60)]
    captions = [
        (scene, scene_captions(scene, np.random.default_rng(scene.number))) for scene in scenes
    ]
    return [(scene, caption) for scene, texts in captions for caption in texts]


def lemma(statement: Statement) -> Statement:
    subject, predicate, object_ = statement
    first, *rest = predicate.split()
    return (
        subject,
        " ".join([verb_lemma(first) if first.endswith("ing") else first, *rest]),
        object_,
    )


@pytest.fixture(scope="module", params=["rules", "learned"])
def understood(sentences: Sentences, request: pytest.FixtureRequest) -> list[set[Statement]]:
    """What the parse and pair stages extract from each sentence, with all classes of the miniworld
    present.
    """
    parser = CaptionParser(ParseConfig(parser=request.param))
    pair = PairStage(PairConfig(), "coco", KINDS)
    pair.setup()
    objects = [Box(kind, 1, (0, 0, 1, 1)) for kind in KINDS]
    records = [
        Record("1", "coco", "val", "1.jpg", 9, 9, objects, [Caption(c.text)], triplets=triplets)
        for (_, c), triplets in zip(
            sentences, parser.parse(c.text for _, c in sentences), strict=True
        )
    ]
    return [set(map(statement, record.triplets)) for record in pair(records)]


def statement(triplet: Triplet) -> Statement:
    # the learned parser's lemma
    verb = "lie on" if triplet.predicate_lemma == "lay on" else triplet.predicate_lemma
    return str(triplet.subject_category), verb, str(triplet.object_category)


def test_sentences_are_true_and_understood_as_they_are_meant(
    sentences: Sentences, understood: list[set[Statement]]
) -> None:
    wrong = []
    false = []
    for (scene, caption), statements in zip(sentences, understood, strict=True):
        assert set() < set(caption.facts) <= set(scene.facts)
        if statements != {lemma(scene.statement(fact)) for fact in caption.facts}:
            wrong.append(caption.text)
        if not statements <= {lemma(scene.statement(fact)) for fact in scene.facts}:
            false.append(caption.text)
    assert len(wrong) <= 0.02 * len(sentences), wrong
    assert len(false) <= 0.01 * len(sentences), false


def test_every_composed_fact_is_stated_and_captions_are_distinct(sentences: Sentences) -> None:
    by_scene: dict[int, tuple[Scene, list[SceneCaption]]] = {}
    for scene, caption in sentences:
        by_scene.setdefault(id(scene), (scene, []))[1].append(caption)
    for scene, captions in by_scene.values():
        assert len(set(values_of(captions, "text"))) == len(captions) <= 5
        stated = {fact for caption in captions for fact in caption.facts}
        composed = [fact for fact in scene.facts if not fact.implied]
        assert set(composed[:5]) <= stated
    assert len(sentences) > 4.8 * len(by_scene)
