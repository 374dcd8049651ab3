"""Published RLIPv2 checkpoints (`.pth`) to our folders: config.json, model.safetensors, tokenizer."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, RobertaConfig

from rlip_model.config import ParSeDAConfig, RLIPConfig, RTaggerConfig
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger
from rlip_model.official import infer_config, is_ignored, renamed
from rlip_model.pretrained import CheckpointError
from rlip_model.text import TokenizerError, load_tokenizer

_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The parameters and training options of a `.pth` file, read without running any code in it.

    Raises:
        CheckpointError: no such file, not a torch file, or without parameters.
    """
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a torch checkpoint: it is no zip archive, or was cut off")
    try:
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError) as reason:
        first_line = str(reason).strip().split("\n")[0]
        raise CheckpointError(f"{path} is not a torch checkpoint that can be read safely: {first_line}") from reason
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    found = content.get("model", content)
    parameters = found.items() if isinstance(found, Mapping) else ()
    state = {key: value for key, value in parameters if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path} holds no parameters; its entries are {', '.join(map(str, content))}")
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return state, dict(args) if isinstance(args, Mapping) else {}


def build_model(config: RLIPConfig) -> RLIPModel:
    """The network of a configuration, with random parameters."""
    if isinstance(config, RTaggerConfig):
        return RTagger(config)
    return ParSeDA(config) if isinstance(config, ParSeDAConfig) else ParSeD(config)


def load_official(model: RLIPModel, state: Mapping[str, Tensor]) -> None:
    """Copy published parameters into a network.

    Raises:
        CheckpointError: lists every parameter that is unknown, missing or of another shape.
    """
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    problems = []
    for key, value in state.items():
        if is_ignored(key, model.config):
            continue
        name = renamed(key, model.config.decoder_layers)
        if name not in own:
            problems.append(f"unknown {key}")
        elif own[name].shape != value.shape:
            problems.append(f"{key} has shape {list(value.shape)}, expected {list(own[name].shape)}")
        loaded[name] = value
    computed = {name for name, value in own.items() if not value.is_floating_point()}
    problems += [f"missing {name}" for name in own if name not in loaded and name not in computed]
    if problems:
        raise CheckpointError("the checkpoint does not fit: " + ", ".join(problems))
    model.load_state_dict({**{name: own[name] for name in computed}, **loaded})


def convert(
    checkpoint: Path,
    out: Path,
    tokenizer: str = "roberta-base",
    gating: str | None = None,
    verb_query: str | None = None,
) -> Path:
    """Turn a published checkpoint into a folder for `from_pretrained`, complete or not there at all.

    Args:
        tokenizer: folder or hub id of the RoBERTa tokenizer that the network was trained with. If it comes
            with the RoBERTa's config.json, the number of attention heads is taken from there.
        gating, verb_query: for checkpoints without stored options.

    Raises:
        CheckpointError: the file is no RLIPv2 checkpoint, or `out` exists and is not an empty folder.
        TokenizerError: the tokenizer is missing, knows no words, or does not fit the text encoder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder")
    state, args = read_checkpoint(checkpoint)
    words = load_tokenizer(tokenizer)
    try:
        config = infer_config(state, args, gating=gating, verb_query=verb_query, text_config=_roberta_config(tokenizer))
        model = build_model(config)
        load_official(model, state)
    except (CheckpointError, ValueError) as reason:
        raise CheckpointError(f"cannot convert {checkpoint}: {reason}") from reason
    except KeyError as reason:
        raise CheckpointError(f"cannot convert {checkpoint}: it lacks {reason.args[0]}") from reason
    if len(words) < config.text_config.vocab_size // 2:
        raise TokenizerError(
            f"the tokenizer of {tokenizer} knows {len(words)} tokens, the checkpoint's text encoder "
            f"{config.text_config.vocab_size}: it is not the one the network was trained with"
        )
    if len(words) < config.text_config.vocab_size:
        warnings.warn(
            f"the tokenizer of {tokenizer} knows {len(words)} tokens, the checkpoint's text encoder "
            f"{config.text_config.vocab_size}",
            stacklevel=2,
        )
    model.set_tokenizer(words)
    save_atomically(model, out)
    return out


def save_atomically(model: RLIPModel, out: Path) -> None:
    """Write beside `out`, then rename, so that `out` is never half a network."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        temporary.chmod(0o755)
        model.save_pretrained(temporary)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _roberta_config(tokenizer: str) -> RobertaConfig | None:
    """The RoBERTa configuration that comes with a tokenizer, if one does."""
    try:
        config = AutoConfig.from_pretrained(tokenizer)
    except (OSError, ValueError):
        return None
    return config if isinstance(config, RobertaConfig) else None
