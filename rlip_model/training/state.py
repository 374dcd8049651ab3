"""Training checkpoints: the network ready for use, and the state needed to resume exactly.

    checkpoints/step-00000120/   config.json, model.safetensors, tokenizer: a folder for
                                 `from_pretrained` optimizer.safetensors, training.json: for
                                 resuming; numerics.json: versions and number formats it was
                                 computed with
    last, best                   links to two of them

A checkpoint appears complete or not at all. Links only ever point to complete checkpoints, and the
one before stays until they point to the new one. `CheckpointWriter` writes in a thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlip_model.model import RLIPModel
from rlip_model.pretrained import CheckpointError

OptimizerState: TypeAlias = Mapping[str, Any]  # as torch.distributed gives it
CHECKPOINTS = "checkpoints"
LAST = "last"
BEST = "best"
OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.json"
NUMERICS = "numerics.json"
WRITING_STEPS = (
    "checkpoint network",
    "checkpoint optimizer",
    "checkpoint synced",
    "checkpoint renamed",
    "checkpoint linked",
    "checkpoint pruned",
)
_WRITING = ".writing-"  # begins the names of unfinished checkpoints
_NAME = re.compile(r"step-\d{8,}")
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True)
class Position:
    """The progress of a run: `step` optimiser steps in total, `done` of them in the current epoch.

    best: the best validation score so far, by the measure best_by; averaged: number of updates of
    the EMA.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    best: float | None = None
    averaged: int = 0
    best_by: str | None = None


@dataclass(frozen=True)
class TrainingState:
    """The content of a checkpoint.

    network: the parameters, or their EMA if there is one; tensors: the state of the optimizer, by
    name, and with an EMA also the parameters themselves, as `parameter.NAME`; numerics: what they
    were computed with, for people and later resumes.
    """

    position: Position
    network: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numerics: Mapping[str, str] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        keep: number of latest checkpoints to keep, besides the best one.
        passed: called after each step of writing one, with its name of `WRITING_STEPS`.
    """

    def __init__(
        self, root: Path, keep: int = 1, passed: Callable[[str], None] = lambda step: None
    ) -> None:
        self.root = root
        self.keep = keep
        self.passed = passed

    def latest(self) -> Path | None:
        """Return the checkpoint to resume from; None if there is none."""
        link = self.root / LAST
        return link.resolve() if (link / TRAINING).is_file() else None

    def save(self, model: RLIPModel, state: TrainingState, best: bool = False) -> Path:
        """Write a checkpoint and sync it to disk; only then move the links and delete old
        checkpoints.

        Args:
            model: its configuration and tokenizer are saved.
            best: whether it is the best one so far.

        Raises:
            OSError: writing fails, for example because the disk is full. Earlier checkpoints stay
                unchanged.
        """
        folder = self.root / CHECKPOINTS / f"step-{state.position.step:08d}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_WRITING, dir=folder.parent))
        try:
            self._write(temporary, model, state)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except SafetensorError as reason:
            raise _system_error(reason, folder) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(folder.parent)
        self.passed("checkpoint renamed")
        self._link(LAST, folder)
        self.passed("checkpoint linked")
        if best:
            self._link(BEST, folder)
        self._prune()
        self.passed("checkpoint pruned")
        return folder

    def _write(self, folder: Path, model: RLIPModel, state: TrainingState) -> None:
        folder.chmod(0o755)
        model.save_pretrained(folder, state_dict=dict(state.network))
        self.passed("checkpoint network")
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, folder / OPTIMIZER)
        self.passed("checkpoint optimizer")
        (folder / NUMERICS).write_text(json.dumps(dict(state.numerics)), encoding="utf-8")
        (folder / TRAINING).write_text(json.dumps(asdict(state.position)), encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            _sync(path)
        self.passed("checkpoint synced")

    def _link(self, name: str, folder: Path) -> None:
        temporary = self.root / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.relative_to(self.root), target_is_directory=True)
        os.replace(temporary, self.root / name)

    def _prune(self) -> None:
        """Delete checkpoints that are neither recent nor the best, and leftovers of killed
        processes.
        """
        linked = {(self.root / name).resolve() for name in (LAST, BEST)}
        entries = sorted((self.root / CHECKPOINTS).iterdir())
        complete = [entry for entry in entries if _NAME.fullmatch(entry.name)]
        unfinished = [entry for entry in entries if entry.name.startswith(_WRITING)]
        for entry in complete[: -self.keep] + unfinished:
            if entry.resolve() not in linked:
                shutil.rmtree(entry, ignore_errors=True)


class CheckpointWriter:
    """Writes checkpoints in a thread, one after the other, while the training goes on.

    Use it in a `with` statement, whose end waits for the last one. Every method, and the end, raises
    the OSError with which a checkpoint could not be written.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None

    def start(self, model: RLIPModel, state: TrainingState, best: bool) -> None:
        """Start to write a checkpoint, as `Checkpoints.save`, once the one before is written.

        Args:
            state: its tensors must not change.
        """
        self.wait()
        self._pending = self._pool.submit(self._checkpoints.save, model, state, best)

    def check(self) -> None:
        """Return at once, whether a checkpoint is being written or not."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is written."""
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()


def read_state(folder: Path) -> tuple[Position, dict[str, Tensor]]:
    """Read the position and tensors of a checkpoint; `from_pretrained` reads its network.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        return read_position(folder), load_file(folder / OPTIMIZER)
    except (OSError, SafetensorError) as reason:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {reason}") from None


def read_position(folder: Path) -> Position:
    """Read the position of a checkpoint.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    try:
        values = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
        missing = {f.name for f in fields(Position)} - values.keys()
        if missing:
            raise ValueError(f"{TRAINING} has no {', '.join(sorted(missing))}")
        return Position(**values)
    except (OSError, ValueError, TypeError, AttributeError) as reason:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {reason}") from None


def _system_error(reason: SafetensorError, folder: Path) -> OSError:
    """Return the system's error, such as a full disk, that safetensors names in its message."""
    number = _SYSTEM_ERROR.search(str(reason))
    if number is None:
        return OSError(f"{folder} cannot be written: {reason}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_numerics(folder: Path) -> dict[str, str]:
    """Read what a checkpoint was computed with.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    try:
        return {**json.loads((folder / NUMERICS).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as reason:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {reason}") from None


def flatten(optimizer_state: OptimizerState) -> dict[str, Tensor]:
    """Flatten the state of an optimizer to `{"exp_avg.NAME": tensor, …}`; empty for an empty
    state.
    """
    tensors = {}
    for name, values in optimizer_state.get("state", {}).items():
        for key, value in values.items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value)
    return tensors


def unflatten(tensors: Mapping[str, Tensor], optimizer_state: OptimizerState) -> dict[str, Any]:
    """Replace the tensors in the state of a new optimizer by stored ones.

    Parameters that never had a gradient have no stored tensors.

    Raises:
        CheckpointError: there are stored tensors of a parameter that is not trained now.
    """
    unknown = set(tensors)
    state: dict[str, dict[str, Tensor]] = {}
    for name, values in optimizer_state["state"].items():
        state[name] = {key: tensors.get(f"{key}.{name}", value) for key, value in values.items()}
        unknown -= {f"{key}.{name}" for key in values}
    if unknown:
        raise CheckpointError(
            f"the checkpoint contains {min(unknown)}: other parts of the network were trained"
        )
    return {**optimizer_state, "state": state}
