"""Trainings of a few steps on the smallest possible networks, and shards of synthetic images."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from sgpipe import images
from sgpipe.cli.main import app
from sgpipe.miniworld.dataset import render_dataset
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.visual_genome import visual_genome_source
from sgpipe.training.data import stream
from sgpipe.training.metrics import TrainSummary, read_metrics
from sgpipe.training.recipe import TrainRecipe, load_train_recipe
from sgpipe.training.run import train
from sgpipe.utils.atomic import FAULT_VARIABLE
from sgpipe.utils.console import Progress
from tests.values import values_of

QUIET = Progress(Console(quiet=True))
IMAGES = 12
BATCH = 4
EPOCHS = 2
STEPS = EPOCHS * IMAGES // BATCH
SIZES = {
    "swin_embed_dim": 6, "swin_depths": [1, 1, 1, 1], "swin_heads": [1, 1, 2, 2], "drop_path": 0.0, "hidden_dim": 64,
    "feedforward_dim": 32, "num_queries": 16, "num_heads": 2, "num_points": 1, "encoder_layers": 1,
    "decoder_layers": 1, "fusion_interval": 1, "fusion_dim": 16, "fusion_heads": 2,
}  # fmt: skip
SETTINGS: Mapping[str, Any] = {
    "model.config": SIZES, "data.short_side": 48, "data.long_side": 64, "data.negative_texts": 12,
    "optimisation.epochs": EPOCHS, "optimisation.batch": BATCH, "optimisation.warmup": 0,
    "output.log_every": 1, "output.tensorboard": False,
}  # fmt: skip


def make_run(folder: Path, seed: int = 0) -> Path:
    """Synthetic images in folder/drawn, and their shards in folder/run."""
    render_dataset(folder / "drawn", IMAGES, seed, "train")
    images = folder / "drawn" / "images"
    source = visual_genome_source(
        folder / "drawn" / "scene_graphs.json", images, "train", preprocess=False
    )
    import_annotations(source, images, folder / "run", QUIET)
    return folder / "run"


def overrides(run: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides from keyword arguments, in which two underscores stand for a dot."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return {**SETTINGS, "data.train": [{"shards": str(run)}], **dotted}


def recipe(run: Path, kind: str = "tagger", **changes: object) -> TrainRecipe:
    return load_train_recipe(kind, overrides(run, changes), miniature=True)


def training(
    run: Path, out: Path, kind: str = "tagger", *, progress: Progress = QUIET, **changes: object
) -> TrainSummary:
    return train(recipe(run, kind, **changes), out, progress)


def training_with_fault(run: Path, out: Path, fault: str, changes: Mapping[str, Any]) -> None:
    """The body of a process that ends at a fault point."""
    os.environ[FAULT_VARIABLE] = fault
    torch.set_num_threads(1)
    training(run, out, **changes)


def command(run: Path, out: Path, kind: str = "tagger", **changes: object) -> list[str]:
    """The command line of the same training, with one thread as in the tests."""
    settings = [
        part
        for item in overrides(run, changes).items()
        for part in ("--set", f"{item[0]}={dumped(item[1])}")
    ]
    python = (
        sys.executable,
        "-c",
        "import torch; torch.set_num_threads(1); from sgpipe.cli.main import main; main()",
    )
    return [*python, "train", kind, "--miniature", "--out", str(out), *settings]


def dumped(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "last" / "model.safetensors")


def different(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not bit-identical."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def fail_once(charge: Path, number: int) -> None:
    """Let the `number`-th image that this process opens fail for now, if it can delete `charge`."""
    open_row_image = images.open_row_image
    opened = count(1)

    def faulty(*arguments: Any) -> Any:
        if next(opened) == number:
            with suppress(FileNotFoundError):
                charge.unlink()
                raise images.image_error(OSError(errno.EIO, os.strerror(errno.EIO)), "7.png")
        return open_row_image(*arguments)

    stream.open_row_image = faulty


def steps(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(out) if row["event"] == "step"]


def curve(out: Path) -> list[tuple[int, float]]:
    return values_of(steps(out), "step", "loss")


def validated(run: Path) -> list[dict[str, str]]:
    return [{"shards": str(run)}]


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
