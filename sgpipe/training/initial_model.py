"""The network that a training starts from: one that is there, an official checkpoint, or a new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, RobertaModel

from rlip_model.checkpoint import convert, load_roberta, roberta_sizes, save_atomically
from rlip_model.config import RLIPConfig
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger, build_model
from rlip_model.presets import KINDS, preset, tiny_sizes
from rlip_model.pretrained import CheckpointError
from rlip_model.prune_queries import prune_queries
from rlip_model.text import NO_OBJECTS, TokenizerError, build_tokenizer, load_tokenizer, spread
from sgpipe.errors import UserError
from sgpipe.training.recipe import Kind, ModelConfig

CLASSES: dict[Kind, type[RLIPModel]] = {"tagger": RTagger, "parseda": ParSeDA, "parsed": ParSeD, "rlipv1": ParSeD}


def make_start(config: ModelConfig, texts: Sequence[str], seed: int, folder: Path) -> None:
    """Put the network into `folder`, for `from_pretrained`.

    Args:
        texts: names of the data, which a new network's own tokenizer will know.

    Raises:
        UserError: no such network, one of another kind, or settings that it cannot have.
    """
    try:
        network = _existing(config, folder) if config.init else _new(config, texts, seed)
        save_atomically(network.eval(), folder)
    except (CheckpointError, TokenizerError, ValueError, TypeError) as reason:
        raise UserError(f"model: {reason}") from None


def _existing(config: ModelConfig, folder: Path) -> RLIPModel:
    source = Path(str(config.init))
    if source.suffix in (".pth", ".pt"):
        converted = folder.with_name(f"{folder.name}-converted")
        if not (converted / "config.json").exists():
            convert(source, converted, config.text_encoder or "roberta-base")
        source = converted
    network = CLASSES[config.kind].from_pretrained(str(source) if source.exists() else str(config.init))
    return _changed(network, config.config)


def _changed(network: RLIPModel, changes: dict[str, Any]) -> RLIPModel:
    """The network with other settings; its parameters stay.

    Raises:
        CheckpointError: there is no such setting, or its parameters would not fit.
    """
    queries = changes.get("num_queries", network.config.num_queries)
    if queries != network.config.num_queries:
        network = prune_queries(network, queries)
    kind = type(network.config)
    config = kind.from_dict(_laid_over(network.config.to_dict(), _known(kind, changes)))
    changed = build_model(config)
    try:
        changed.load_state_dict(network.state_dict())
    except RuntimeError:
        raise CheckpointError(f"the network has parameters that don't fit config {changes}") from None
    if network.tokenizer is not None:
        changed.set_tokenizer(network.tokenizer)
    return changed


def _new(config: ModelConfig, texts: Sequence[str], seed: int) -> RLIPModel:
    """A new network; its random numbers follow from the seed, and torch's own are left alone."""
    roberta: RobertaModel | None = None
    changes = _known(KINDS[config.kind], config.config)
    tokenizer: PreTrainedTokenizerBase
    if config.text_encoder is None:
        tokenizer = build_tokenizer([*texts, NO_OBJECTS, _COMMON_WORDS])
    else:
        tokenizer, roberta = load_tokenizer(config.text_encoder), load_roberta(config.text_encoder)
        changes["text_config"] = roberta_sizes(roberta.config)
    if config.backbone == "miniature":
        settings = KINDS[config.kind](**_laid_over(tiny_sizes(len(tokenizer)), changes))
    elif roberta is None:
        raise CheckpointError(
            f"a new network of size {config.backbone} needs a RoBERTa (model.text_encoder: folder or hub id); better "
            "start from a detector: `sgpipe convert DETECTOR --as ... --out start`, then --init start"
        )
    else:
        settings = preset(config.kind, config.backbone, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_model(settings)
    network.set_tokenizer(tokenizer)
    if roberta is None:
        spread(network.text_encoder, tokenizer, list(dict.fromkeys([*texts, NO_OBJECTS])))
    else:
        network.text_encoder.roberta.load_state_dict(roberta.state_dict())
    return network


_COMMON_WORDS = "a an the on in at of to with by for from near behind under over next front above below beside"


def _laid_over(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes, those of the text encoder one by one."""
    text, change = settings["text_config"], changes.get("text_config")
    if isinstance(change, dict):
        own = text if isinstance(text, dict) else text.to_dict()
        changes = {**changes, "text_config": {**own, **change}}
    return {**settings, **changes}


def _known(kind: type[RLIPConfig], changes: dict[str, Any]) -> dict[str, Any]:
    """Raises CheckpointError: a setting that networks of this kind do not have."""
    known = kind().to_dict()
    unknown = sorted(changes.keys() - known.keys())
    if unknown:
        raise CheckpointError(f"a {kind.__name__} has no setting {unknown[0]!r}")
    return dict(changes)
