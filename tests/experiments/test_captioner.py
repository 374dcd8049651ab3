"""The tiny captioner: its vocabulary, data and training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from experiments.miniworld.caption_quality import measure
from experiments.miniworld.captioner import (
    CaptionerConfig,
    CaptionerModelConfig,
    build_captioner,
    caption_words,
    prompt_ids,
    save_captioner,
    save_tokenizer,
)
from experiments.miniworld.captioner_data import (
    render_captioner_data,
    taught_facts,
)
from experiments.miniworld.train_captioner import CaptionerTrainer
from sgpipe.miniworld.scene import random_scene
from sgpipe.recipe import packaged_model
from sgpipe.stages.caption.blip import load_blip
from sgpipe.utils.config_file import load, recipe_folder

SMALL = CaptionerModelConfig(
    image_size=32, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1, heads=2
)
CONFIG = CaptionerConfig(model=SMALL, train_images=6, steps=4, batch_size=4, dense_share=0.5, warmup=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captioner")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> BertTokenizerFast:
    return save_tokenizer(folder, caption_words())


def test_taught_facts_are_true_and_include_all_composed_ones() -> None:
    for number in range(60):
        scene = random_scene(5, "train", number)
        taught = {(fact.subject, fact.predicate, fact.object) for fact in taught_facts(scene)}
        true = {(fact.subject, fact.predicate, fact.object) for fact in scene.facts}
        composed = {(fact.subject, fact.predicate, fact.object) for fact in scene.facts if not fact.implied}
        assert composed <= taught <= true
        for subject, predicate, object_ in taught:
            if predicate == "behind":
                assert (object_, "in front of", subject) in taught


def test_training_follows_from_the_seed_and_starts_with_the_dense_loss(tokenizer: BertTokenizerFast) -> None:
    data = render_captioner_data(SMALL, tokenizer, CONFIG.train_images, CONFIG.seed)
    first, second = (CaptionerTrainer(CONFIG, tokenizer, data) for _ in range(2))
    losses = [first.step() for _ in range(4)]
    assert losses == [second.step() for _ in range(4)]
    assert [loss.caption > 0 for loss in losses] == [False, False, True, True]
    for (name, one), two in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


def test_a_saved_captioner_is_small_and_loads_as_blip(folder: Path, tokenizer: BertTokenizerFast) -> None:
    torch.manual_seed(1)
    model = build_captioner(SMALL, tokenizer).eval()
    save_captioner(model, folder)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert next(model.parameters()).dtype == torch.float32
    blip = load_blip(str(folder), None, torch.device("cpu"), torch.float32)
    assert blip.prepare.size == SMALL.image_size
    assert blip.prompt_ids("a picture of") == prompt_ids(tokenizer)
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        blip.encode(pixels), model.vision_model(pixel_values=pixels).last_hidden_state, rtol=0, atol=0.02
    )


def test_the_packaged_captioner_matches_its_recipe() -> None:
    config = load(CaptionerConfig, "captioner", recipe_folder() / "miniworld", {})
    blip = load_blip(str(packaged_model("captioner")), None, torch.device("cpu"), torch.float32)
    assert blip.model.config.vision_config.image_size == config.model.image_size
    assert blip.model.config.vision_config.hidden_size == config.model.vision_width
    assert (packaged_model("captioner") / "model.safetensors").stat().st_size < 4_000_000


@pytest.mark.slow
def test_the_packaged_captioner_is_correct_on_new_images() -> None:
    quality = measure(str(packaged_model("captioner")), 60, counted=1000)
    greedy, samples, shuffled, *_ = quality.rows
    assert greedy.correct.value > 0.8
    assert samples.correct.value > 0.75
    assert samples.composed.value > 0.75
    assert shuffled.correct.value < 0.3
