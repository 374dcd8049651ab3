"""The output of a training without a terminal."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.training import display
from sgpipe.training.display import TrainingDisplay, TrainSummary, print_training


def row(step: int, **changes: Any) -> dict[str, Any]:
    values = {"event": "step", "epoch": 1, "step": step, "steps": 30, "loss": 2.5, "images_per_second": 12.0}
    return {**values, "waited": 0.031, "skipped": 0, **changes}


def shown(*rows: dict[str, Any]) -> list[str]:
    console = Console(record=True, width=60, force_terminal=False)
    with TrainingDisplay(console, epochs=3) as display:
        for each in rows:
            display.show(each)
    return console.export_text().splitlines()


def test_the_first_step_the_last_step_and_validations_are_shown() -> None:
    validation = {"event": "validation", "epoch": 1, "step": 30, "loss": 1.0, "ap": 0.25, "recall@20": 0.5}
    assert shown(row(1), row(2), row(29), validation, row(30, skipped=4)) == [
        "step 1/30, epoch 1, loss 2.500, 12.0 images/s, waiting for images 3%",
        "epoch 1/3 validation: loss 1.000, ap 0.250, recall@20 0.500",
        "step 30/30, epoch 1, loss 2.500, 12.0 images/s, waiting for images 3%, 4 unreadable images",
    ]


def test_a_gpu_and_a_failed_compilation_are_shown() -> None:
    gpu = {"gpu_memory": 31_250_000_000, "compile_error": "no compiler"}
    assert shown(row(1, **gpu), row(30, **gpu, gpu_utilization=0.875)) == [
        "NOTE: training continues without torch.compile: no compiler",
        "step 1/30, epoch 1, loss 2.500, 12.0 images/s, waiting for images 3%, GPU 31.2 GB",
        "step 30/30, epoch 1, loss 2.500, 12.0 images/s, waiting for images 3%, GPU 88% used, 31.2 GB",
    ]


def test_the_time_left_follows_from_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 400))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    lines = shown(row(1), row(2))
    assert lines[1].endswith("left")
    hours, minutes, seconds = lines[1].split(", ")[-1].removesuffix(" left").split(":")
    pace = (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) / 28
    assert pace % 400 == 0
    assert pace > 0


def test_a_validation_without_images() -> None:
    assert shown({"event": "validation", "epoch": 2, "step": 4}) == ["epoch 2/3 validation: no images"]


def test_validations_by_steps() -> None:
    console = Console(record=True, width=60, force_terminal=False)
    with TrainingDisplay(console, epochs=None) as display:
        display.show({"event": "validation", "epoch": 1, "step": 4, "loss": 1.0})
    assert console.export_text() == "step 4 validation: loss 1.000\n"


def test_the_final_summary() -> None:
    measured = {"ap": 0.25, "loss": 1.0}
    best = Path("out[1]/best")
    summary = TrainSummary(best.parent, "tagger", 3, 30, 1234, row(30), measured, -0.75, "loss", best)
    console = Console(record=True, width=80)
    print_training(summary, "the network is in out[1]/best", console)
    said = console.export_text()
    for expected in ("out[1]", "tagger", "1,234", "validation ap", "0.250", "best validation loss", "0.750", "3.1%"):
        assert expected in said
    assert said.splitlines()[-1] == "the network is in out[1]/best"
    console = Console(record=True, width=80)
    print_training(TrainSummary(Path("out"), "tagger", 0, 0, 5, {}, {}, None, "ap", Path("out/last")), "go", console)
    assert "best" not in console.export_text()
