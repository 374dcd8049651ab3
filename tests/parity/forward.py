"""Checks of a whole forward pass on both text paths, from backbone to outputs, and of their
post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlip_model.backbone import ImageFeatures
from rlip_model.decoder import DecodedEntities, DecodedRelations
from rlip_model.encoder import Memory
from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger
from rlip_model.postprocess import (
    TripletDetections,
    hoi_detections,
    scene_graph_detections,
    zero_shot_hoi_detections,
)
from rlip_model.queries import EntityQueries
from rlip_model.text import LabelFeatures
from tests.parity.golden import Golden, Report
from tests.values import values_of

# at paper size, one in 3 tokens and one in 8 channels are stored
TOKEN_STEP = 3
CHANNEL_STEP = 8

NOT_THE_NETWORK = {"out.target_verb_sim"} | {
    f"out.aux{layer}.target_verb_sim" for layer in range(8)
}

PROTOCOLS = {
    "hoi": hoi_detections,
    "hoi_zero_shot": zero_shot_hoi_detections,
    "sgg": scene_graph_detections,
}


@dataclass(frozen=True)
class Run:
    """Everything that one forward pass computed."""

    image: ImageFeatures
    memory: Memory
    queries: EntityQueries
    entities: DecodedEntities
    relations: DecodedRelations
    output: RelationOutput


def run_network(model: RLIPModel, golden: Golden, labels: LabelFeatures) -> Run:
    image = model.encode_image(golden.inputs["images"], golden.inputs["mask"])
    memory = model.fuse(image, labels)
    queries = make_queries(model, golden, memory)
    entities, relations = model.decode(queries, memory)
    return Run(
        image, memory, queries, entities, relations, model.read_out(entities, relations, memory)
    )


def make_queries(model: RLIPModel, golden: Golden, memory: Memory) -> EntityQueries:
    if isinstance(model, RTagger):
        return model.queries.entities(golden.pairs(), model.object_labels(memory))
    assert isinstance(model, ParSeD | ParSeDA)
    return model.queries.entities(golden.inputs["images"].shape[0])


@torch.no_grad()
def check_forward(model: RLIPModel, golden: Golden, report: Report) -> None:
    """Both text paths; on the raw one every intermediate result that the folder holds."""
    inputs = golden.inputs
    labels = model.encode_tokens(
        inputs["input_ids"], inputs["attention_mask"], golden.num_objects, mask_by_sum=True
    )
    expected = golden.tensors("outputs_raw_text.safetensors") | golden.tensors(
        "intermediates.safetensors"
    )
    compare_known(report, "raw text", golden, forward(model, golden, labels), expected)
    unmasked = LabelFeatures(labels.features, labels.num_objects)
    expected = golden.tensors("outputs_encoded_text.safetensors")
    compare_known(report, "encoded text", golden, forward(model, golden, unmasked), expected)


def forward(model: RLIPModel, golden: Golden, labels: LabelFeatures) -> dict[str, Tensor]:
    """All that a forward pass computes, under the names of the reference files."""
    recorded, handles = record(model)
    run = run_network(model, golden, labels)
    for handle in handles:
        handle.remove()
    return {**recorded, **intermediates(model, run, labels), **outputs(run.output)}


def compare_known(
    report: Report,
    section: str,
    golden: Golden,
    tensors: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> None:
    """Compare every expected tensor; one that is not computed fails. Pseudo-labels are checked with
    the losses.
    """
    for key, reference in expected.items():
        name = key.removeprefix("inter.").replace("backbone.feat", "feat")
        if name in NOT_THE_NETWORK:
            continue
        value = tensors.get(name)
        if value is None:
            report.require(section, f"{key}: not computed", False)
            continue
        if not golden.small and name == "encoder.memory":
            value = value[:, ::TOKEN_STEP]
        if not golden.small and name.startswith("feat"):
            value = value[:, ::CHANNEL_STEP]
        report.compare(section, key, value, reference)


def outputs(output: RelationOutput) -> dict[str, Tensor]:
    tensors = layer_outputs("out.", output.final)
    for index, layer in enumerate(output.auxiliary):
        tensors.update(layer_outputs(f"out.aux{index}.", layer))
    return tensors


def layer_outputs(prefix: str, layer: LayerOutput) -> dict[str, Tensor]:
    tensors = {
        "pred_sub_logits": layer.subject_logits, "pred_obj_logits": layer.object_logits,
        "pred_verb_logits": layer.relation_logits,
        "pred_sub_boxes": layer.subject_boxes, "pred_obj_boxes": layer.object_boxes,
    }  # fmt: skip
    return {prefix + name: value for name, value in tensors.items() if value is not None}


def intermediates(model: RLIPModel, run: Run, labels: LabelFeatures) -> dict[str, Tensor]:
    """What the parts handed to each other, under the names of the reference files."""
    image = run.image
    memory = run.memory
    boxes = torch.stack(run.entities.boxes.chunk(2, dim=2), dim=1)
    relation_boxes = torch.stack((run.relations.subject_boxes, run.relations.object_boxes), dim=1)
    pooled = labels.features.transpose(0, 1)
    tensors = {
        "encoder.memory": memory.tokens, "text_resized": memory.labels.transpose(1, 2),
        "valid_ratios": memory.valid_ratios, "spatial_shapes": torch.tensor(memory.shapes),
        "level_start_index": torch.tensor([0] + [h * w for h, w in memory.shapes]).cumsum(0)[:-1],
        "text_pooled": pooled[:, 0], "text_memory_bf_resize": pooled,
        "ho_dec.hs": run.entities.hidden, "ho_dec.hs_last": run.entities.hidden[-1], "ho_dec.refs": boxes,
        "verb_dec.hs": run.relations.hidden, "verb_dec.hs_last": run.relations.hidden[-1],
        "verb_dec.refs": relation_boxes,
    }  # fmt: skip
    if labels.masked is not None:
        tensors["text_attention_mask"] = labels.masked.transpose(0, 1).expand(
            -1, memory.tokens.shape[0]
        )
    return {**tensors, **levels(model, image), **queries(model, run.queries)}


def levels(model: RLIPModel, image: ImageFeatures) -> dict[str, Tensor]:
    """Positions (without the level's embedding) and masks, cut into levels."""
    tensors: dict[str, Tensor] = {}
    sizes = [height * width for height, width in image.shapes]
    cut = zip(
        image.shapes, image.positions.split(sizes, 1), image.padding.split(sizes, 1), strict=True
    )
    for level, (shape, positions, padding) in enumerate(cut):
        sine = positions - model.image_encoder.level_embed[level]
        tensors[f"pos{level}"] = sine.transpose(1, 2).unflatten(2, shape)
        tensors[f"src_mask{level}"] = tensors[f"feat_mask{level}"] = padding.unflatten(1, shape)
    return tensors


def queries(model: RLIPModel, entity_queries: EntityQueries) -> dict[str, Tensor]:
    if isinstance(model, ParSeD):
        return {"ho_query_embed": model.queries.query_embed.weight}
    if isinstance(model, ParSeDA):
        parts = (model.queries.content, model.queries.verb_content, model.queries.anchors)
        return {"ho_query_embed": torch.cat(values_of(parts, "weight"), dim=-1)}
    assert entity_queries.positions is not None
    assert entity_queries.padding is not None
    return {
        "ho_query_embed": torch.cat((entity_queries.positions, entity_queries.content), dim=-1),
        "key_padding_mask": entity_queries.padding,
    }


def record(model: RLIPModel) -> tuple[dict[str, Tensor], list[RemovableHandle]]:
    """What the layers inside the encoders will return, under the names of the reference files; and
    the hooks.
    """
    recorded: dict[str, Tensor] = {}
    backbone = model.image_encoder.backbone
    encoder = model.encoder
    handles = [
        backbone.register_forward_hook(
            lambda _, __, maps: recorded.update({f"feat{n}": m for n, m in enumerate(maps)})
        ),
        encoder.register_forward_hook(
            lambda _, __, output: recorded.update({"encoder.lang_stack": output[1]})
        ),
    ]

    def watch(modules: nn.ModuleList, *names: str) -> None:
        for index, module in enumerate(modules):
            keys = [name.format(index) for name in names]

            def note(
                _module: nn.Module, _inputs: object, output: Any, keys: list[str] = keys
            ) -> None:
                values = (output,) if isinstance(output, Tensor) else output
                recorded.update(zip(keys, values, strict=True))

            handles.append(module.register_forward_hook(note))

    watch(model.image_encoder.projections, "src{}")
    watch(encoder.layers, "enc{}.out")
    watch(encoder.label_layers, "alif{}.roberta_out")
    watch(encoder.fusion_layers, "alif{}.vis_last_level", "alif{}.lang")
    return recorded, handles


@torch.no_grad()
def check_postprocessing(model: RLIPModel, golden: Golden, report: Report) -> None:
    """postprocess_on_encoded_outputs.safetensors: labels are equal, scores and boxes close."""
    expected = golden.tensors("postprocess_on_encoded_outputs.safetensors")
    if not expected:
        return
    labels = model.encode_tokens(
        golden.inputs["input_ids"], golden.inputs["attention_mask"], golden.num_objects
    )
    output = run_network(model, golden, LabelFeatures(labels.features, labels.num_objects)).output
    tensors: dict[str, Tensor] = {"target_sizes": expected["target_sizes"]}
    for protocol, detect in PROTOCOLS.items():
        for image, detections in enumerate(detect(output.final, expected["target_sizes"])):
            tensors.update(listed(f"{protocol}.{image}.", detections))
    for key, reference in expected.items():
        if key not in tensors:
            report.require("post-processing", f"{key}: not computed", False)
        elif reference.is_floating_point():
            scale = float(expected["target_sizes"].max()) if key.endswith("boxes") else 1.0
            report.compare("post-processing", key, tensors[key] / scale, reference / scale)
        else:
            report.require("post-processing", key, torch.equal(tensors[key], reference))


def listed(prefix: str, detections: TripletDetections) -> dict[str, Tensor]:
    """Subjects, then objects, in one list, and which of them belong together."""
    numbers = torch.arange(2 * len(detections))
    subjects, objects = numbers.chunk(2) if len(detections) else (numbers, numbers)
    return {
        f"{prefix}labels": torch.cat((detections.subject_labels, detections.object_labels)),
        f"{prefix}boxes": torch.cat((detections.subject_boxes, detections.object_boxes)),
        f"{prefix}verb_scores": detections.relation_scores,
        f"{prefix}sub_ids": subjects,
        f"{prefix}obj_ids": objects,
    }
