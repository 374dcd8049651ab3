"""Trainings with one process: their files, what they refuse, and their plan; how they resume:
tests/integration/training.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlip_model.model import RTagger
from rlip_model.training.loop import Trainer
from sgpipe.errors import EngineError, UserError
from sgpipe.training import job
from sgpipe.training import run as plan
from sgpipe.training.data.scan import scan_training
from sgpipe.training.metrics import read_metrics
from sgpipe.training.recipe import TrainRecipe
from sgpipe.utils.gpu import MemoryFullError
from tests.sgpipe.training.trainings import (
    BATCH,
    EPOCHS,
    IMAGES,
    QUIET,
    SIZES,
    STEPS,
    different,
    invoke,
    recipe,
    refused,
    steps,
    training,
    validated,
    weights,
)
from tests.values import values_of


def test_the_files_of_a_training(trained_tagger: Path) -> None:
    saved_recipe = TrainRecipe.model_validate(
        yaml.safe_load((trained_tagger / "recipe.yaml").read_text())
    )
    assert saved_recipe.model.config["num_queries"] == SIZES["num_queries"]
    assert values_of(steps(trained_tagger), "step") == list(range(1, STEPS + 1))
    assert [
        row["epoch"] for row in read_metrics(trained_tagger) if row["event"] == "validation"
    ] == [1, 2]
    losses = {
        "loss",
        "entity",
        "relation",
        "subject_box",
        "object_box",
        "subject_giou",
        "object_giou",
    }
    rates = {"lr_rest", "lr_backbone", "lr_text"}
    for row in steps(trained_tagger):
        assert row.keys() >= losses | rates | {
            "waited",
            "images_per_second",
            "skipped",
            "memory",
            "gradient_norm",
        }
        assert 0 < row["waited"] <= 1
        assert row["skipped"] == 0
    assert list((trained_tagger / "tensorboard").glob("events.*"))
    assert not list(trained_tagger.rglob(".*tmp")) + list(trained_tagger.rglob(".writing-*"))
    assert set(values_of((trained_tagger / "checkpoints").iterdir(), "name")) == {
        (trained_tagger / name).resolve().name for name in ("last", "best")
    }


def test_a_finished_training_is_left_alone(
    trained_tagger: Path, drawn_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_tagger, tmp_path / "out", symlinks=True)
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "checkpoints").rglob("*")
    }
    events = sorted((tmp_path / "out" / "tensorboard").iterdir())
    settings = {"data__val": validated(drawn_run), "output__tensorboard": True}
    summary = training(drawn_run, tmp_path / "out", **settings)
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "checkpoints").rglob("*")
    } == before
    assert sorted((tmp_path / "out" / "tensorboard").iterdir()) == events
    assert (summary.epochs, summary.steps, summary.last["step"]) == (EPOCHS, STEPS, STEPS)
    assert summary.validation["ap"] > 0
    best = max(r["ap"] for r in read_metrics(tmp_path / "out") if r["event"] == "validation")
    assert summary.best == best
    summary = training(drawn_run, tmp_path / "out", **settings, output__best="loss")
    assert (summary.best, summary.best_by) == (best, "ap")  # not a loss of this value


def test_other_settings_in_the_same_folder_are_refused_and_named(
    drawn_run: Path, trained_tagger: Path
) -> None:
    before = weights(trained_tagger)
    with pytest.raises(
        UserError, match=r"was made with other settings.*\n  optimisation.lr: 0.001 then, 0.002 now"
    ):
        training(drawn_run, trained_tagger, data__val=validated(drawn_run), optimisation__lr=0.002)
    # with cosine, every step differs
    with pytest.raises(UserError, match=r"optimisation.epochs: 2 then, 3 now"):
        training(drawn_run, trained_tagger, data__val=validated(drawn_run), optimisation__epochs=3)
    assert not different(weights(trained_tagger), before)


def test_other_folders_are_refused(drawn_run: Path) -> None:
    with pytest.raises(UserError, match="not an sgpipe training"):
        training(drawn_run, drawn_run)
    assert not (drawn_run / ".training").exists()


def test_a_compiler_that_fails_within_a_step_ends_the_training_with_a_remedy(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Trainer, feed: object) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("no such size\nand a page of advice")

    monkeypatch.setattr(Trainer, "fit", fail)
    with pytest.raises(
        EngineError, match=r"within a step \(no such size and a.*\); with workers.compile=false"
    ):
        training(drawn_run, tmp_path / "out")


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "bfloat16"),
        ("float32", "cuda", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_a_gpu_computes_in_bfloat16_unless_the_recipe_says_float32(
    drawn_run: Path,
    trained_tagger: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    device: str,
    expected: str,
) -> None:
    network = RTagger.from_pretrained(trained_tagger / "last")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(job, "_device_of", lambda network: torch.device(device))
    objective = job.make_objective(network, recipe(drawn_run, optimisation__precision=precision))
    assert objective.precision == expected


@pytest.mark.slow
def test_a_plan_has_the_steps_of_the_training_and_keeps_nothing(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planned = plan.plan_training(recipe(drawn_run, optimisation__accumulate=2), QUIET, steps=2)
    assert (planned.steps, planned.images, planned.batch, planned.part) == (
        STEPS,
        IMAGES,
        BATCH,
        BATCH // 2,
    )
    assert (planned.measured_steps, planned.fitting, planned.gpus) == (2, 1, 0)
    assert planned.seconds == STEPS * planned.step_seconds > 0
    assert 0 < planned.memory < planned.device_memory
    assert list(tmp_path.iterdir()) == []
    shared = plan.plan_training(recipe(drawn_run, workers__count=2), QUIET, steps=1)
    assert (shared.steps, shared.workers, shared.part) == (STEPS, 2, BATCH // 2)
    assert plan.plan_training(recipe(drawn_run, optimisation__steps=7), QUIET, steps=1).steps == 7
    with pytest.raises(UserError, match="a batch of 4 cannot be divided evenly between 3 workers"):
        plan.plan_training(recipe(drawn_run, workers__count=3), QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("fits", [2, 4, 8])
def test_parts_are_halved_until_they_fit(
    drawn_run: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    real_run_job = plan.run_job

    def run_job(job: Any, show: Any) -> None:
        if job.recipe.optimisation.accumulate < fits:
            raise MemoryFullError("full")
        real_run_job(job, show)

    monkeypatch.setattr(plan, "run_job", run_job)
    if fits > BATCH:
        with pytest.raises(UserError, match="full"):
            plan.plan_training(recipe(drawn_run), QUIET, steps=1)
    else:
        assert plan.plan_training(recipe(drawn_run), QUIET, steps=1).accumulate == fits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisation__accumulate": 3}, "cannot be divided evenly between 1 worker with 3 parts each"),
        ({"optimisation__frozen": ["backbones"]}, "optimisation.frozen: the network has no part 'backbones'"),
        ({"data__labels": "full"}, "has no closed class lists"),
        ({"model__config": {"text_config": 5}}, "text_config"), ({"model__backbone": "swin_tiny"}, "needs a RoBERTa"),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_settings(
    drawn_run: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    error = refused(invoke(drawn_run, tmp_path / "out", **changes))
    assert message in error
    assert len(error) < 600


@pytest.mark.parametrize(
    ("sizes", "fitting"),  # batch, workers, accumulate
    [
        ((200, 1, 1), (12, 1, 1)), ((200, 1, 50), (12, 1, 3)), ((16, 2, 2), (8, 2, 1)), ((12, 1, 4), (12, 1, 4)),
        ((10, 1, 1), (10, 1, 1)), ((50, 5, 10), (10, 5, 2)), ((16, 16, 1), (16, 16, 1)),
    ],
)  # fmt: skip
def test_a_batch_is_lowered_to_the_images_of_an_epoch(
    drawn_run: Path, sizes: tuple[int, int, int], fitting: tuple[int, int, int]
) -> None:
    names = ("optimisation__batch", "workers__count", "optimisation__accumulate")
    original = recipe(drawn_run, **dict(zip(names, sizes, strict=True)))
    fitted = plan.fit_batch(original, scan_training(original.data))
    assert (
        fitted.optimisation.batch,
        fitted.workers.count,
        fitted.optimisation.accumulate,
    ) == fitting
