"""Trainings with one process: their files, how they resume, what they refuse, and their plan."""

import json
import shutil
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from rlip_model.model import RTagger
from rlip_model.training import state
from rlip_model.training.loop import Trainer
from sgpipe.cli.main import app
from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import DetectConfig
from sgpipe.stages.detect import load
from sgpipe.training import run as plan
from sgpipe.training.data.scan import scan_training
from sgpipe.training.job import _BOX_PARTS
from sgpipe.training.metrics import read_metrics
from sgpipe.training.recipe import TrainRecipe
from sgpipe.utils.console import Progress
from sgpipe.utils.gpu import MemoryFullError
from tests.sgpipe.training.trainings import (
    BATCH,
    EPOCHS,
    IMAGES,
    QUIET,
    SIZES,
    STEPS,
    command,
    curve,
    different,
    make_run,
    recipe,
    steps,
    training,
    weights,
)
from tests.values import values_of

KillAt = Callable[[int], None]

DAMAGES = {
    "model.safetensors": b"cut", "config.json": b"{", "optimizer.safetensors": b"", "training.json": b'{"epoch": 1}',
    "tokenizer.json": None,
}  # fmt: skip


class KilledError(Exception):
    """Stands for a killed process."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> KillAt:
    """Call it with a step number (from 1) to kill trainings before that step; 0: no longer."""
    train_step = Trainer._step

    def arrange(number: int) -> None:
        def step(trainer: Trainer, *arguments: object) -> Any:
            if trainer.position.step == number - 1:
                raise KilledError
            return train_step(trainer, *arguments)

        monkeypatch.setattr(Trainer, "_step", step)

    return arrange


def validated(run: Path) -> list[dict[str, str]]:
    return [{"shards": str(run)}]


def by_steps(run: Path, **changes: object) -> dict[str, object]:
    """Five averaged steps, in the middle of the second epoch of three, validated every two
    steps.
    """
    averaged = {
        "optimisation__steps": 5,
        "optimisation__ema": 0.9,
        "output__validate_every_steps": 2,
    }
    return {**averaged, "data__val": validated(run), **changes}


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


def test_a_training_can_be_extended_moved_and_written_differently(
    drawn_run: Path, tmp_path: Path
) -> None:
    step = {"optimisation__schedule": "step"}
    training(drawn_run, tmp_path / "whole", **step, optimisation__epochs=2)
    training(drawn_run, tmp_path / "out", **step, optimisation__epochs=1)
    shutil.copytree(drawn_run.parent / "drawn" / "images", tmp_path / "moved")
    changes = {"data__threads": 1, "data__prefetch": 1, "output__log_every": 2, "output__keep": 2}
    shards = shutil.copytree(drawn_run, tmp_path / "shards")
    moved = [{"shards": str(shards), "images": str(tmp_path / "moved")}]
    training(shards, tmp_path / "out", **step, **changes, optimisation__epochs=2, data__train=moved)
    assert not different(weights(tmp_path / "out"), weights(tmp_path / "whole"))
    assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 2
    with pytest.raises(UserError, match=r"was made with other settings.*\n  data.train"):
        training(make_run(tmp_path, seed=1), tmp_path / "out", **step)


def test_other_folders_are_refused(drawn_run: Path) -> None:
    with pytest.raises(UserError, match="not an sgpipe training"):
        training(drawn_run, drawn_run)
    assert not (drawn_run / ".training").exists()


def test_a_training_starts_from_an_existing_network(
    drawn_run: Path, trained_tagger: Path, tmp_path: Path
) -> None:
    init = str(trained_tagger / "best")  # given as the training that it is of
    still = {"optimisation__lr": 0, "optimisation__lr_backbone": 0, "optimisation__lr_text": 0}
    training(
        drawn_run,
        tmp_path / "out",
        model__init=str(trained_tagger),
        **still,
        optimisation__epochs=1,
    )
    before, after = (
        RTagger.from_pretrained(path).state_dict() for path in (init, tmp_path / "out" / "last")
    )
    assert not different(after, before)


@pytest.mark.slow
def test_a_detector_trained_on_boxes_alone_starts_a_training_on_relations(
    drawn_run: Path, tmp_path: Path
) -> None:
    config = {
        **SIZES,
        "backbone": "convolutional",
        "conv_width": 8,
        "dense_head": True,
        "proposals": 4,
    }
    sizes = {"model__config": config, "data__val": validated(drawn_run)}
    training(drawn_run, tmp_path / "boxes", "pretrain", loss__only_boxes=True, **sizes)
    assert {"dense_class", "dense_giou"} <= read_metrics(tmp_path / "boxes")[0].keys()
    start = load_file(tmp_path / "boxes" / ".training" / "start" / "model.safetensors")
    changed = {name.split(".")[0] for name in different(start, weights(tmp_path / "boxes"))}
    assert "dense_head" in changed
    assert changed <= set(_BOX_PARTS)
    detect = DetectConfig(detector=str(tmp_path / "boxes" / "last"), classes=("dog", "person"))
    detector = load(detect, torch.device("cpu"))
    detections = detector.detect(detector.prepare(Image.new("RGB", (64, 48))), 0.0)
    assert len(detections.boxes) > SIZES["num_queries"]  # those of the dense head, not of queries
    training(
        drawn_run, tmp_path / "relations", "pretrain", model__init=str(tmp_path / "boxes"), **sizes
    )
    assert "relation" in read_metrics(tmp_path / "relations")[0]


@pytest.fixture(scope="module")
def finished_training(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of five steps without interruption; tests must not change it."""
    out = tmp_path_factory.mktemp("steps") / "out"
    training(drawn_run, out, **by_steps(drawn_run))
    return out


