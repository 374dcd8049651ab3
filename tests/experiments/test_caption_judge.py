"""The caption judge, on captions and ground truth written by hand."""

import pytest

from experiments.miniworld.caption_quality import CaptionJudge, correct_rate, truth_of
from sgpipe.miniworld.captions import canonical_caption, scene_captions
from sgpipe.miniworld.scene import random_scene, scene_generator

RIDING = ("person", "riding", "horse")
SITTING = ("person", "sitting on", "horse")
CHASING = ("dog", "chasing", "cat")
BESIDE = ("dog", "next to", "dining table")


@pytest.fixture(scope="module")
def judge() -> CaptionJudge:
    return CaptionJudge()


@pytest.mark.parametrize(
    ("caption", "statements"),
    [
        ("a woman riding a horse", [RIDING]),
        ("a boy rides a brown horse", [RIDING]),
        ("a horse ridden by a girl", [RIDING]),
        ("a puppy next to a table", [BESIDE]),
        ("a man sits on a horse while a dog chases a kitten", [SITTING, CHASING]),
        ("a dog juggling a cat", [("dog", "juggling", "cat")]),
        ("a horse", []),
    ],
)
def test_captions_are_read_in_any_wording(judge: CaptionJudge, caption: str, statements: list) -> None:
    assert judge.statements([caption]) == [tuple(statements)]


def test_every_caption_of_the_miniworld_is_true_of_its_scene(judge: CaptionJudge) -> None:
    for number in range(40):
        scene = random_scene(9, "val", number)
        plain = [canonical_caption(scene, fact) for fact in scene.facts]
        for caption in plain:
            assert judge.statements([caption.text]) == [(scene.statement(caption.facts[0]),)]
        varied = [caption.text for caption in scene_captions(scene, scene_generator(9, "val", number, 1))]
        share = correct_rate([judge.statements(varied)], [truth_of(scene)])
        assert share.hits >= share.total - 1  # compound sentences are at times misparsed
