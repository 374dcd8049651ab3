"""How often the host launches kernels and waits for the GPU: networks of the published depths, but
narrow.
"""

from __future__ import annotations

import sys
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

if "tests.simulated_gpu.device" not in sys.modules:
    pytest.skip("only with its plugin: make test-simulated-gpu", allow_module_level=True)

from rlip_model.losses import DetectionCriterion, TaggerCriterion
from rlip_model.model import RTagger
from rlip_model.presets import preset, tiny_sizes
from rlip_model.text import build_tokenizer
from rlip_model.training.loop import Trainer
from rlip_model.training.objective import Objective
from sgpipe.recipe import CaptionConfig, TagConfig
from sgpipe.records import Box, Pair, Record, Relation
from sgpipe.stages.caption import blip
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.score.scorer import VlmScorer
from sgpipe.stages.tag.stage import TagStage
from tests.factories import make_blip
from tests.rlip_model.training.worlds import ToyFeed, folder, network, options
from tests.simulated_gpu.device import counts
from tests.vlm_checkpoints import make_vlm

IMAGES = 8
PREDICATES = ("riding", "next to", "holding")
TOKENS = 16
NARROW = {
    "hidden_dim": 64,
    "feedforward_dim": 64,
    "num_heads": 4,
    "fusion_dim": 32,
    "fusion_heads": 2,
}


def hold(launches: float, waits: float, times: float = 1) -> None:
    """Not more often than that, each time."""
    per_call = counts.launches.total() / times, counts.waits.total() / times
    print(f"\n{per_call[0]:.0f} of {launches:.0f} launches, {per_call[1]:.2f} of {waits} waits")
    assert per_call[0] <= launches, counts.launches.most_common(12)
    assert per_call[1] <= waits, counts.waits


def refuse(*_: object, **__: object) -> None:
    """As where a GPU cannot record a graph."""
    raise RuntimeError("operation not permitted\nwhen stream is capturing")


def images(path: Path) -> Path:
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")
    return path


def record(number: int) -> Record:
    boxes = [
        Box(name, at, (4.0 * at, 5.0, 20.0, 30.0))
        for at, name in enumerate(("person", "dog", "bench"))
    ]
    pairs = [
        Pair(0, 1, ["riding"]),
        Pair(0, 2, list(PREDICATES[: 1 + number % 3])),
        Pair(1, 2, ["next to"]),
    ]
    return Record(str(number), "test", "val", f"{number}.png", 64, 48, boxes, pairs=pairs)


@pytest.mark.parametrize("backbone", ["resnet50", "swin_tiny"])
def test_a_batch_of_the_tagger(tmp_path: Path, backbone: str) -> None:
    tokenizer = build_tokenizer(
        ["person dog bench no objects riding next to holding a b c d e f g h i j"]
    )
    small = {} if backbone == "resnet50" else {"swin_embed_dim": 12, "swin_heads": (1, 2, 2, 4)}
    text = tiny_sizes(len(tokenizer))["text_config"]
    tagger = RTagger(preset("tagger", backbone, **NARROW, **small, text_config=text))
    tagger.set_tokenizer(tokenizer)
    tagger.save_pretrained(tmp_path / "tagger")
    config = TagConfig(
        tagger=str(tmp_path / "tagger"), threshold=0.0, short_side=64, long_side=96, device="cuda"
    )
    stage = TagStage(config, {"val": images(tmp_path)}, ["person", "dog", "bench"])
    stage.setup()
    stage(list(map(record, range(IMAGES))))
    counts.clear()
    stage(list(map(record, range(IMAGES))))
    hold(2000, 1)


@pytest.mark.parametrize("launches", [120, 375], ids=["by graphs", "without"])
def test_a_token_of_captions(
    tmp_path: Path, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launches > 120:
        monkeypatch.setattr(torch.cuda, "graph", refuse)
    captioner = make_blip(tmp_path / "blip", layers=12)
    config = CaptionConfig(captioner=str(captioner), device="cuda", max_tokens=TOKENS + 4)
    stage = CaptionStage(config, {"val": images(tmp_path)}, 0)
    stage.setup()
    prompt = len(stage.captioner.prompt)
    group = [record(number % IMAGES) for number in range(blip.GPU_GROUP)]
    for _ in range(2):  # the second group is recorded
        stage(group)
    counts.clear()
    stage(group)
    hold(launches, 0.3, TOKENS + 4 - prompt)


@pytest.mark.usefixtures("filled_buffers")
@pytest.mark.parametrize(
    ("questions", "launches", "waits"), [("each", 5000, 440), ("shared", 360, 24)]
)
def test_twelve_candidates_of_an_image(
    tmp_path: Path, questions: Literal["each", "shared"], launches: int, waits: int
) -> None:
    """Two questions about each: on images of their own, or on one with numbers."""
    model = make_vlm(tmp_path / "vlm", "smolvlm")
    config = TagConfig(method="vlm", tagger=str(model), questions=questions, device="cuda")
    scorer = VlmScorer(config)
    scorer.load()
    boxes = record(0).objects
    pairs = permutations(range(len(boxes)), 2)
    relations = [Relation(*pair, text) for pair in pairs for text in ("next to", "holding")]
    image = Image.new("RGB", (64, 48), "grey")
    counts.clear()
    scorer.scores(image, boxes, relations)
    hold(launches, waits)


@pytest.mark.parametrize("kind", ["tagger", "parsed", "parseda", "dense"])
def test_a_training_step(tmp_path: Path, kind: str) -> None:
    deep = {
        "swin_depths": (2, 2, 6, 2),
        "encoder_layers": 6,
        "fusion_interval": 2,
        "decoder_layers": 3,
    }
    if kind == "dense":
        deep |= {"backbone": "convolutional", "conv_width": 8, "dense_head": True, "proposals": 4}
    model = network("parseda" if kind == "dense" else kind, **deep)
    criterion = TaggerCriterion() if kind == "tagger" else DetectionCriterion()
    model.to("cuda")
    trainer = Trainer(
        Objective(model, criterion), options(ema=0.999, epochs=1), folder(tmp_path), log_every=100
    )
    trainer.module.train()
    for parts in ToyFeed(3, 4)._batches(0, 0):
        counts.clear()
        trainer._step([part.pinned() for part in parts], 0.0)
    hold(8000, 12)
