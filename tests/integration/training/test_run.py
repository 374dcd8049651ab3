"""Trainings with one process: how they resume, go on from networks, and meet damage."""

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from rlip_model.model import RTagger
from rlip_model.training import state
from rlip_model.training.loop import Trainer
from sgpipe import images
from sgpipe.errors import UnavailableError, UserError
from sgpipe.recipe import DetectConfig
from sgpipe.stages.detect import load
from sgpipe.training import run as plan
from sgpipe.training.data import order, stream
from sgpipe.training.job import _BOX_PARTS
from sgpipe.training.metrics import read_metrics
from sgpipe.utils.console import Progress
from sgpipe.utils.numerics import package_versions
from tests.sgpipe.stats.runs import judge
from tests.sgpipe.training import trainings
from tests.sgpipe.training.trainings import (
    IMAGES,
    QUIET,
    SIZES,
    curve,
    different,
    fail_once,
    invoke,
    make_run,
    recipe,
    refused,
    steps,
    training,
    training_with_fault,
    validated,
    weights,
)
from tests.values import values_of

TRAIN_STEP = Trainer._step
# Importing PyTorch takes longer than a training: it is done once, in a process that only forks.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([trainings.__name__])

KillAt = Callable[[int], None]

DAMAGES = {
    "model.safetensors": b"cut", "config.json": b"{", "optimizer.safetensors": b"", "training.json": b'{"epoch": 1}',
    "tokenizer.json": None, "numerics.json": b"{",
}  # fmt: skip


class KilledError(Exception):
    """Stands for a killed process."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> KillAt:
    """Call it with a step number (from 1) to kill trainings before that step; 0: no longer."""
    return partial(arrange_kill, monkeypatch)


def arrange_kill(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def step(trainer: Trainer, *arguments: object) -> Any:
        if trainer.position.step == number - 1:
            raise KilledError
        return TRAIN_STEP(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)


def by_checkpoints(run: Path) -> dict[str, object]:
    """The epochs of `trained_tagger`, with checkpoints within them, too."""
    return {"data__val": validated(run), "output__checkpoint_every": 2}


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
    settings, expected = (by_checkpoints(drawn_run), trained_tagger)
    if by == "steps":
        settings, expected = (by_steps(drawn_run), finished_training)
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


@pytest.fixture(scope="module")
def begun_training(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training whose last checkpoint is at its third step, of three in an epoch; tests must not
    change it.
    """
    out = tmp_path_factory.mktemp("begun") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        arrange_kill(monkeypatch, 4)
        with pytest.raises(KilledError):
            training(drawn_run, out, **by_checkpoints(drawn_run))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("step", state.WRITING_STEPS)
