"""Initialise from a trained detector: DAB-Deformable-DETR for ParSeDA, Deformable-DETR for ParSeD
and the R-Tagger.

The decoder of the detector is copied into both decoders, its box heads to subjects and objects. The
parts that a detector does not have (text encoder, fusion, label scorer) keep their values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlip_model.config import ParSeDAConfig, RLIPConfig
from rlip_model.model import RLIPModel
from rlip_model.official import State, backbone_sizes, encoder_sizes, is_ignored, renamed
from rlip_model.presets import KINDS, SWIN_SIZES, preset
from rlip_model.pretrained import CheckpointError

# Starts of the names of the parameters that are copied, and those of their copies.
_COPIES = {
    "transformer.decoder.": ("transformer.ho_decoder.", "transformer.verb_decoder."),
    "bbox_embed.": ("sub_bbox_embed.", "obj_bbox_embed."),
    "transformer.reference_points.": (
        "transformer.reference_points_sub.",
        "transformer.reference_points_obj.",
    ),
    "tgt_embed.": ("tgt_embed.", "verb_tgt_embed."),
}
# Aliases of the top-level heads.
_DUPLICATES = re.compile(r"^transformer\.\w*decoder\.(sub_|obj_)?bbox_embed\.")
_LEFT_OVER = re.compile(r"^(transformer\.decoder|bbox_embed|transformer\.reference_points)\.")
_QUERIES = re.compile(r"^queries\.(query_embed|content|verb_content|anchors)\.weight$")
_EXPECTED = ("image_encoder.", "encoder.layers.", "entity_decoder.", "relation_decoder.")


@dataclass(frozen=True)
class Initialised:
    """The outcome of an initialisation, as parameter names.

    loaded: taken from the detector; unchanged: other parameters of the network; unused: parameters
    of the detector that have no counterpart.
    """

    loaded: tuple[str, ...]
    unchanged: tuple[str, ...]
    unused: tuple[str, ...]


def initialise_from_detector(model: RLIPModel, state: State) -> Initialised:
    """Copy a detector's parameters into a network of the same sizes.

    The first queries and the first `decoder_layers` decoder layers of the detector are used, both
    for entities and for relations. The box heads of the relation decoder are those that follow the
    heads of the entity decoder. Files made by the published conversion scripts are read in the same
    way.

    Args:
        state: the parameters of the detector, as returned by `read_checkpoint`.

    Raises:
        CheckpointError: the detector is of the wrong kind, or parameters are missing or of another
            shape; the message lists all.
    """
    _check_kind(model.config, state)
    initial = model.state_dict()
    loaded: dict[str, Tensor] = {}
    used = set()
    problems = []
    values = published_names(state)
    for published, key in _sources(state).items():
        name = renamed(published, model.config.decoder_layers)
        if is_ignored(published, model.config) or name not in initial:
            continue
        value = values[published]
        if _QUERIES.match(name):
            value = value[: len(initial[name])]
        if value.shape != initial[name].shape:
            problems.append(wrong_shape(key, value, initial[name]))
        loaded[name] = value
        used.add(key)
    unchanged = _unchanged(initial, loaded)
    problems += [f"missing {name}" for name in unchanged if name.startswith(_EXPECTED)]
    if problems:
        raise CheckpointError("the detector does not fit: " + ", ".join(problems))
    model.load_state_dict(loaded, strict=False)
    unused = state.keys() - used
    return Initialised(
        tuple(loaded),
        unchanged,
        tuple(key for key in state if key in unused and not _DUPLICATES.match(key)),
    )


def wrong_shape(name: str, value: Tensor, expected: Tensor) -> str:
    """Say that a parameter has another shape than expected."""
    return f"{name} has shape {list(value.shape)}, expected {list(expected.shape)}"


def _unchanged(initial: State, loaded: State) -> tuple[str, ...]:
    """Return the names of the parameters that are not loaded."""
    parameters = (name for name, value in initial.items() if value.is_floating_point())
    return tuple(name for name in parameters if name not in loaded)


def published_names(state: State) -> dict[str, Tensor]:
    """Return the parameters of a detector under the names of the published RLIP code; some appear
    under two names.

    Queries `[queries, 2 * dim]` (position, content) become `[queries, 3 * dim]`: the content of the
    relations is a copy of the content of the entities. Queries `[queries, dim]`, which are content
    only, are repeated three times.
    """
    named = {name: state[key] for name, key in _sources(state).items()}
    queries = named.get("query_embed.weight")
    levels = named.get("transformer.level_embed")
    if queries is not None and levels is not None:
        dim = levels.shape[1]
        if queries.shape[1] == dim:
            named["query_embed.weight"] = queries.repeat(1, 3)
        elif queries.shape[1] == 2 * dim:
            named["query_embed.weight"] = torch.cat((queries, queries[:, dim:]), dim=1)
    return named


def _sources(state: State) -> dict[str, str]:
    """Map each published name to the name in the detector; the published conversion script has
    added its own names.
    """
    keys = [key for key in state if not _DUPLICATES.match(key)]
    if any(key.startswith("sub_bbox_embed.") for key in keys):
        return {key: key for key in keys if not _LEFT_OVER.match(key)}
    sources: dict[str, str] = {}
    for key in keys:
        for name in _copies(key):
            sources[name] = key
    return sources


def _copies(key: str) -> list[str]:
    """Return the published names of the copies of a parameter, or its own name."""
    for prefix, published in _COPIES.items():
        if key.startswith(prefix):
            return [name + key.removeprefix(prefix) for name in published]
    return [key]


def detector_config(
    state: State, kind: str, args: Mapping[str, Any] | None = None, **changes: Any
) -> RLIPConfig:
    """Return the published configuration of `kind` (see `preset`), with the sizes of a detector.

    Args:
        state: the parameters of the detector.
        args: the training options stored with it, if any.
        changes: settings to override.

    Raises:
        CheckpointError: the kind is unknown, or the checkpoint is not a deformable detector.
    """
    if kind not in KINDS:
        raise CheckpointError(f"unknown network {kind!r}, expected one of {', '.join(KINDS)}")
    layer = "transformer.encoder.layers.0."
    needed = (
        "transformer.level_embed",
        layer + "self_attn.attention_weights.bias",
        layer + "linear1.bias",
    )
    absent = [key for key in needed if key not in state]
    if absent:
        raise CheckpointError(f"it is not a (DAB-)Deformable-DETR: it has no {', '.join(absent)}")
    sizes = encoder_sizes(state, "transformer.encoder.", args or {})
    backbone = backbone_sizes(state, {})
    name = _backbone_name(backbone)
    # The shapes don't determine the drop-path rate: the published one is used.
    del backbone["backbone"], backbone["drop_path"]
    return preset(kind, name, **(sizes | backbone | changes))


def _backbone_name(sizes: Mapping[str, Any]) -> str:
    if sizes["backbone"] == "resnet50":
        return "resnet50"
    for name, size in SWIN_SIZES.items():
        if size.embed_dim == sizes["swin_embed_dim"] and list(size.depths) == sizes["swin_depths"]:
            return name
    return "swin_tiny"


def _check_kind(config: RLIPConfig, state: State) -> None:
    has_anchors = "tgt_embed.weight" in state
    if isinstance(config, ParSeDAConfig) and not has_anchors:
        raise CheckpointError(
            "ParSeDA starts from a DAB-Deformable-DETR; this detector has no tgt_embed.weight"
        )
    if has_anchors and not isinstance(config, ParSeDAConfig):
        raise CheckpointError(
            "ParSeD and the R-Tagger start from a Deformable-DETR; this one is a"
            " DAB-Deformable-DETR"
        )
