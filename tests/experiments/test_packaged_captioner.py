"""The packaged captioner matches its recipe and is correct on new images."""

from pathlib import Path

import pytest
import torch

from experiments.miniworld.caption_quality import measure
from experiments.miniworld.captioner import CaptionerConfig
from sgpipe.stages.caption.blip import load_blip
from sgpipe.utils.config_file import load, recipe_folder


def packaged() -> Path:
    return Path(__file__).parents[2] / "sgpipe" / "miniworld" / "weights" / "captioner"


def test_the_packaged_captioner_matches_its_recipe() -> None:
    config = load(CaptionerConfig, "captioner", recipe_folder() / "miniworld", {})
    blip = load_blip(str(packaged()), None, torch.device("cpu"), torch.float32)
    assert blip.model.config.vision_config.image_size == config.model.image_size
    assert blip.model.config.vision_config.hidden_size == config.model.vision_width
    assert (packaged() / "model.safetensors").stat().st_size < 4_000_000


@pytest.mark.slow
def test_the_packaged_captioner_is_correct_on_new_images() -> None:
    quality = measure(str(packaged()), 60, counted=1000)
    greedy, samples, shuffled, *_ = quality.rows
    assert greedy.correct.value > 0.8
    assert samples.correct.value > 0.75
    assert samples.composed.value > 0.75
    assert shuffled.correct.value < 0.3
