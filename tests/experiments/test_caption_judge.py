"""The caption judge, on the miniworld's own captions."""

from experiments.miniworld.caption_quality import CaptionJudge, correct_rate, truth_of
from sgpipe.miniworld.captions import canonical_caption, scene_captions
from sgpipe.miniworld.scene import random_scene, scene_generator


def test_every_caption_of_the_miniworld_is_true_of_its_scene() -> None:
    judge = CaptionJudge()
    assert judge.statements(["a horse ridden by a girl", "a horse"]) == [(("person", "riding", "horse"),), ()]
    for number in range(40):
        scene = random_scene(9, "val", number)
        plain = [canonical_caption(scene, fact) for fact in scene.facts]
        for caption in plain:
            assert judge.statements([caption.text]) == [(scene.statement(caption.facts[0]),)]
        varied = [caption.text for caption in scene_captions(scene, scene_generator(9, "val", number, 1))]
        share = correct_rate([judge.statements(varied)], [truth_of(scene)])
        assert share.hits >= share.total - 1  # compound sentences are at times misparsed
