"""Checks of a whole forward pass, from backbone to outputs, on both text paths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlip_model.backbone import ImageFeatures
from rlip_model.decoder import DecodedEntities, DecodedRelations
from rlip_model.encoder import Memory
from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.model import ParSeD, ParSeDA, RLIPModel, RTagger
from rlip_model.queries import EntityQueries
from rlip_model.text import LabelFeatures
from tests.parity.golden import Golden, Report

TOKEN_STEP, CHANNEL_STEP = 3, 8  # at paper size, one in 3 tokens and one in 8 channels are stored


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
    return Run(image, memory, queries, entities, relations, model.read_out(entities, relations, memory))


def make_queries(model: RLIPModel, golden: Golden, memory: Memory) -> EntityQueries:
    if isinstance(model, RTagger):
        return model.queries.entities(golden.pairs(), model.object_labels(memory))
    assert isinstance(model, ParSeD | ParSeDA)
    return model.queries.entities(golden.inputs["images"].shape[0])


@torch.no_grad()
def check_forward(model: RLIPModel, golden: Golden, report: Report) -> None:
    """Both text paths; on the raw one every intermediate result that the folder holds."""
    inputs = golden.inputs
    labels = model.encode_tokens(inputs["input_ids"], inputs["attention_mask"], golden.num_objects, mask_by_sum=True)
    expected = golden.tensors("outputs_raw_text.safetensors") | golden.tensors("intermediates.safetensors")
    compare_known(report, "raw text", golden, forward(model, golden, labels), expected)
    unmasked = LabelFeatures(labels.features, labels.num_objects)
    expected = golden.tensors("outputs_encoded_text.safetensors")
    compare_known(report, "encoded text", golden, forward(model, golden, unmasked), expected)


def forward(model: RLIPModel, golden: Golden, labels: LabelFeatures) -> dict[str, Tensor]:
    """All that a forward pass computes, under the names of the reference files."""
    recorder = Recorder(model)
    run = run_network(model, golden, labels)
    recorder.close()
    return {**recorder.tensors, **intermediates(model, run, labels), **outputs(run.output)}


def compare_known(
    report: Report, section: str, golden: Golden, found: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Compare every expected tensor; one that is not computed fails. Pseudo-labels are checked with the losses."""
    for key, reference in expected.items():
        name = key.removeprefix("inter.").replace("backbone.feat", "feat")
        if name in NOT_THE_NETWORK:
            continue
        value = found.get(name)
        if value is None:
            report.require(section, f"{key}: not computed", False)
            continue
        if not golden.small and name == "encoder.memory":
            value = value[:, ::TOKEN_STEP]
        if not golden.small and name.startswith("feat"):
            value = value[:, ::CHANNEL_STEP]
        report.compare(section, key, value, reference)


NOT_THE_NETWORK = {"out.target_verb_sim"} | {f"out.aux{layer}.target_verb_sim" for layer in range(8)}


def outputs(output: RelationOutput) -> dict[str, Tensor]:
    found = layer_outputs("out.", output.final)
    for index, layer in enumerate(output.auxiliary):
        found.update(layer_outputs(f"out.aux{index}.", layer))
    return found


def layer_outputs(prefix: str, layer: LayerOutput) -> dict[str, Tensor]:
    found = {
        "pred_sub_logits": layer.subject_logits,
        "pred_obj_logits": layer.object_logits,
        "pred_verb_logits": layer.relation_logits,
        "pred_sub_boxes": layer.subject_boxes,
        "pred_obj_boxes": layer.object_boxes,
    }
    return {prefix + name: value for name, value in found.items() if value is not None}


def intermediates(model: RLIPModel, run: Run, labels: LabelFeatures) -> dict[str, Tensor]:
    """What the parts handed to each other, under the names of the reference files."""
    image, memory = run.image, run.memory
    boxes = torch.stack(run.entities.boxes.chunk(2, dim=2), dim=1)
    relation_boxes = torch.stack((run.relations.subject_boxes, run.relations.object_boxes), dim=1)
    pooled = labels.features.transpose(0, 1)
    found = {
        "encoder.memory": memory.tokens,
        "text_resized": memory.labels.transpose(1, 2),
        "valid_ratios": memory.valid_ratios,
        "spatial_shapes": torch.tensor(memory.shapes),
        "level_start_index": torch.tensor([0] + [h * w for h, w in memory.shapes]).cumsum(0)[:-1],
        "text_pooled": pooled[:, 0],
        "text_memory_bf_resize": pooled,
        "ho_dec.hs": run.entities.hidden,
        "ho_dec.hs_last": run.entities.hidden[-1],
        "ho_dec.refs": boxes,
        "verb_dec.hs": run.relations.hidden,
        "verb_dec.hs_last": run.relations.hidden[-1],
        "verb_dec.refs": relation_boxes,
    }
    if labels.masked is not None:
        found["text_attention_mask"] = labels.masked.transpose(0, 1).expand(-1, memory.tokens.shape[0])
    found.update(levels(model, image))
    found.update(queries(model, run.queries))
    return found


def levels(model: RLIPModel, image: ImageFeatures) -> dict[str, Tensor]:
    """Positions (without the level's embedding) and masks, cut into levels."""
    found: dict[str, Tensor] = {}
    sizes = [height * width for height, width in image.shapes]
    cut = zip(image.shapes, image.positions.split(sizes, 1), image.padding.split(sizes, 1), strict=True)
    for level, (shape, positions, padding) in enumerate(cut):
        sine = positions - model.image_encoder.level_embed[level]
        found[f"pos{level}"] = sine.transpose(1, 2).unflatten(2, shape)
        found[f"src_mask{level}"] = found[f"feat_mask{level}"] = padding.unflatten(1, shape)
    return found


def queries(model: RLIPModel, made: EntityQueries) -> dict[str, Tensor]:
    if isinstance(model, ParSeD):
        return {"ho_query_embed": model.queries.query_embed.weight}
    if isinstance(model, ParSeDA):
        parts = (model.queries.content, model.queries.verb_content, model.queries.anchors)
        return {"ho_query_embed": torch.cat([part.weight for part in parts], dim=-1)}
    assert made.positions is not None
    assert made.padding is not None
    return {"ho_query_embed": torch.cat((made.positions, made.content), dim=-1), "key_padding_mask": made.padding}


class Recorder:
    """Notes what the layers inside the encoders return, under the names of the reference files."""

    def __init__(self, model: RLIPModel) -> None:
        self.tensors: dict[str, Tensor] = {}
        encoder = model.encoder
        self._handles = [model.image_encoder.backbone.register_forward_hook(self._maps)]
        for index, projection in enumerate(model.image_encoder.projections):
            self._watch(projection, f"src{index}")
        for index, layer in enumerate(encoder.layers):
            self._watch(layer, f"enc{index}.out")
        for index, layer in enumerate(encoder.label_layers):
            self._watch(layer, f"alif{index}.roberta_out")
        for index, layer in enumerate(encoder.fusion_layers):
            self._watch(layer, f"alif{index}.vis_last_level", f"alif{index}.lang")
        self._handles.append(encoder.register_forward_hook(self._stack))

    def _watch(self, module: nn.Module, *names: str) -> None:
        def note(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            values = (output,) if isinstance(output, Tensor) else output
            self.tensors.update(zip(names, values, strict=True))

        self._handles.append(module.register_forward_hook(note))

    def _maps(self, _module: nn.Module, _inputs: object, output: list[Tensor]) -> None:
        self.tensors.update({f"feat{level}": value for level, value in enumerate(output)})

    def _stack(self, _module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        self.tensors["encoder.lang_stack"] = output[1]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
