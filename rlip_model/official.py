"""The published checkpoints of RLIPv2 and RLIP-ParSeD: parameter names, and the configuration
implied by the shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from torch import Tensor
from transformers import RobertaConfig

from rlip_model.config import (
    Fusion,
    Gating,
    ParSeDAConfig,
    ParSeDConfig,
    RLIPConfig,
    RTaggerConfig,
    VerbQuery,
)
from rlip_model.fusion import GATE_RULES
from rlip_model.pretrained import CheckpointError

State = Mapping[str, Tensor]

_RENAMES = [
    (r"^backbone\.0\.body\.", "image_encoder.backbone."),
    (r"^input_proj\.", "image_encoder.projections."),
    (r"^transformer\.level_embed$", "image_encoder.level_embed"),
    (r"^transformer\.text_encoder\.", "text_encoder.roberta."),
    (r"^transformer\.resizer\.", "label_resizer."),
    (r"^transformer\.(?:ho_)?encoder\.layers\.", "encoder.layers."),
    (r"^transformer\.(?:ho_)?encoder\.roberta_layers\.", "encoder.label_layers."),
    (
        r"^transformer\.(?:ho_)?encoder\.VLFuse_layers\.(\d+)\.b_attn\.",
        r"encoder.fusion_layers.\1.",
    ),
    (r"\.gamma_v$", ".vision_gate.gamma"),
    (r"\.gamma_l$", ".label_gate.gamma"),
    (r"\.gamma_v_down\.", ".vision_gate.down."),
    (r"\.gamma_l_down\.", ".label_gate.down."),
    (r"\.gamma_v_(?:up|one)\.", ".vision_gate.up."),
    (r"\.gamma_l_(?:up|one)\.", ".label_gate.up."),
    (r"\.layer_norm_gating_v\.", ".vision_gate.norm."),
    (r"\.layer_norm_gating_l\.", ".label_gate.norm."),
    (r"\.MBF_v\.", ".vision_gate.branches."),
    (r"\.MBF_l\.", ".label_gate.branches."),
    (r"^transformer\.obj_fusion\.", "late_fusion.entities."),
    (r"^transformer\.verb_fusion\.", "late_fusion.relations."),
    (r"^transformer\.ho_decoder\.", "entity_decoder."),
    (r"^transformer\.verb_decoder\.", "relation_decoder."),
    (r"^query_embed\.", "queries.query_embed."),
    (r"^transformer\.reference_points_sub\.", "queries.reference_points.subject."),
    (r"^transformer\.reference_points_obj\.", "queries.reference_points.object."),
    (r"\.(query_scale|ref_point_head)\.", r".anchor_positions.\1."),
    (r"^tgt_embed\.", "queries.content."),
    (r"^verb_tgt_embed\.", "queries.verb_content."),
    (r"^refpoint_embed\.", "queries.anchors."),
    (r"^transformer\.coord_proj\.", "queries.coord_proj."),
    (r"^transformer\.verb_tgt\.", "queries.verb_content."),
    (r"^transformer\.verb_tgt_generator\.", "queries.relation_builder.verb_fusion."),
    (r"^transformer\.verb_query_embed\.", "queries.relation_builder.verb_position."),
    (r"^projection_text\.", "scorer.projection."),
    (r"^bias_obj_a$", "scorer.entity_bias"),
    (r"^bias_pred_a$", "scorer.relation_bias"),
]
_RENAMES_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RENAMES]
_BOX_HEAD = re.compile(r"^(sub|obj)_bbox_embed\.(\d+)\.(.*)$")
_IGNORED = re.compile(
    r"^transformer\.(ho|verb)_decoder\.(sub|obj)_bbox_embed\."  # an alias of the top-level heads
    r"|^transformer\.text_encoder\.embeddings\.position_ids$"  # a buffer of old transformers
    r"|\.num_batches_tracked$"
)
_FUSION_TYPES: Mapping[str, Fusion] = {
    "GLIP_attn": "alif",
    "MDETR_attn": "after_decoding",
    "no_fusion": "none",
}
_GATE = re.compile(r"VLFuse_layers\.0\.b_attn\.(gamma_v_\w+|layer_norm_gating_v|MBF_v)\.")


def renamed(key: str, decoder_layers: int) -> str:
    """Translate a parameter name of the published code to ours.

    The first `decoder_layers` box heads belong to the entity decoder, the others to the relation
    decoder.
    """
    head = _BOX_HEAD.match(key)
    if head and int(head[2]) < 2 * decoder_layers:
        role = "subject" if head[1] == "sub" else "object"
        decoder = "entity" if int(head[2]) < decoder_layers else "relation"
        return f"{decoder}_decoder.{role}_box_heads.{int(head[2]) % decoder_layers}.mlp.{head[3]}"
    for pattern, replacement in _RENAMES_COMPILED:
        key = pattern.sub(replacement, key)
    return key


def is_ignored(key: str, config: RLIPConfig) -> bool:
    """Return whether a published parameter is a duplicate, or is never used by its own network."""
    unused = isinstance(config, RTaggerConfig) and key == "query_embed.weight"
    return unused or _IGNORED.search(key) is not None


def infer_config(
    state: State,
    args: Mapping[str, Any] | None = None,
    *,
    gating: str | None = None,
    verb_query: str | None = None,
    text_config: RobertaConfig | None = None,
) -> RLIPConfig:
    """Infer the configuration of a published checkpoint.

    Args:
        state: its parameters, under their published names.
        args: the training options stored with them, if any.
        gating, verb_query: settings that the shapes may not determine; they take precedence over
        `args`.
        text_config: of the RoBERTa it was trained with; the shapes don't determine its number of
            heads.

    Raises:
        CheckpointError: not ParSeD, ParSeDA or R-Tagger, or neither shapes nor options determine a
            setting.
    """
    options = args or {}
    _check_is_rlip(state)
    kind = _kind(state)
    encoder = _encoder(state)
    noise: dict[str, Any] = {}
    if kind is RTaggerConfig:
        noise["box_noise"] = float(options.get("box_noise_scale", 0.4))
        noise["label_noise"] = float(options.get("label_noise_scale", 0.2))
    return kind(
        **backbone_sizes(state, options),
        **encoder_sizes(state, encoder, options),
        **noise,
        num_queries=len(state[_queries(state)]),
        decoder_layers=count(state, "transformer.ho_decoder.layers."),
        dropout=float(options.get("dropout", 0.0)),
        **_fusion(state, options, gating),
        verb_query=_verb_query(state, verb_query or options.get("verb_query_tgt_type")),
        subject_class=bool(options.get("subject_class", True)),
        text_config=_text_config(state, text_config),
    )


def encoder_sizes(state: State, encoder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that follow from the weights of an encoder.

    Args:
        encoder: start of their names.
        options: the training options stored with them.
    """
    levels, dim = state["transformer.level_embed"].shape
    points = int(options.get("enc_n_points", 4))
    attention = state[encoder + "layers.0.self_attn.attention_weights.bias"]
    return {
        "hidden_dim": dim,
        "num_levels": levels,
        "num_points": points,
        "num_heads": len(attention) // (levels * points),
        "feedforward_dim": len(state[encoder + "layers.0.linear1.bias"]),
        "encoder_layers": count(state, encoder + "layers."),
    }


