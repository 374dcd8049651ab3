"""Metrics in files; repeated steps are written once."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sgpipe.errors import UserError
from sgpipe.training.metrics import METRICS, metrics_log, read_metrics, training_display
from sgpipe.utils.console import Progress
from tests.values import values_of


def row(step: int, loss: float = 1.0, event: str = "step") -> dict[str, Any]:
    return {**step_row(step), "event": event, "loss": loss}


def written(out: Path, start: int, *rows: dict[str, Any], tensorboard: bool = False) -> None:
    with metrics_log(out, start, tensorboard) as write:
        for row in rows:
            write(row)


def test_lines_after_the_checkpoint_are_replaced(tmp_path: Path) -> None:
    written(tmp_path, 0, row(1), row(2), row(2, event="validation"), row(3, loss=5.0))
    written(tmp_path, 2, row(3), row(4))
    assert values_of(read_metrics(tmp_path), "event", "step", "loss") == [
        ("step", 1, 1.0), ("step", 2, 1.0), ("validation", 2, 1.0), ("step", 3, 1.0), ("step", 4, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "torn", ['{"event": "step", "st', '{"event": "step", "epoch": 1, "step": 3, "steps": 9}']
)
def test_an_incomplete_line_is_ignored_and_then_removed(tmp_path: Path, torn: str) -> None:
    written(tmp_path, 0, row(1), row(2))
    with (tmp_path / METRICS).open("a") as file:
        file.write(torn)
    assert values_of(read_metrics(tmp_path), "step") == [1, 2]
    written(tmp_path, 2, row(3))
    assert values_of(read_metrics(tmp_path), "step") == [1, 2, 3]
    assert torn + "{" not in (tmp_path / METRICS).read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"waited": None},
        {"loss": "1.0"},
        {"event": "other"},
        {"step": 10**400},
        {"skipped": ...},
        {"event": ...},
    ],
)
def test_an_edited_line_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    edited = {name: value for name, value in (step_row(2) | changes).items() if value is not ...}
    (tmp_path / METRICS).write_text(
        "".join(f"{json.dumps(row)}\n" for row in (step_row(1), edited))
    )
    with pytest.raises(UserError, match=rf"{METRICS} is damaged: delete it, or its damaged lines"):
        read_metrics(tmp_path)


def events(file: Path) -> list[Event]:
    """Read TFRecords: length, its checksum (4 bytes), an event, its checksum."""
    content = file.read_bytes()
    parsed = []
    while content:
        length = int.from_bytes(content[:8], "little")
        parsed.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return parsed


def test_tensorboard_discards_repeated_steps(tmp_path: Path) -> None:
    written(tmp_path, 0, row(1), row(3), tensorboard=True)
    written(
        tmp_path,
        2,
        row(3, loss=2.0),
        {**row(3), "event": "validation", "ap": 0.5},
        tensorboard=True,
    )
    first, second = map(events, sorted((tmp_path / "tensorboard").iterdir()))
    assert [e.step for e in first[2:] if e.summary.value[0].tag == "train/loss"] == [1, 3]
    assert (second[1].session_log.status, second[1].step) == (SessionLog.START, 3)
    shown = [(v.tag, e.step, v.simple_value) for e in second[2:] for v in e.summary.value]
    assert [point for point in shown if point[0].endswith(("/loss", "/ap"))] == [
        ("train/loss", 3, 2.0), ("validation/loss", 3, 1.0), ("validation/ap", 3, 0.5),
    ]  # fmt: skip


def step_row(step: int, **changes: object) -> dict[str, Any]:
    values = {
        "event": "step",
        "epoch": 1,
        "step": step,
        "steps": 30,
        "loss": 2.5,
        "images_per_second": 12.0,
    }
    return {**values, "waited": 0.031, "skipped": 0, **changes}


def shown(*rows: dict[str, Any]) -> list[str]:
    console = Console(record=True, width=60, force_terminal=False)
    with training_display(Progress(console)) as show:
        for row in rows:
            show(row)
    return console.export_text().splitlines()


def test_the_last_step_and_validations_are_shown() -> None:
    validation = {
        "event": "validation",
        "epoch": 1,
        "step": 30,
        "loss": 1.0,
        "ap": 0.25,
        "recall@20": 0.5,
    }
    assert shown(step_row(1), step_row(2), step_row(29), validation, step_row(30, skipped=4)) == [
        "epoch 1, step 30 validation: loss 1.000, ap 0.250, recall@20 0.500",
        (
            "training 30/30, epoch 1, loss 2.500, 12.0 images/s, waiting for images 3%, 4"
            " unreadable images"
        ),
    ]
