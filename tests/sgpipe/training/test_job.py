"""The work of one training process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from rlip_model.training.loop import Trainer
from sgpipe.errors import EngineError
from sgpipe.training.job import _compilation
from sgpipe.training.run import train
from sgpipe.utils.console import Progress
from tests.sgpipe.training.trainings import recipe, training


def test_a_compiler_that_fails_within_a_step_ends_the_training_with_a_remedy(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Trainer, feed: object) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("no such size\nand a page of advice")

    monkeypatch.setattr(Trainer, "fit", fail)
    with pytest.raises(EngineError, match=r"within a step \(no such size and a.*\); with workers.compile=false"):
        training(drawn_run, tmp_path / "out")


def test_a_failure_of_the_compiler_is_a_metric_in_one_line() -> None:
    layers: Any = SimpleNamespace(seconds=0.0, failure=None)
    assert _compilation(None) == {}
    assert _compilation(layers) == {"compilation": 0.0}
    layers.failure = RuntimeError("no compiler\nand a page of advice")
    assert _compilation(layers) == {"compilation": 0.0, "compile_error": "no compiler and a page of advice"}


def test_a_training_that_asks_for_a_gpu_may_mean_the_cpu(drawn_run: Path, tmp_path: Path) -> None:
    settings = {"workers__gpus": 1, "workers__device": "cpu", "workers__compile": True, "optimisation__epochs": 1}
    console = Console(record=True, width=300)
    trained = train(recipe(drawn_run, **settings), tmp_path / "out", Progress(console))
    assert not {"compilation", "gpu_memory"} & trained.last.keys()
    assert "NOTE: workers.compile is ignored: the training runs on CPUs" in console.export_text()