def _is_anchored(state: State) -> bool:
    return "refpoint_embed.weight" in state


def _kind(state: State) -> type[RLIPConfig]:
    if _is_anchored(state):
        return ParSeDAConfig
    return RTaggerConfig if "transformer.coord_proj.weight" in state else ParSeDConfig


def _queries(state: State) -> str:
    return "tgt_embed.weight" if _is_anchored(state) else "query_embed.weight"


def _encoder(state: State) -> str:
    """Return the prefix of the ALIF encoder; checkpoints made from detectors contain a second,
    unused one.
    """
    return "transformer.encoder." if _is_anchored(state) else "transformer.ho_encoder."


def _fusion(state: State, options: Mapping[str, Any], gating: str | None) -> dict[str, Any]:
    """Return the kind of fusion in the weights, and the sizes of ALIF. Raise CheckpointError if the
    options contradict.
    """
    encoder = _encoder(state)
    fusion = "GLIP_attn" if count(state, encoder + "VLFuse_layers.") else "no_fusion"
    if count(state, "transformer.obj_fusion.layers."):
        fusion = "MDETR_attn"
    option = options.get("fusion_type", fusion)  # RLIPv1 had no such option
    if option != fusion:
        raise CheckpointError(
            f"its options give fusion_type {option!r}, but its weights are those of {fusion!r}"
        )
    if fusion != "GLIP_attn":
        return {"fusion": _FUSION_TYPES[fusion]}
    layers = count(state, encoder + "layers.")
    return {
        "fusion": _FUSION_TYPES[fusion],
        "fusion_interval": math.ceil(layers / count(state, encoder + "VLFuse_layers.")),
        "fusion_last_level": bool(options.get("fusion_last_vis", True)),
        "fusion_dim": state[encoder + "VLFuse_layers.0.b_attn.attn.v_proj.bias"].shape[0],
        "gating": _gating(state, gating or options.get("gating_mechanism")),
    }


