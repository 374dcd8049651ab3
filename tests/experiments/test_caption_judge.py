"""The caption judge, on the miniworld's own captions."""

from experiments.miniworld.caption_quality import CaptionJudge, correct_rate, truth_of
from experiments.miniworld.captioner import canonical_caption
from sgpipe.miniworld.captions import WORDINGS, scene_captions
from sgpipe.miniworld.scene import random_scene, scene_generator


def test_every_caption_of_the_miniworld_is_true_of_its_scene() -> None:
    judge = CaptionJudge()
    assert judge.statements(["a horse ridden by a girl", "a horse"]) == [(("person", "riding", "horse"),), ()]
    for number in range(40):
        scene = random_scene(9, "val", number)
        for fact in scene.facts:
            assert judge.statements([canonical_caption(scene, fact)]) == [(scene.statement(fact),)]
        varied = [caption.text for caption in scene_captions(scene, scene_generator(9, "val", number, 1))]
        share = correct_rate([judge.statements(varied)], [truth_of(scene)])
        assert share.hits >= share.total - 1  # compound sentences are at times misparsed


def test_canonical_captions() -> None:
    said = set()
    for scene in (random_scene(1, "train", number) for number in range(300)):
        for fact in scene.facts:
            said.add(caption := canonical_caption(scene, fact))
            assert WORDINGS[fact.predicate].participle in caption
    examples = {"a man riding a horse", "a cup on a table", "a woman holding an umbrella"}
    assert examples | {"a dog chasing another dog"} <= said
    assert not any("a umbrella" in text or "an dog" in text for text in said)