def test_a_training_killed_while_it_writes_a_checkpoint_resumes_exactly(
    drawn_run: Path, begun_training: Path, trained_tagger: Path, tmp_path: Path, step: str
) -> None:
    """Within the second epoch, at its first step; the checkpoint before is used until a link points
    to the new one.
    """
    out = shutil.copytree(begun_training, tmp_path / "out", symlinks=True)
    charge = tmp_path / "charge"
    charge.touch()
    settings = by_checkpoints(drawn_run)
    process = PROCESSES.Process(
        target=training_with_fault, args=(drawn_run, out, f"{step}:{charge}", settings)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    is_linked = step in ("checkpoint linked", "checkpoint pruned")
    assert (out / "last").resolve().name == f"step-0000000{4 if is_linked else 3}"
    RTagger.from_pretrained(out / "last")
    training(drawn_run, out, **settings)
    assert not different(weights(out), weights(trained_tagger))
    assert curve(out) == curve(trained_tagger)
    names = values_of((out / "checkpoints").iterdir(), "name")
    assert set(names) == {(out / link).resolve().name for link in ("last", "best")}


def test_a_training_that_resumes_with_another_library_says_so(
    drawn_run: Path, begun_training: Path, trained_tagger: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(begun_training, tmp_path / "out", symlinks=True)
    file = (out / "last").resolve() / "numerics.json"
    values = json.loads(file.read_text())
    assert values == {**package_versions(), "dtype": "float32"}
    file.write_text(json.dumps(values | {"torch": "1.0.0"}))
    string_io = StringIO()
    progress = Progress(Console(file=string_io, width=200))
    training(drawn_run, out, progress=progress, **by_checkpoints(drawn_run))
    note = f"other software or hardware (torch 1.0.0 then, {values['torch']} now): the last"
    assert string_io.getvalue().count(note) == 1
    assert not different(weights(out), weights(trained_tagger))


def test_checkpoints_are_written_every_so_many_minutes_as_seen_every_few_steps(
    drawn_run: Path, trained_tagger: Path, tmp_path: Path
) -> None:
    training(
        drawn_run,
        tmp_path / "out",
        output__checkpoint_minutes=1e-9,
        output__log_every=2,
        output__keep=9,
    )
    names = values_of((tmp_path / "out" / "checkpoints").iterdir(), "name")
    assert sorted(names) == [f"step-0000000{step}" for step in (2, 3, 4, 6)]
    assert not different(weights(tmp_path / "out"), weights(trained_tagger))


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


def test_a_training_restarts_after_an_image_that_could_not_be_read_for_now(
    drawn_run: Path, trained_tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    string_io = StringIO()
    charge = tmp_path / "charge"
    charge.touch()
    monkeypatch.setattr(stream, "open_row_image", images.open_row_image)
    fail_once(charge, 2 * IMAGES - 3)  # a checkpoint has the first epoch
    training(
        drawn_run,
        tmp_path / "out",
        progress=Progress(Console(file=string_io, width=200)),
        workers__restart_seconds=0,
    )
    assert not charge.exists()
    assert "Input/output error); the training restarts from its last checkpoint" in (
        string_io.getvalue()
    )
    assert not different(weights(tmp_path / "out"), weights(trained_tagger))


def test_a_shard_that_cannot_be_read_ends_the_training_after_its_restarts(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail(*arguments: object) -> None:
        tries.append(1)
        raise UnavailableError("shard 7.parquet cannot be read (Stale file handle)")

    monkeypatch.setattr(order, "read_row_group", fail)
    no_wait = {"workers__restarts": 2, "workers__restart_seconds": 0}
    error = refused(invoke(drawn_run, tmp_path / "out", **no_wait), code=1)
    assert "7.parquet cannot be read (Stale file handle), also after 2 restarts" in error
    assert len(tries) == 3


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


def test_a_training_with_judgements_is_another_one_and_resumes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    judge_all = lambda question: "wrong" if question.predicate < "o" else "right"  # noqa: E731
    without = training(run, tmp_path / "without", optimisation__steps=2)
    with pytest.raises(UserError, match="nobody has judged its relations"):
        training(run, tmp_path / "none", data__train=[{"shards": str(run), "judged": True}])
    judge(run, 12, judge_all)
    both = [{"shards": str(run)}, {"shards": str(run), "judged": True}]
    with_them = training(run, tmp_path / "with", data__train=both, optimisation__steps=2)
    assert with_them.images > without.images
    assert different(weights(tmp_path / "without"), weights(tmp_path / "with"))
    assert all(row["loss"] < float("inf") for row in steps(tmp_path / "with"))
    # the judgements are there, but not asked for
    training(run, tmp_path / "again", optimisation__steps=2)
    assert not different(weights(tmp_path / "without"), weights(tmp_path / "again"))
    judge(run, 4, judge_all)
    with pytest.raises(UserError, match="judgements"):
        training(run, tmp_path / "with", data__train=both, optimisation__steps=2)
    for changes in ({"kind": "pretrain"}, {"data__val": both}):
        with pytest.raises(UserError, match="R-Tagger only"):
            training(run, tmp_path / "refused", **{"data__train": both, **changes})
