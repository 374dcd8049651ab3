"""Convert published checkpoints (`.pth`) and detectors to folders with config.json,
model.safetensors and tokenizer.
"""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
import pickle
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase, RobertaConfig
from transformers import RobertaModel as Roberta

from rlip_model.config import RLIPConfig
from rlip_model.detector import (
    Initialised,
    detector_config,
    initialise_from_detector,
    wrong_shape,
)
from rlip_model.model import RLIPModel, build_model
from rlip_model.noise import initial_seed
from rlip_model.official import infer_config, is_ignored, renamed
from rlip_model.pretrained import CheckpointError
from rlip_model.prune_queries import prune_queries
from rlip_model.text import TokenizerError, load_tokenizer

_ROBERTA_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
_WRITING = ".writing"
_LEFT_SECONDS = 24 * 3600
_SAFE: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]
# Raised by torch for files that are no checkpoints.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    LookupError,
)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the parameters and training options of a `.pth` file without running any code in it.

    Raises:
        CheckpointError: the file is missing, is not a torch file, or has no parameters.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder, not a file" if path.is_dir() else f"no such file: {path}"
        )
    try:
        with torch.serialization.safe_globals(_SAFE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as reason:
        raise CheckpointError(
            f"{path} is not a torch checkpoint that can be read safely: {_explain(path, reason)}"
        ) from reason
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} contains a {type(content).__name__}, expected a checkpoint")
    model = content.get("model", content)
    parameters = model.items() if isinstance(model, Mapping) else ()
    state = {key: value for key, value in parameters if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} contains no parameters; its entries are {', '.join(map(str, content))}"
        )
    return state, _options(content.get("args"))


def _options(args: object) -> dict[str, Any]:
    """Return the training options of a checkpoint as a dict; empty if it has none."""
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return dict(args) if isinstance(args, Mapping) else {}


def _explain(path: Path, reason: Exception) -> str:
    """One line. torch's own message recommends loading the file unsafely, which we never do."""
    message = str(reason)
    code = re.search(r"GLOBAL ([\w.]+) was not an allowed global", message)
    if code:
        return f"it refers to {code[1]}; only tensors and plain options are read, no code is run"
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return "it is truncated or damaged"
    if start[:1] != b"\x80":
        return "it is neither a zip archive nor a pickle"
    return "it is a pickle of something else, or truncated"


def load_official(model: RLIPModel, state: Mapping[str, Tensor]) -> None:
    """Copy published parameters into a network.

    Raises:
        CheckpointError: parameters are unknown, missing or of another shape; the message lists all
            of them.
    """
    initial = model.state_dict()
    loaded: dict[str, Tensor] = {}
    problems = []
    for key, value in state.items():
        if is_ignored(key, model.config):
            continue
        name = renamed(key, model.config.decoder_layers)
        loaded[name] = value
        if name not in initial:
            problems.append(f"unknown {key}")
        elif initial[name].shape != value.shape:
            problems.append(wrong_shape(key, value, initial[name]))
    for name, value in initial.items():
        if value.is_floating_point() and name not in loaded:
            problems.append(f"missing {name}")
    if problems:
        raise CheckpointError("the checkpoint does not fit: " + ", ".join(problems))
    model.load_state_dict(initial | loaded)


def convert(
    checkpoint: Path,
    out: Path,
    tokenizer: str = "roberta-base",
    gating: str | None = None,
    verb_query: str | None = None,
    num_queries: int | None = None,
    pairwise: bool = True,
) -> Path:
    """Convert a published checkpoint to a folder for `from_pretrained`. The folder appears only
    when it is complete.

    Args:
        tokenizer: folder or hub id of the RoBERTa tokenizer that the network was trained with. If
            it comes with the RoBERTa's config.json, the number of attention heads is taken from
            there.
        gating, verb_query: for checkpoints without stored options.
        num_queries: number of queries to keep; default: all.
        pairwise: which queries to keep, see `prune_queries`.

    Raises:
        CheckpointError: the file is not an RLIP checkpoint, or `out` exists and is not an empty
            folder.
        TokenizerError: the tokenizer is missing, has no vocabulary, or does not fit the text
            encoder.
    """
    _check_is_free(out)
    state, args = read_checkpoint(checkpoint)
    words = load_tokenizer(tokenizer)
    try:
        config = infer_config(
            state,
            args,
            gating=gating,
            verb_query=verb_query,
            text_config=_roberta_config(tokenizer),
        )
        model = build_model(config)
        load_official(model, state)
        if num_queries is not None:
            model = prune_queries(model, num_queries, pairwise)
    except (CheckpointError, ValueError) as reason:
        raise CheckpointError(f"cannot convert {checkpoint}: {reason}") from reason
    except KeyError as reason:
        raise CheckpointError(
            f"cannot convert {checkpoint}: {reason.args[0]} is missing"
        ) from reason
    _check_vocabulary(words, tokenizer, config)
    model.set_tokenizer(words)
    save_atomically(model, out)
    return out


