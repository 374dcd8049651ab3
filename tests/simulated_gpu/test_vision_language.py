"""Vision-language models of transformers on the simulated GPU: captions in batches are those of each
image alone, and how often the host launches kernels and waits for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

if "tests.simulated_gpu.device" not in sys.modules:
    pytest.skip("only with its plugin: make test-simulated-gpu", allow_module_level=True)

from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption import vision_language
from sgpipe.stages.caption.blip import GPU_GROUP
from sgpipe.stages.caption.captioner import CaptionInput
from sgpipe.stages.caption.stage import load_captioner
from sgpipe.stages.caption.vision_language import VisionLanguageCaptioner
from sgpipe.stages.served.chat import ChatRequest, Refusal
from tests import vlm_checkpoints
from tests.simulated_gpu.device import counts
from tests.simulated_gpu.test_budgets import hold
from tests.vlm_checkpoints import FAMILIES, make_vlm

pytestmark = pytest.mark.usefixtures("filled_buffers")

SIZES = ((60, 40), (33, 90), (64, 64), (128, 30))
PUBLISHED_LAYERS = 28  # of Qwen2-VL 2B and Qwen2.5-VL 7B
TOKENS = 16
LAUNCHES_PER_IMAGE = 100
PAGE = Path(__file__).parents[2] / "benchmarks/results/gpu_waits.md"
NAMES_THE_DOG = "Say dog."


def sources(number: int) -> list[CaptionInput]:
    rng = np.random.default_rng(0)
    images = []
    for index in range(number):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(SIZES[index % len(SIZES)])
        images.append(CaptionInput(image, 2**62 + 12345 * index))
    return images


def make_captioner(folder: Path, **settings: object) -> VisionLanguageCaptioner:
    fast = {"samples": 2, "max_tokens": 7, "dtype": "float32", "device": "cuda"}
    config = CaptionConfig.model_validate({"captioner": str(folder)} | fast | settings)
    captioner = load_captioner(config)
    assert isinstance(captioner, VisionLanguageCaptioner)
    captioner.setup()
    return captioner


def alone(
    captioner: VisionLanguageCaptioner, images: Sequence[CaptionInput]
) -> list[list[str] | Refusal]:
    return [next(captioner.caption([image])) for image in images]


@pytest.mark.parametrize("decoding", ["nucleus", "beam"])
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_of_a_batch_are_those_of_each_image(
    tmp_path: Path, family: str, decoding: str
) -> None:
    captioner = make_captioner(make_vlm(tmp_path / family, family), decoding=decoding)
    assert captioner.batch_error == ""
    assert captioner.image_memory.batch_size == GPU_GROUP
    images = sources(5)
    passes = []
    head = captioner.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: passes.append(1))
    together = list(captioner.caption(images))
    in_batches = len(passes)
    assert together == alone(captioner, images)
    assert len(passes) - in_batches > 2 * in_batches
    if decoding == "nucleus":
        assert len({str(captions) for captions in together}) > 1


def test_what_is_wrong_with_an_image_or_an_answer_concerns_it_alone(tmp_path: Path) -> None:
    captioner = make_captioner(make_vlm(tmp_path / "qwen", "qwen2_5_vl"))
    images = sources(4)
    strip = CaptionInput(Image.new("RGB", (2, 600)), 1)  # which its processor refuses
    captions = list(captioner.caption([*images[:2], strip, *images[2:]]))
    assert isinstance(captions.pop(2), Refusal)
    assert captions == list(captioner.caption(images))

    def check(text: str) -> str | None:
        return None if len(text) % 2 else NAMES_THE_DOG

    requests = [
        ChatRequest(f"Where is the {name}?", source.image, seed=source.key, n=2, check=check)
        for name, source in zip(("dog", "small white cat", "bus", "cup"), images, strict=True)
    ]
    answers = list(captioner.ask_all(requests))
    assert answers == [next(captioner.ask_all([request])) for request in requests]


def test_a_model_with_other_scores_in_a_batch_computes_each_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_vlm(tmp_path / "smolvlm", "smolvlm")
    expected = list(make_captioner(folder).caption(sources(3)))
    merge = vision_language.merge_inputs

    def without_mask(inputs: Sequence[BatchFeature], padding: int) -> BatchFeature:
        merged = merge(inputs, padding)
        merged["attention_mask"] = torch.ones_like(merged["attention_mask"])
        return merged

    monkeypatch.setattr(vision_language, "merge_inputs", without_mask)
    captioner = make_captioner(folder)
    assert captioner.batch_error == "scores of several images are not those of each"
    assert captioner.image_memory.batch_size == 1
    assert list(captioner.caption(sources(3))) == expected


@pytest.mark.parametrize(("family", "waits"), [("smolvlm", 7), ("qwen2_5_vl", 30)])
def test_a_token_of_a_batch(
    tmp_path: Path, family: str, waits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = vlm_checkpoints._text_sizes
    deep = {"num_hidden_layers": PUBLISHED_LAYERS}
    monkeypatch.setattr(vlm_checkpoints, "_text_sizes", lambda tokenizer: sizes(tokenizer) | deep)
    folder = make_vlm(tmp_path / family, family)
    captioner = make_captioner(folder, samples=1, min_tokens=TOKENS, max_tokens=TOKENS)
    images = sources(GPU_GROUP)
    list(captioner.caption(images[:2]))  # what is looked at only becomes as wide as it has to be
    counts.clear()
    list(captioner.caption(images))
    hold(LAUNCHES_PER_IMAGE * GPU_GROUP, waits, TOKENS)
    launches_of_image = counts.launches.total() / TOKENS / GPU_GROUP
    [row] = [line for line in PAGE.read_text("utf-8").splitlines() if f"| {family}, " in line]
    stated = float(row.split("|")[3])
    assert launches_of_image == pytest.approx(stated, rel=0.03)
