"""The tiny captioner: its data, training, and quality."""

import pytest
import torch
from transformers import BertTokenizerFast

from experiments.miniworld.caption_quality import measure
from experiments.miniworld.captioner import CaptionerConfig, CaptionerModelConfig, caption_words, save_tokenizer
from experiments.miniworld.captioner_data import render_captioner_data, taught_facts
from experiments.miniworld.train_captioner import CaptionerTrainer
from sgpipe.miniworld.scene import random_scene
from sgpipe.recipe import packaged_model

SMALL = CaptionerModelConfig(
    image_size=32, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1, heads=2
)
CONFIG = CaptionerConfig(model=SMALL, train_images=6, steps=4, batch_size=4, dense_share=0.5, warmup=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    return save_tokenizer(tmp_path_factory.mktemp("captioner"), caption_words())


def test_taught_facts_are_true_and_include_all_composed_ones() -> None:
    for number in range(60):
        scene = random_scene(5, "train", number)
        taught = {(fact.subject, fact.predicate, fact.object) for fact in taught_facts(scene)}
        composed = {(fact.subject, fact.predicate, fact.object) for fact in scene.facts if not fact.implied}
        assert composed <= taught <= {(fact.subject, fact.predicate, fact.object) for fact in scene.facts}
        assert all((other, "in front of", one) in taught for one, predicate, other in taught if predicate == "behind")


def test_training_follows_from_the_seed_and_starts_with_the_dense_loss(tokenizer: BertTokenizerFast) -> None:
    data = render_captioner_data(SMALL, tokenizer, CONFIG.train_images, CONFIG.seed)
    first, second = (CaptionerTrainer(CONFIG, tokenizer, data) for _ in range(2))
    losses = [first.step() for _ in range(4)]
    assert losses == [second.step() for _ in range(4)]
    assert [loss.caption > 0 for loss in losses] == [False, False, True, True]
    for (name, one), two in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_the_packaged_captioner_is_correct_on_new_images() -> None:
    quality = measure(str(packaged_model("captioner")), 60, counted=1000)
    greedy, samples, shuffled, *_ = quality.rows
    assert greedy.correct.value > 0.8
    assert samples.correct.value > 0.75
    assert samples.composed.value > 0.75
    assert shuffled.correct.value < 0.3