def convert_detector(
    checkpoint: Path,
    out: Path,
    kind: str,
    text_encoder: str = "roberta-base",
    num_queries: int = 200,
    seed: int = 0,
) -> Initialised:
    """Combine a detector and a RoBERTa into a network for pre-training, saved as a folder for
    `from_pretrained`.

    Args:
        checkpoint: DAB-Deformable-DETR for `parseda`; Deformable-DETR for `parsed`, `tagger` and
            `rlipv1`.
        kind: see `presets.preset`.
        text_encoder: folder or hub id of a RoBERTa with its tokenizer.
        seed: for the parameters that neither of them has.

    Raises:
        CheckpointError: the detector or the RoBERTa is missing or does not fit, or `out` exists and
            is not an empty folder.
        TokenizerError: the tokenizer is missing, has no vocabulary, or does not fit the text
            encoder.
    """
    _check_is_free(out)
    state, args = read_checkpoint(checkpoint)
    words = load_tokenizer(text_encoder)
    roberta = load_roberta(text_encoder)
    try:
        config = detector_config(
            state, kind, args, num_queries=num_queries, text_config=roberta_sizes(roberta.config)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(initial_seed(seed))
            model = build_model(config)
        initialised = initialise_from_detector(model, state)
    except (CheckpointError, ValueError) as reason:
        raise CheckpointError(f"cannot initialise {kind} from {checkpoint}: {reason}") from reason
    model.text_encoder.roberta.load_state_dict(roberta.state_dict())
    model.set_tokenizer(words)
    save_atomically(model.eval(), out)
    return initialised


def _check_is_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; choose another path")


def _check_vocabulary(words: PreTrainedTokenizerBase, name: str, config: RLIPConfig) -> None:
    size = config.text_config.vocab_size
    difference = (
        f"the tokenizer of {name} has {len(words)} tokens, the checkpoint's text encoder {size}"
    )
    if len(words) < size // 2:
        raise TokenizerError(f"{difference}: the network was trained with another tokenizer")
    if len(words) < size:
        warnings.warn(difference, stacklevel=3)


def roberta_sizes(config: RobertaConfig) -> RobertaConfig:
    """Return a copy of a configuration with its sizes only, without the path that it was loaded
    from.
    """
    return RobertaConfig(**{name: getattr(config, name) for name in _ROBERTA_SIZES})


def load_roberta(name: str) -> Roberta:
    """Load a RoBERTa from a folder or hub id.

    Raises:
        CheckpointError: there is none, or some of its parameters are missing.
    """
    try:
        loaded = Roberta.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as reason:
        first_line = str(reason).strip().split("\n")[0]
        raise CheckpointError(f"no RoBERTa in {name}: {first_line}") from reason
    roberta, info = cast(tuple[Roberta, dict[str, Any]], loaded)
    if info["missing_keys"]:
        raise CheckpointError(
            f"the RoBERTa in {name} has no {', '.join(sorted(info['missing_keys']))}"
        )
    return roberta


def save_atomically(model: RLIPModel, out: Path) -> None:
    """Write to a temporary folder next to `out`, then rename it, so that `out` is never incomplete.

    Such folders that killed writers left a day ago or earlier are deleted.

    Raises:
        OSError: writing fails, for example because the disk is full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*{_WRITING}"):
        if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_WRITING, dir=out.parent))
    try:
        temporary.chmod(0o755)
        model.save_pretrained(temporary)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    except SafetensorError as reason:
        raise OSError(f"{out} cannot be written: {reason}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _roberta_config(tokenizer: str) -> RobertaConfig | None:
    """Return the RoBERTa configuration that comes with a tokenizer, if there is one."""
    try:
        config = AutoConfig.from_pretrained(tokenizer)
    except (OSError, ValueError):
        return None
    return config if isinstance(config, RobertaConfig) else None
