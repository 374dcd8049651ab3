"""What checkpoints of transformers have in common: their configuration, and errors in one line."""

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

from sgpipe.errors import UserError

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
# Raised by processors, templates and models for inputs or settings that they do not fit.
MISFITS = (*UNREADABLE, AttributeError, IndexError)


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
    """Return what `from_pretrained` gets: a folder never uses the network, and code in a checkpoint is never run."""
    return {"local_files_only": Path(source).is_dir(), "trust_remote_code": False}


def first_line(reason: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(reason).strip().partition("\n")[0]


def read_config(source: str, role: str = "captioner") -> dict[str, Any]:
    """Return the settings in config.json of a folder or a hub id (from the local cache when offline).

    `role`: what the model is for, in messages.

    Raises UserError if there is no such model, or its config.json is missing or damaged.
    """
    name, is_folder = f"{role} {source!r}", Path(source).is_dir()
    if is_folder and not (Path(source) / "config.json").is_file():
        raise UserError(f"{name}: the folder has no config.json, so it is not a checkpoint")
    if Path(source).is_file():
        raise UserError(f"{name} is a file, not a folder")
    try:
        with quiet():
            config = PretrainedConfig.get_config_dict(source, local_files_only=is_folder)[0]
    except UNREADABLE as reason:
        where = "no such folder, and not in the local Hugging Face cache or (unless offline) on the hub"
        raise UserError(f"{name}: {f'config.json: {first_line(reason)}' if is_folder else where}") from None
    if not isinstance(config, dict):
        raise UserError(f"{name}: config.json has no settings")
    return config


def load_weights(model_class: Any, source: str, role: str = "captioner", **settings: Any) -> Any:
    """Load a model of one of transformers' classes.

    Raises UserError if its weights are missing, damaged or incomplete, or it needs a package that is not installed.
    """
    name = f"{role} {source!r}"
    try:
        with quiet():
            model, info = model_class.from_pretrained(source, output_loading_info=True, **settings, **options(source))
    except ImportError as reason:
        raise UserError(f"{name} needs a package: {' '.join(str(reason).split())}") from None
    except UNREADABLE as reason:
        raise UserError(f"{name}: cannot load its weights: {first_line(reason)}") from None
    if missing := sorted(info["missing_keys"]):
        count = f"{len(missing)} weights are" if len(missing) > 1 else "1 weight is"
        raise UserError(f"{name}: {count} missing, such as {missing[0]}")
    return model


def check_architecture(source: str, config: dict[str, Any], expected: str) -> None:
    """Raise UserError if the checkpoint names an architecture other than `expected`."""
    architectures = config.get("architectures")
    if architectures and expected not in architectures:
        names = ", ".join(map(str, architectures))
        raise UserError(f"captioner {source!r} cannot caption: it is a {names}, expected {expected}")


def load_part(kind: Any, source: str, role: str = "captioner") -> Any:
    """Load a processor or tokenizer by one of transformers' classes. Raises UserError if that fails."""
    what = "tokenizer" if "Tokenizer" in kind.__name__ else "processor"
    try:
        with quiet():
            return kind.from_pretrained(source, **options(source))
    except Exception as reason:
        if not isinstance(reason, (ImportError, *MISFITS)) and type(reason) is not Exception:  # that of tokenizers
            raise
        raise UserError(f"{role} {source!r}: cannot load its {what}: {' '.join(str(reason).split())}") from None


def check_vocabulary(name: str, tokens: int, expected: tuple[float, float]) -> None:
    """Raise UserError unless a tokenizer fits the model; without its files it has special tokens only."""
    least, most = expected
    if not least <= tokens <= most:
        raise UserError(
            f"{name}: its tokenizer has {tokens} tokens, which does not fit the model; tokenizer.json or "
            "vocab.txt is missing or belongs to another model"
        )
