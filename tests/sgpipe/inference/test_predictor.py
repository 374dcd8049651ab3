"""Predictions of a small untrained network for synthetic images, and the commands that write
them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rlip_model.model import ParSeDA
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.evaluation.inputs import data_classes
from sgpipe.inference.predictions import ImagePrediction, PredictConfig, list_row_groups
from sgpipe.inference.predictor import predict
from sgpipe.recipe import network_folder, trained_sides
from sgpipe.stages.detect import load_detector
from sgpipe.storage.manifest import Manifest
from sgpipe.training.initial_model import make_initial_model
from sgpipe.utils.ray_cluster import start_ray
from tests.sgpipe.training.trainings import IMAGES, recipe
from tests.values import values_of


@pytest.fixture(scope="module")
def network(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ParSeDA; tests must not change it."""
    folder = tmp_path_factory.mktemp("network") / "parseda"
    classes = data_classes(drawn_run)
    texts = [*classes.objects, *classes.relations]
    make_initial_model(recipe(drawn_run, "pretrain").model, texts, 0, folder, (48, 64))
    return folder


def config(run: Path, network: Path, **changes: object) -> PredictConfig:
    plain = PredictConfig(network, data_classes(run), "scene graph", sides=(48, 64), device="cpu")
    return replace(plain, **changes)  # type: ignore[arg-type]


def predicted(run: Path, network: Path, **changes: object) -> list[ImagePrediction]:
    return list(predict(config(run, network, **changes), list_row_groups(run)))


def predict_command(network: Path, run: Path, out: Path, *options: str) -> Result:
    places = ["predict", str(network), "--data", str(run), "--out", str(out)]
    result = CliRunner().invoke(app, [*places, "--device", "cpu", *options])
    assert result.exit_code == 0, result.output
    return result


def assert_close(
    ones: list[ImagePrediction], expected: list[ImagePrediction], pixels: float
) -> None:
    for one, other in zip(ones, expected, strict=True):
        assert one.row == other.row
        assert np.allclose(one.pairs.scores, other.pairs.scores, atol=1e-4)
        assert np.allclose(one.pairs.subject_boxes, other.pairs.subject_boxes, atol=pixels)


def test_batch_size_and_threads_change_only_rounding(drawn_run: Path, network: Path) -> None:
    first = predicted(drawn_run, network)
    assert [one.row.image_id for one in first] == [
        str(1_000_000 + number) for number in range(IMAGES)
    ]
    assert_close(first, predicted(drawn_run, network, batch=5, threads=1), pixels=0.5)
    assert all(one.pairs.subject_boxes.max() > 64 for one in first)  # in pixels of the image
    assert {one.pairs.scores.shape for one in first} == {
        (8, len(data_classes(drawn_run).relations))
    }


def test_other_image_sizes_in_the_batch_change_nothing(drawn_run: Path) -> None:
    trained = Path(str(files("sgpipe.miniworld") / "weights" / "parseda"))
    alone, together = (predicted(drawn_run, trained, sides=None, batch=batch) for batch in (1, 4))
    assert len({(one.row.width, one.row.height) for one in alone}) > 1
    assert_close(alone, together, pixels=0.01)


def test_hoi_predicts_only_persons_as_subjects(drawn_run: Path, network: Path) -> None:
    person = data_classes(drawn_run).objects.index("person")
    pairs = values_of(predicted(drawn_run, network, task="hoi"), "pairs")
    assert all(pair is not None and (pair.subject_labels == person).all() for pair in pairs)
    fewer = values_of(predicted(drawn_run, network, task="zero-shot hoi"), "pairs")
    assert sum(len(predicted_pairs) for predicted_pairs in fewer if predicted_pairs) < sum(
        len(pair) for pair in pairs if pair
    )


def test_unreadable_images_are_reported(drawn_run: Path, network: Path, tmp_path: Path) -> None:
    images = shutil.copytree(Manifest.load(drawn_run).run["images"]["train"], tmp_path / "images")
    (images / "1000003.jpg").write_bytes(b"no image")
    (images / "1000004.jpg").unlink()
    ones = list(predict(config(drawn_run, network), list_row_groups(drawn_run, images=images)))
    assert [one.row.image_id for one in ones if one.pairs is None] == ["1000003", "1000004"]
    assert "not found" in str(ones[4].error)
    good = [
        (one, full)
        for one, full in zip(ones, predicted(drawn_run, network), strict=True)
        if one.pairs
    ]
    assert all(np.allclose(one.pairs.scores, full.pairs.scores, atol=1e-4) for one, full in good)


