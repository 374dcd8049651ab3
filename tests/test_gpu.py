"""What runs on a GPU gives what it gives on a CPU. Skipped where there is none."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlip_model.attention import sample
from rlip_model.image import enlarge, normalise
from sgpipe.evaluation.inputs import data_classes
from sgpipe.inference.predictions import PredictConfig, list_row_groups
from sgpipe.inference.predictor import Predictor
from sgpipe.recipe import CaptionConfig, TagConfig, packaged_model
from sgpipe.records import Pair, Record
from sgpipe.stages.caption import blip
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.tag.stage import TagStage
from sgpipe.storage.run_records import iter_records
from tests.sgpipe.training.trainings import IMAGES, curve, make_run, training

LEVELS = [(25, 34), (13, 17), (7, 9), (4, 5)]
GPU = "cuda"


@pytest.fixture(scope="module", autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deformable_attention_and_its_gradients(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in LEVELS)
    value = torch.randn(2, tokens, 8, 32, generator=generator)
    locations = 36 * torch.rand(2, 300, 2, 8, 4, 4, generator=generator) - 2  # in pixels
    weights = (
        torch.rand(2, 300, 8, 4, 4, generator=generator)
        .flatten(3)
        .softmax(-1)
        .view(2, 300, 8, 4, 4)
    )

    def sampled(device: str) -> list[Tensor]:
        leaves = [
            tensor.to(device, dtype).requires_grad_() for tensor in (value, locations, weights)
        ]
        result = sample(leaves[0], LEVELS, leaves[1], leaves[2])
        assert result.dtype == dtype
        result.float().square().sum().backward()
        return [
            tensor.detach().float().cpu() for tensor in (result, leaves[0].grad, leaves[2].grad)
        ]

    tolerance = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    )
    for ours, theirs in zip(sampled(GPU), sampled("cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_pixels_are_enlarged_and_normalised_to_the_same_bits() -> None:
    pixels = torch.randint(
        256, (123, 77, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ours, expected = (
        normalise(enlarge(pixels.to(device), (200, 320))).cpu() for device in (GPU, "cpu")
    )
    assert torch.equal(ours, expected)


def _check_compiled(use: dict[str, Any], settings: dict[str, Any]) -> None:
    """Skips what this machine cannot compile: PyTorch needs a C compiler and the headers of
    Python.
    """
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if "compile_error" in use and not (
        headers.exists() and any(map(shutil.which, ("cc", "gcc", "clang")))
    ):
        pytest.skip(use["compile_error"])
    assert "compile_error" not in use, use
    assert ("compilation" in use) == settings.get("compile", False)


def captions(run: Path, group: int = blip.GPU_GROUP, **settings: object) -> list[str]:
    """`group`: how many images a GPU captions at once; of those here, only several groups of few
    are recorded.
    """
    config = CaptionConfig(captioner=str(packaged_model("captioner")), samples=4, **settings)
    stage: Any = CaptionStage(config, {"train": run.parent / "drawn" / "images"}, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blip, "GPU_GROUP", group)
        stage.setup()
    captioned = stage(list(iter_records(run)))
    use = stage.gpu_use()
    _check_compiled(use, settings)
    assert "graph_error" not in use, use
    assert (stage.captioner.recorded is not None) == (group < IMAGES // 2)
    return [caption.text for record in captioned for caption in record.captions]


def test_captions_hardly_depend_on_graphs_and_the_device(run: Path) -> None:
    on_gpu = captions(run, 4, device=GPU, dtype="float32")
    assert len(on_gpu) == 4 * IMAGES
    for comparison in (
        captions(run, device=GPU, dtype="float32"),
        captions(run, device="cpu"),
    ):
        equal = np.mean([ours == theirs for ours, theirs in zip(on_gpu, comparison, strict=True)])
        assert equal > 0.9  # a score that differs in its last digits can change a draw
    assert len(set(captions(run, 4, device=GPU, dtype="bfloat16"))) > IMAGES


def tagged(run: Path, **settings: object) -> dict[tuple[str, int, int, str], float]:
    classes = data_classes(run)
    config = TagConfig(
        tagger=str(packaged_model("tagger")),
        threshold=0.0,
        group_size=8,
        short_side=96,
        long_side=160,
        **settings,
    )
    stage = TagStage(config, {"train": run.parent / "drawn" / "images"}, classes.objects)
    stage.setup()
    for _ in range(3 if config.compile else 1):  # three have some size of images often enough
        records = stage(
            [_with_all_pairs(record, list(classes.relations)) for record in iter_records(run)]
        )
    _check_compiled(stage.gpu_use(), settings)
    return {
        (
            record.image_id,
            relation.subject,
            relation.object,
            relation.predicate,
        ): relation.confidence or 0.0
        for record in records
        for relation in record.relations
    }


def _with_all_pairs(record: Record, predicates: list[str]) -> Record:
    count = range(len(record.objects))
    record.pairs = [
        Pair(one, other, predicates) for one in count for other in count if one != other
    ]
    return record


@pytest.mark.parametrize(
    ("dtype", "options", "tolerance"),
    [
        ("float32", {}, 1e-2),
        ("float32", {"compile": True, "batch_size": 1}, 1e-2),
        ("bfloat16", {}, 0.3),
    ],
)
def test_confidences(run: Path, dtype: str, options: dict[str, Any], tolerance: float) -> None:
    expected = tagged(run, device="cpu")
    confidences = tagged(run, device=GPU, dtype=dtype, **options)
    assert confidences.keys() == expected.keys()
    differences = np.array(
        [abs(confidences[key] - confidence) for key, confidence in expected.items()]
    )
    assert differences.max() < tolerance
    assert differences.mean() < tolerance / 10
    assert max(expected.values()) > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictions(run: Path, dtype: str) -> None:
    def best(**options: object) -> list[float]:
        config = PredictConfig(
            packaged_model("parseda"), data_classes(run), "scene graph", **options
        )
        pairs_of_images = [
            one.pairs for group in list_row_groups(run) for one in Predictor(config)(group)
        ]
        return [float(pairs.scores.max()) for pairs in pairs_of_images if pairs is not None]

    expected = best(device="cpu")
    best_scores = best(device=GPU, dtype=dtype)
    assert len(best_scores) == IMAGES
    assert best_scores == pytest.approx(expected, abs=1e-2 if dtype == "float32" else 0.15)


def test_training_follows_the_same_curve(run: Path, tmp_path: Path) -> None:
    for device in ("cpu", GPU):
        precision = {"optimisation__precision": "float32"}
        training(run, tmp_path / device, "pretrain", workers__device=device, **precision)
    (_, first), *_ = curve(tmp_path / "cpu")
    losses = [np.array([loss for _, loss in curve(tmp_path / device)]) for device in ("cpu", GPU)]
    assert losses[1][0] == pytest.approx(first, rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_training_in_bfloat16_learns(run: Path, tmp_path: Path) -> None:
    training(run, tmp_path / "half", "pretrain", workers__device=GPU)
    values = json.loads((tmp_path / "half" / "last" / "numerics.json").read_text())
    assert values["dtype"] == "bfloat16"
    losses = [loss for _, loss in curve(tmp_path / "half")]
    assert all(np.isfinite(losses))
