"""What checkpoints of transformers have in common: their configuration, and errors in one line."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers.utils import logging

from rlip_model.gpu_memory import is_out_of_memory
from sgpipe.errors import UserError, first_line

# Load reports and progress bars of transformers are not shown: problems are raised as errors
# instead.
logging.set_verbosity_error()
logging.disable_progress_bar()

# Raised by transformers, processors and templates for files that are missing, damaged or of another
# model, and for inputs or settings that they do not fit.
MISFITS = (
    OSError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
    StrictDataclassError,
    SafetensorError,
    pickle.UnpicklingError,
    TemplateError,
)


@contextmanager
def loading(subject: str) -> Iterator[None]:
    """Raise UserError, "WHAT: reason" in one line, for what a library cannot load."""
    try:
        yield
    except Exception as reason:
        is_bare = type(reason) is Exception  # that of tokenizers
        if is_out_of_memory(reason) or not (is_bare or isinstance(reason, MISFITS)):
            raise
        raise UserError(f"{subject}: {first_line(reason)}") from None


def read_config(source: str, role: str = "captioner") -> dict[str, Any]:
    """Return the settings in config.json; `role`: in messages.

    Raises:
        UserError: it is missing or damaged.
    """
    with loading(f"{role} {source!r}: config.json"):
        return dict(json.loads(Path(source, "config.json").read_text("utf-8")).items())


def load_weights(model_class: Any, source: str, role: str = "captioner", **settings: Any) -> Any:
    """Load a model of one of transformers' classes; code in a checkpoint is never run.

    Raises:
        UserError: if its weights are missing, damaged or incomplete, or it needs a package that is
            not installed.
    """
    with loading(f"{role} {source!r}: cannot load its weights"):
        model, info = model_class.from_pretrained(
            source, output_loading_info=True, trust_remote_code=False, **settings
        )
    missing = sorted(
        name for name in info["missing_keys"] if not name.endswith("num_batches_tracked")
    )
    if missing:
        raise UserError(
            f"{role} {source!r}: {len(missing)} of its weights missing, such as {missing[0]}"
        )
    return model


def check_architecture(name: str, config: dict[str, Any], expected: str) -> None:
    """Raise UserError if the checkpoint names another architecture, such as one for visual question
    answering.
    """
    architectures = config.get("architectures")
    if architectures and expected not in str(architectures):
        raise UserError(
            f"{name}: its config.json has architectures {architectures}, expected {expected}"
        )


def load_part(kind: Any, source: str, role: str = "captioner") -> Any:
    """Load a processor or tokenizer by one of transformers' classes.

    Raises:
        UserError: if that fails.
    """
    with loading(f"{role} {source!r}: {kind.__name__}"):
        return kind.from_pretrained(source, trust_remote_code=False)


def check_vocabulary(name: str, tokens: int, expected: tuple[float, float]) -> None:
    """Raise UserError unless a tokenizer fits the model; without its files it has special tokens
    only.
    """
    smallest, largest = expected
    if not smallest <= tokens <= largest:
        raise UserError(
            f"{name}: its tokenizer has {tokens} tokens, which does not fit the model;"
            " tokenizer.json or vocab.txt is missing or belongs to another model"
        )