def _check_is_rlip(state: State) -> None:
    encoder = _encoder(state)
    needed = [
        "transformer.level_embed",
        _queries(state),
        "projection_text.weight",
        "transformer.ho_decoder.layers.0.linear1.bias",
        encoder + "layers.0.linear1.bias",
        encoder + "layers.0.self_attn.attention_weights.bias",
        "transformer.text_encoder.embeddings.word_embeddings.weight",
    ]
    absent = [key for key in needed if key not in state]
    if absent:
        raise CheckpointError(f"it is not an RLIP checkpoint: it has no {', '.join(absent)}")


def count(state: State, prefix: str) -> int:
    """Return the number of numbered parts whose names start with `prefix`."""
    parts = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    return sum(map(str.isdigit, parts))


def backbone_sizes(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that follow from the weights under
    `backbone.0.body.`.
    """
    body = "backbone.0.body."
    if body + "patch_embed.proj.weight" not in state:
        return {"backbone": "resnet50", "drop_path": 0.0}
    stages = range(count(state, body + "layers."))
    tables = [
        state[f"{body}layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape
        for stage in stages
    ]
    return {
        "backbone": "swin",
        "swin_embed_dim": state[body + "patch_embed.proj.weight"].shape[0],
        "swin_depths": [count(state, f"{body}layers.{stage}.blocks.") for stage in stages],
        "swin_heads": [table[1] for table in tables],
        "swin_window": (math.isqrt(tables[0][0]) + 1) // 2,
        "drop_path": float(options.get("drop_path_rate", 0.2)),
    }


def _gating(state: State, chosen: str | None) -> Gating:
    present = {match[1] for match in map(_GATE.search, state) if match}
    possible = [gating for gating in get_args(Gating) if _gate_parameters(gating) == present]
    return cast(Gating, _determined("gating", chosen, possible))


def _determined(setting: str, chosen: str | None, possible: Sequence[str]) -> str:
    """Return the value of a setting that the weights leave, or that was chosen among several.

    Raises:
        CheckpointError: none or another one was chosen.
    """
    names = ", ".join(possible) or "none"
    if chosen is None and len(possible) != 1:
        raise CheckpointError(f"its weights do not determine the {setting}: choose one of {names}")
    if chosen is not None and chosen not in possible:
        raise CheckpointError(f"its weights do not fit {setting} {chosen!r}, only {names}")
    return chosen or possible[0]


def _gate_parameters(gating: Gating) -> set[str]:
    rule = GATE_RULES.get(gating)
    if rule is None:
        return {"MBF_v"}
    if rule.bottleneck is None:
        return set()
    names = {"gamma_v_down", "gamma_v_one" if rule.scalar else "gamma_v_up"}
    return names | {"layer_norm_gating_v"} if rule.norm else names


def _verb_query(state: State, chosen: str | None) -> VerbQuery:
    fused = any(key.startswith("transformer.verb_tgt_generator.") for key in state)
    possible = ["MBF", "vanilla_MBF"] if fused else ["vanilla"]
    if _is_anchored(state):
        possible = ["vanilla", "MBF", "vanilla_MBF"]
    return cast(VerbQuery, _determined("verb query", chosen, possible))


def _text_config(state: State, trained: RobertaConfig | None) -> RobertaConfig:
    prefix = "transformer.text_encoder."
    embeddings = prefix + "embeddings."
    vocabulary, width = state[embeddings + "word_embeddings.weight"].shape
    heads = max(width // 64, 1)
    eps = 1e-5
    if trained is not None and trained.hidden_size == width:
        heads = trained.num_attention_heads
        eps = trained.layer_norm_eps
    return RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=count(state, prefix + "encoder.layer."),
        num_attention_heads=heads,
        intermediate_size=state[prefix + "encoder.layer.0.intermediate.dense.bias"].shape[0],
        max_position_embeddings=state[embeddings + "position_embeddings.weight"].shape[0],
        type_vocab_size=state[embeddings + "token_type_embeddings.weight"].shape[0],
        layer_norm_eps=eps,
    )
