"""Checkpoints: whole or not at all, the newest and the best kept, exactly what was saved."""

from pathlib import Path

import pytest
import torch

from rlip_model.model import RTagger
from rlip_model.pretrained import CheckpointError
from rlip_model.training import state as module
from rlip_model.training.state import Checkpoints, Position, TrainingState, read_state
from tests.rlip_model.training.worlds import network


def saved(checkpoints: Checkpoints, step: int, best: bool = False) -> Path:
    model = network(seed=step)
    tensors = {"exp_avg.x": torch.full((4,), float(step))[::2]}
    return checkpoints.save(model, TrainingState(Position(step=step), model.state_dict(), tensors), best)


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (root / "checkpoints").iterdir())


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        saved(checkpoints, step, best=step == 2)
    assert steps(tmp_path) == [2, 4, 5]
    assert (tmp_path / "best").resolve().name == "step-00000002"
    assert checkpoints.latest() == (tmp_path / "checkpoints" / "step-00000005").resolve()
    assert RTagger.from_pretrained(tmp_path / "best").config.num_queries == 8


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    position, tensors = read_state(saved(Checkpoints(tmp_path), 7))
    assert position == Position(step=7)
    assert torch.equal(tensors["exp_avg.x"], torch.tensor([7.0, 7.0]))


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    good = saved(checkpoints, 1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        saved(checkpoints, 2)
    assert checkpoints.latest() == good.resolve()
    assert steps(tmp_path) == [1]


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".writing-abc"
    left.mkdir(parents=True)
    saved(Checkpoints(tmp_path), 1)
    assert not left.exists()


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    folder = saved(Checkpoints(tmp_path), 1)
    (folder / "optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="step-00000001"):
        read_state(folder)
