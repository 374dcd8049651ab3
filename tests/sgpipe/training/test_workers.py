"""Trainings with several workers on Ray: the same losses as with one, and lost workers are
replaced.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.training import workers
from sgpipe.training.job import TrainingJob
from sgpipe.training.metrics import read_metrics
from sgpipe.utils.console import Progress
from sgpipe.utils.ray_cluster import start_ray
from tests.integration.faults.runs import descendants, title_of
from tests.sgpipe.training import trainings
from tests.sgpipe.training.data.runs import make_records, make_run
from tests.sgpipe.training.trainings import (
    SIZES,
    command,
    curve,
    different,
    fail_once,
    steps,
    training,
    weights,
)

pytestmark = pytest.mark.slow

LOSS_TOLERANCE = 1e-4  # relative, in float32 over some steps; measured: 1.1e-7
DETERMINED = {"dropout": 0.0, "fusion_dropout": 0.0}
TEXTS = {"text_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
# Equal pairs are masked from each other only if every image of a batch fills all slots; here none
# does.
NOISELESS = {"box_noise": 0.0, "label_noise": 0.0, "num_queries": 64}
TWO: dict[str, Any] = {"workers__count": 2, "data__long_side": 96}


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[None]:
    import ray

    start_ray(cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def equal_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one size: Swin does not mask padding, so with several sizes the batch would
    matter.
    """
    return make_run(tmp_path_factory.mktemp("equal") / "run", make_records(30)).shards


@pytest.mark.parametrize("kind", ["tagger", "pretrain"])
def test_two_workers_have_the_same_losses_as_one(
    ray_engine: None, equal_images: Path, tmp_path: Path, kind: str
) -> None:
    """Groups of 3 and 1 of the 4 images of a step: the second worker has images of both, the first
    of one only.
    """
    config = {**SIZES, **DETERMINED, **TEXTS, **(NOISELESS if kind == "tagger" else {})}
    settings = {
        "model__config": config,
        "data__long_side": 96,
        "data__text_group": 3,
        "data__negative_texts": 30,
    }
    settings["optimisation__epochs"] = 3
    for count in (1, 2):
        training(equal_images, tmp_path / str(count), kind, **settings, workers__count=count)
    one, two = (curve(tmp_path / str(count)) for count in (1, 2))
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=LOSS_TOLERANCE)


def workers_of(process: int) -> list[int]:
    return [pid for pid in descendants(process) if title_of(pid).startswith("ray::RayTrainWorker")]


def kill_a_worker_at_step(out: Path, step: int, killed: list[int]) -> None:
    deadline = time.monotonic() + 600
    while len(steps(out)) < step and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.append(workers_of(os.getpid())[0])
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")
def test_a_lost_worker_is_replaced_and_changes_nothing(
    ray_engine: None, equal_images: Path, tmp_path: Path
) -> None:
    settings = {**TWO, "optimisation__epochs": 6, "output__checkpoint_every": 2}
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_at_step, args=(tmp_path / "lost", 5, killed))
    killer.start()
    training(equal_images, tmp_path / "lost", **settings)
    killer.join()
    assert killed
    training(equal_images, tmp_path / "whole", **settings)
    assert [step for step, _ in curve(tmp_path / "lost")] == list(
        range(1, len(steps(tmp_path / "whole")) + 1)
    )
    assert curve(tmp_path / "lost") == curve(tmp_path / "whole")
    assert not different(weights(tmp_path / "lost"), weights(tmp_path / "whole"))


def test_a_refusal_of_a_worker_is_one_line(ray_engine: None, tmp_path: Path) -> None:
    run = trainings.make_run(tmp_path)
    for image in (tmp_path / "drawn" / "images").iterdir():
        image.write_bytes(b"")
    arguments = command(run, tmp_path / "out", workers__count=2)
    result = CliRunner().invoke(app, arguments[arguments.index("train") :])
    assert result.exit_code == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"cannot be read from {tmp_path / 'drawn' / 'images'}" in error
    assert "Traceback" not in result.output


def test_workers_restart_after_an_image_that_could_not_be_read_for_now(
    ray_engine: None, equal_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TWO, "optimisation__epochs": 2, "workers__restart_seconds": 0}
    string_io = StringIO()
    progress = Progress(Console(file=string_io, width=200))
    charge = tmp_path / "charge"
    charge.touch()
    train_worker = workers._worker

    def worker(config: dict[str, TrainingJob]) -> None:
        fail_once(charge, 12)
        train_worker(config)

    monkeypatch.setattr(workers, "_worker", worker)
    training(equal_images, tmp_path / "failed", progress=progress, **settings)
    assert not charge.exists()
    assert "Input/output error); the training restarts from its last checkpoint" in (
        string_io.getvalue()
    )
    monkeypatch.undo()
    training(equal_images, tmp_path / "whole", **settings)
    assert not different(weights(tmp_path / "failed"), weights(tmp_path / "whole"))


@pytest.mark.soak
def test_fsdp_resumes_from_complete_checkpoints(
    ray_engine: None, equal_images: Path, tmp_path: Path
) -> None:
    config = {**SIZES, **DETERMINED, **TEXTS}
    settings = {"model__config": config, "data__long_side": 96, "optimisation__schedule": "step"}
    settings |= {"data__val": [{"shards": str(equal_images)}], "data__text_group": 3}
    training(equal_images, tmp_path / "one", "pretrain", **settings)
    for epochs in (1, 2):
        spread = {"workers__count": 2, "workers__parallel": "fsdp", "optimisation__epochs": epochs}
        training(equal_images, tmp_path / "spread", "pretrain", **{**settings, **spread})
    one, spread_losses = (
        [loss for _, loss in curve(tmp_path / name)] for name in ("one", "spread")
    )
    assert spread_losses == pytest.approx(one, rel=LOSS_TOLERANCE)
    single = weights(tmp_path / "one")
    parts = weights(tmp_path / "spread")
    assert {name: value.shape for name, value in single.items()} == {
        name: value.shape for name, value in parts.items()
    }
    assert (
        len([row for row in read_metrics(tmp_path / "spread") if row["event"] == "validation"]) == 2
    )


def test_stopping_stops_the_workers(equal_images: Path, tmp_path: Path) -> None:
    long = command(equal_images, tmp_path / "out", **TWO, optimisation__epochs=5000)
    process = subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while (
        len(steps(tmp_path / "out")) < 3 and time.monotonic() < deadline and process.poll() is None
    ):
        time.sleep(0.1)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("interrupted. ")
    assert "Traceback" not in output + errors
    assert len(workers) == 2
    # the command does not wait for the last breath of its workers
    deadline = time.monotonic() + 300
    while (left := [pid for pid in workers if title_of(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