def test_a_training_ends_after_its_steps_and_its_end_is_validated_and_saved(
    drawn_run: Path, finished_training: Path
) -> None:
    assert values_of(steps(finished_training), "epoch", "step", "steps") == [
        *((1, step, 5) for step in (1, 2, 3)),
        *((2, step, 5) for step in (4, 5)),
    ]
    validations = [
        (row["epoch"], row["step"])
        for row in read_metrics(finished_training)
        if row["event"] == "validation"
    ]
    assert validations == [(1, 2), (2, 4), (2, 5)]
    assert (finished_training / "last").resolve().name == "step-00000005"
    rates = values_of(steps(finished_training), "lr_rest")
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.1 * rates[0]  # cosine ends with the last step, not with the epochs


@pytest.mark.parametrize(
    ("kill", "by"),
    [
        (4, "epochs"),
        (3, "steps"),
        *(pytest.param(n, "epochs", marks=pytest.mark.soak) for n in (1, 2, 6)),
    ],
)
def test_a_killed_training_resumes_exactly(
    drawn_run: Path,
    trained_tagger: Path,
    finished_training: Path,
    tmp_path: Path,
    killed_at: KillAt,
    kill: int,
    by: str,
) -> None:
    """It restarts, resumes at the beginning of an epoch (4), or in its middle: from a validation,
    or a checkpoint.
    """
    by_epochs = {"data__val": validated(drawn_run), "output__checkpoint_every": 2}
    settings, expected = (
        (by_steps(drawn_run), finished_training) if by == "steps" else (by_epochs, trained_tagger)
    )
    killed_at(kill)
    with pytest.raises(KilledError):
        training(drawn_run, tmp_path / "out", **settings)
    killed_at(0)
    begun = bool(list(tmp_path.glob("out/checkpoints/step-*")))
    string_io = StringIO()
    training(drawn_run, tmp_path / "out", progress=Progress(Console(file=string_io)), **settings)
    assert ("resuming at step" in string_io.getvalue()) == begun
    assert not different(weights(tmp_path / "out"), weights(expected))
    assert curve(tmp_path / "out") == curve(expected)


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


def invoke(run: Path, out: Path, *more: str, kind: str = "tagger", **changes: object) -> Result:
    arguments = command(run, out, kind, **changes)
    return CliRunner().invoke(app, [*arguments[arguments.index("train") :], *more])


def refused(result: Result, code: int = 2) -> str:
    """The only error message of a refused training."""
    assert not isinstance(result.exception, Exception), result.exception
    assert result.exit_code == code, result.output
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return message


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


def test_a_damaged_checkpoint_is_named(drawn_run: Path, tmp_path: Path) -> None:
    """Of a training that can be extended."""
    training(drawn_run, tmp_path / "whole", optimisation__schedule="step", optimisation__epochs=1)
    for name, content in DAMAGES.items():
        out = shutil.copytree(tmp_path / "whole", tmp_path / f"damaged-{name}", symlinks=True)
        file = (out / "last").resolve() / name
        file.unlink() if content is None else file.write_bytes(content)
        assert "step-00000003" in refused(invoke(drawn_run, out, optimisation__schedule="step")), (
            name
        )


def test_a_diverging_training_keeps_the_batch_and_the_last_checkpoint(
    drawn_run: Path, tmp_path: Path
) -> None:
    result = invoke(drawn_run, tmp_path / "out", optimisation__lr=1e30, output__checkpoint_every=1)
    error = refused(result, code=1)
    assert "step 2" in error
    assert "the batch is saved in" in error
    assert "optimisation.lr" in error
    (saved,) = (tmp_path / "out").glob("diverged-step-*/process-0")
    names = json.loads((saved / "batch.json").read_text())["images"]
    assert len(names) == len(load_file(saved / "batch.safetensors")["pixel_values"]) == 4
    assert (tmp_path / "out" / "last").resolve().name == "step-00000001"


def full(*arguments: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_training_resumes_after_a_full_disk(
    drawn_run: Path, trained_tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = state.Checkpoints.save

    def save_first(self: state.Checkpoints, *arguments: object) -> Path:
        if (self.root / "last").exists():
            monkeypatch.setattr(state, "save_file", full)
        return save(self, *arguments)

    monkeypatch.setattr(state.Checkpoints, "save", save_first)
    error = refused(invoke(drawn_run, tmp_path / "out"), code=1)
    assert "No space left on device" in error
    assert (tmp_path / "out" / "last").resolve().name == "step-00000003"
    assert values_of((tmp_path / "out" / "checkpoints").iterdir(), "name") == ["step-00000003"]
    monkeypatch.undo()
    training(drawn_run, tmp_path / "out")
    assert not different(weights(tmp_path / "out"), weights(trained_tagger))


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


def test_a_lowered_batch_is_told_resumed_and_planned(drawn_run: Path, tmp_path: Path) -> None:
    string_io = StringIO()
    changes = {"optimisation__batch": 200, "optimisation__epochs": 1}
    for _ in range(2):
        training(
            drawn_run,
            tmp_path / "out",
            progress=Progress(Console(file=string_io, width=200)),
            **changes,
        )
    assert f"NOTE: optimisation.batch is lowered from 200 to {IMAGES}" in string_io.getvalue()
    assert "nothing left to do" in string_io.getvalue()
    training(drawn_run, tmp_path / "same", optimisation__batch=IMAGES, optimisation__epochs=1)
    assert not different(weights(tmp_path / "out"), weights(tmp_path / "same"))
    assert plan.plan_training(recipe(drawn_run, **changes), QUIET).batch == IMAGES
