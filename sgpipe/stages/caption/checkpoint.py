"""What is common to checkpoints of transformers: their configuration, and errors in one line."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PretrainedConfig
from transformers.utils import logging

from sgpipe.errors import UserError, existing_model

# Raised by transformers, safetensors and torch for files that are missing, damaged or of another model.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    StrictDataclassError,
    SafetensorError,
    pickle.UnpicklingError,
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers; problems are raised as errors instead."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def options(source: str) -> dict[str, Any]:
    """A folder never uses the network, and code in a checkpoint is never run."""
    return {"local_files_only": Path(source).is_dir(), "trust_remote_code": False}


def first_line(reason: BaseException) -> str:
    return str(reason).strip().partition("\n")[0]


def read_config(source: str, role: str = "captioner") -> dict[str, Any]:
    """The settings in config.json of a folder or a hub id (from the local cache when offline).

    Args:
        role: what the model is for, in messages.

    Raises UserError: there is no such model, or its config.json is missing or damaged.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{role} {source!r}: the folder has no config.json, so it is not a checkpoint")
    if path.is_file():
        raise UserError(f"{role} {source!r} is a file, not a folder")
    existing_model(source)
    try:
        with quiet():
            config = PretrainedConfig.get_config_dict(source, local_files_only=path.is_dir())[0]
    except UNREADABLE as reason:
        if path.is_dir():
            raise UserError(f"{role} {source!r}: config.json: {first_line(reason)}") from None
        raise UserError(
            f"{role} {source!r}: no such folder, and no such model in the local Hugging Face cache or "
            "(unless offline) on the hub"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{role} {source!r}: config.json has no settings")
    return config


def check_architecture(source: str, config: dict[str, Any], expected: str) -> None:
    """Raises UserError: the checkpoint was saved from another class than `expected`; without a name it may be it."""
    architectures = config.get("architectures")
    if architectures and expected not in architectures:
        names = ", ".join(map(str, architectures))
        raise UserError(f"captioner {source!r} cannot caption: it is a {names}, expected {expected}")