def test_a_parquet_file_holds_the_best_triplets_by_name(
    drawn_run: Path, network: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "predictions.parquet"
    predict_command(network, drawn_run, out, "--per-image", "7")
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == IMAGES
    classes = data_classes(drawn_run)
    for row, one in zip(rows, predicted(drawn_run, network), strict=True):
        scores = values_of(row["triplets"], "score")
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx(
            np.sort(one.pairs.scores, axis=None)[::-1][:7].tolist(), abs=1e-4
        )
        assert set(values_of(row["triplets"], "predicate")) <= set(classes.relations)
        assert [len(triplet["subject_box"]) for triplet in row["triplets"]] == [4] * 7
    assert values_of(out.parent.iterdir(), "name") == ["predictions.parquet"]


def test_invalid_input_is_refused(
    drawn_run: Path, network: Path, trained_tagger: Path, tmp_path: Path
) -> None:
    for folder, reason in (
        (trained_tagger, "is an R-Tagger"),
        (tmp_path, "is not an RLIPv2-ParSeDA folder"),
        (tmp_path / "nowhere", r"no such folder: .*nowhere"),
    ):
        with pytest.raises(UserError, match=reason):
            load_detector(folder)
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        list_row_groups(drawn_run, "val")
    with pytest.raises(UserError, match="--images"):
        list_row_groups(drawn_run, images=tmp_path / "nowhere")
    classes = replace(data_classes(drawn_run), objects=("dog",))
    with pytest.raises(UserError, match="no class 'person'"):
        predicted(drawn_run, network, task="hoi", classes=classes)


def test_a_network_that_has_diverged_or_does_not_fit_into_memory_is_refused(
    drawn_run: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverged = shutil.copytree(network, tmp_path / "diverged")
    weights = load_file(diverged / "model.safetensors")
    weights |= {name: value * torch.nan for name, value in weights.items() if "scorer" in name}
    save_file(weights, diverged / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="predicts NaN for image 1000000"):
        predicted(drawn_run, diverged)
    monkeypatch.setattr(
        ParSeDA, "forward", Mock(side_effect=torch.cuda.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(UserError, match="memory of cpu is full; lower --batch 4"):
        predicted(drawn_run, network)


def test_a_training_is_its_best_network_whose_copy_keeps_the_image_size(
    trained_tagger: Path, tmp_path: Path
) -> None:
    assert network_folder(trained_tagger) == trained_tagger / "best"
    copy = shutil.copytree(trained_tagger / "best", tmp_path / "copy")
    assert trained_sides(str(trained_tagger)) == trained_sides(str(copy)) == (48, 64)


def test_classes_from_a_file_are_predicted(drawn_run: Path, network: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.json"
    out = tmp_path / "predictions.json"
    classes.write_text(
        json.dumps({"objects": {"1": "person", "19": "horse"}, "relations": ["riding"]})
    )
    result = predict_command(network, drawn_run, out, "--classes", str(classes), "--json")
    count = Manifest.load(drawn_run).shards[0].rows
    assert json.loads(result.stdout) == {
        "out": str(out),
        "images": count,
        "failed": 0,
        "reason": "",
    }
    items = json.loads(out.read_text())
    assert {box["category_id"] for item in items for box in item["predictions"]} <= {1, 19}
    assert {relation["category_id"] for item in items for relation in item["hoi_prediction"]} == {1}


@pytest.mark.slow
def test_two_workers_predict_as_one_process_or_are_refused(
    drawn_run: Path, network: Path, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    start_ray(cpus=2)
    try:
        row_groups = list_row_groups(drawn_run) * 4
        two = config(drawn_run, network, workers=2)
        assert_close(
            list(predict(config(drawn_run, network), row_groups)),
            list(predict(two, row_groups)),
            pixels=1e-3,
        )
        for refused, reason in (
            (replace(two, model=tmp_path / "nowhere"), "nowhere"),
            (
                replace(two, workers=4),
                "no room for 4 workers: each needs CPU 1, GPU 0, .* have CPU 2, GPU 0;",
            ),
            (
                replace(two, gpus=1, device="auto"),
                "no room for 2 workers: each needs CPU 1, GPU 1, .* CPU 2, GPU 0;",
            ),
        ):
            with pytest.raises(UserError, match=reason) as caught:
                list(predict(refused, row_groups))
            assert "\n" not in str(caught.value)
    finally:
        ray.shutdown()
