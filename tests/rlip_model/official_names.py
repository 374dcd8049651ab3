"""A checkpoint as the published code would have written it, from one of our networks."""

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor

from rlip_model.model import ParSeDA, RLIPModel

_NAMES = [
    (r"^image_encoder\.backbone\.", "backbone.0.body."), (r"^image_encoder\.projections\.", "input_proj."),
    (r"^image_encoder\.level_embed", "transformer.level_embed"),
    (r"^text_encoder\.roberta\.", "transformer.text_encoder."), (r"^label_resizer\.", "transformer.resizer."),
    (r"^encoder\.layers\.", "transformer.ho_encoder.layers."),
    (r"^encoder\.label_layers\.", "transformer.ho_encoder.roberta_layers."),
    (r"^encoder\.fusion_layers\.(\d+)\.", r"transformer.ho_encoder.VLFuse_layers.\1.b_attn."),
    (r"vision_gate\.gamma", "gamma_v"), (r"label_gate\.gamma", "gamma_l"), (r"vision_gate\.(down|up)", r"gamma_v_\1"),
    (r"label_gate\.(down|up)", r"gamma_l_\1"), (r"^entity_decoder\.layers\.", "transformer.ho_decoder.layers."),
    (r"^relation_decoder\.layers\.", "transformer.verb_decoder.layers."),
    (r"^queries\.reference_points\.subject\.", "transformer.reference_points_sub."),
    (r"^queries\.reference_points\.object\.", "transformer.reference_points_obj."),
    (r"^queries\.coord_proj\.", "transformer.coord_proj."), (r"^late_fusion\.entities\.", "transformer.obj_fusion."),
    (r"^late_fusion\.relations\.", "transformer.verb_fusion."), (r"^queries\.content\.", "tgt_embed."),
    (r"^queries\.anchors\.", "refpoint_embed."), (r"\.anchor_positions\.", "."),
    (r"^relation_decoder\.(query_scale|ref_point_head)\.", r"transformer.verb_decoder.\1."),
    (r"^entity_decoder\.(query_scale|ref_point_head)\.", r"transformer.ho_decoder.\1."),
    (r"^queries\.query_embed\.", "query_embed."),
    (r"^queries\.relation_builder\.verb_fusion\.", "transformer.verb_tgt_generator."),
    (r"^queries\.relation_builder\.verb_position\.", "transformer.verb_query_embed."),
    (r"^scorer\.projection\.", "projection_text."), (r"^scorer\.entity_bias", "bias_obj_a"),
    (r"^scorer\.relation_bias", "bias_pred_a"),
]  # fmt: skip
_BOX_HEAD = re.compile(r"^(entity|relation)_decoder\.(subject|object)_box_heads\.(\d+)\.mlp\.(.*)$")


def official_state(model: RLIPModel) -> dict[str, Tensor]:
    """Published names, each box head under both of its names, with the leftovers of old
    libraries.
    """
    anchored = isinstance(model, ParSeDA)
    verb_content = "verb_tgt_embed." if anchored else "transformer.verb_tgt."
    encoder = "transformer.encoder." if anchored else "transformer.ho_encoder."
    state: dict[str, Tensor] = {
        "transformer.text_encoder.embeddings.position_ids": torch.arange(514)[None]
    }
    for name, value in model.state_dict().items():
        head = _BOX_HEAD.match(name)
        if head:
            decoder = "ho" if head[1] == "entity" else "verb"
            role = head[2][:3]
            index = int(head[3])
            first = index + (0 if decoder == "ho" else model.config.decoder_layers)
            state[f"{role}_bbox_embed.{first}.{head[4]}"] = value
            state[f"transformer.{decoder}_decoder.{role}_bbox_embed.{index}.{head[4]}"] = (
                torch.zeros_like(value)
            )
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^queries\.verb_content\.", verb_content, name)
        state[name.replace("transformer.ho_encoder.", encoder)] = value
    queries = model.config.num_queries
    dim = model.config.hidden_dim
    if not anchored:
        state.setdefault("query_embed.weight", torch.zeros(queries, 3 * dim))
    return state


def write_official(path: Path, model: RLIPModel, **changed: object) -> Path:
    """A `.pth` file with options; `changed` options override, those that are None are left out."""
    options = {
        "gating_mechanism": model.config.gating, "verb_query_tgt_type": model.config.verb_query,
        "fusion_type": {"alif": "GLIP_attn", "after_decoding": "MDETR_attn", "none": "no_fusion"}[model.config.fusion],
        "dropout": 0.0, "subject_class": True, "fusion_last_vis": True, "enc_n_points": 4, **changed,
    }  # fmt: skip
    args = argparse.Namespace(**{key: value for key, value in options.items() if value is not None})
    torch.save(
        {"model": official_state(model), "optimizer": {"state": {}}, "epoch": 19, "args": args},
        path,
    )
    return path
