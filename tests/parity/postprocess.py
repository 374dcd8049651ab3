"""Checks of post-processing: the scored triplets of every protocol."""

from __future__ import annotations

import torch
from torch import Tensor

from rlip_model.model import RLIPModel
from rlip_model.postprocess import TripletDetections, hoi_detections, scene_graph_detections, zero_shot_hoi_detections
from rlip_model.text import LabelFeatures
from tests.parity.forward import run_network
from tests.parity.golden import Golden, Report

PROTOCOLS = {"hoi": hoi_detections, "hoi_zero_shot": zero_shot_hoi_detections, "sgg": scene_graph_detections}


@torch.no_grad()
def check_postprocessing(model: RLIPModel, golden: Golden, report: Report) -> None:
    """postprocess_on_encoded_outputs.safetensors: labels are equal, scores and boxes close."""
    expected = golden.tensors("postprocess_on_encoded_outputs.safetensors")
    if not expected:
        return
    labels = model.encode_tokens(golden.inputs["input_ids"], golden.inputs["attention_mask"], golden.num_objects)
    output = run_network(model, golden, LabelFeatures(labels.features, labels.num_objects)).output
    found: dict[str, Tensor] = {"target_sizes": expected["target_sizes"]}
    for protocol, detect in PROTOCOLS.items():
        for image, detections in enumerate(detect(output.final, expected["target_sizes"])):
            found.update(listed(f"{protocol}.{image}.", detections))
    for key, reference in expected.items():
        if key not in found:
            report.require("post-processing", f"{key}: not computed", False)
        elif reference.is_floating_point():
            scale = float(expected["target_sizes"].max()) if key.endswith("boxes") else 1.0
            report.compare("post-processing", key, found[key] / scale, reference / scale)
        else:
            report.require("post-processing", key, torch.equal(found[key], reference))


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
