"""Checks of training: every loss, which query was matched with which triplet, and gradient
norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.losses import DetectionCriterion, LayerLosses, ModelLosses, TaggerCriterion
from rlip_model.matcher import match
from rlip_model.model import RLIPModel, RTagger
from rlip_model.official import is_ignored, renamed
from rlip_model.relation_losses import pseudo_labels
from rlip_model.settings import LossWeights, MatchingCosts
from rlip_model.targets import Triplets, join
from rlip_model.text import LabelFeatures
from tests.parity.forward import run_network
from tests.parity.golden import Golden, Report
from tests.values import values_of

LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# less is the rounding error of a gradient that is zero: attention key biases
SMALLEST_GRADIENT = 1e-6
NUDGES = 4
ROUNDING = 1e-6
ZERO_OBJECT = re.compile(r"zero_obj_box_img(\d+)_pair(\d+)$")


@dataclass(frozen=True)
class TrainingPass:
    """One forward pass as in training, and the criterion that the flags ask for."""

    golden: Golden
    output: RelationOutput
    labels: LabelFeatures
    criterion: DetectionCriterion | TaggerCriterion

    @property
    def relation_features(self) -> Tensor:
        return self.labels.features[0, self.labels.num_objects :]

    def losses(self, targets: Sequence[Triplets]) -> ModelLosses:
        if isinstance(self.criterion, TaggerCriterion):
            return self.criterion(self.output, targets)
        return self.criterion(self.output, targets, self.relation_features)


def check_training(model: RLIPModel, golden: Golden, report: Report) -> None:
    """losses.json, loss_variants.json, matcher.json and grad_norms.json, as far as the folder has
    them.
    """
    norms = golden.json("grad_norms.json")
    losses = golden.json("losses.json")
    if not losses:
        return
    model.freeze()
    with torch.no_grad():
        training = training_pass(model, golden)
        check_losses(training, losses, report)
        check_pseudo_labels(training, report)
        check_variants(training, golden.json("loss_variants.json"), report)
        check_matcher(training, golden.json("matcher.json"), report)
    if norms:
        check_gradients(model, golden, norms, report)


def training_pass(model: RLIPModel, golden: Golden) -> TrainingPass:
    inputs = golden.inputs
    labels = model.encode_tokens(
        inputs["input_ids"], inputs["attention_mask"], golden.num_objects, mask_by_sum=True
    )
    output = run_network(model, golden, labels).output
    tagger = isinstance(model, RTagger)
    return TrainingPass(golden, output, labels, criterion_of(golden.options, tagger))


def criterion_of(options: Mapping[str, Any], tagger: bool) -> DetectionCriterion | TaggerCriterion:
    """The published criterion with the weights of a command line."""

    def numbers(*names: str) -> list[float]:
        return [
            float(options.get(name, default))
            for name, default in zip(names, (1, 1, 2.5, 1), strict=True)
        ]

    weights = LossWeights(
        *numbers("obj_loss_coef", "verb_loss_coef", "bbox_loss_coef", "giou_loss_coef")
    )
    no_object = float(options.get("eos_coef", 0.1))
    if tagger:
        return TaggerCriterion(weights, no_object)
    costs = MatchingCosts(
        *numbers("set_cost_obj_class", "set_cost_verb_class", "set_cost_bbox", "set_cost_giou")
    )
    quality = bool(options.get("giou_verb_label", False))
    # without quality labels it has no effect there
    pseudo = quality and bool(options.get("pseudo_verb", False))
    return DetectionCriterion(
        costs, weights, quality, pseudo, pseudo_label_gradient=True, no_object_weight=no_object
    )


def check_losses(training: TrainingPass, expected: dict[str, Any], report: Report) -> None:
    by_targets = expected if "targets_a" in expected else {"targets_a": expected}
    for name, values in by_targets.items():
        compare_losses(report, name, training.losses(training.golden.triplets(f"{name}.")), values)


def compare_losses(
    report: Report, section: str, computed: ModelLosses, expected: Mapping[str, float]
) -> None:
    values = {**named_losses(computed.final, ""), "TOTAL_WEIGHTED": computed.total}
    for index, layer in enumerate(computed.auxiliary):
        values.update(named_losses(layer, f"_{index}"))
    for name, number in expected.items():
        if name not in values:
            report.require(f"losses of {section}", f"{name}: not computed", False)
        else:
            report.compare_number(
                f"losses of {section}", name, values[name], number, LOSS_TOLERANCE
            )


def named_losses(layer: LayerLosses, suffix: str) -> dict[str, Tensor]:
    by_name = {
        "loss_obj_ce": layer.entity, "loss_verb_ce": layer.relation,
        "loss_sub_bbox": layer.subject_box, "loss_obj_bbox": layer.object_box,
        "loss_sub_giou": layer.subject_giou, "loss_obj_giou": layer.object_giou,
        "sub_class_error": layer.errors.subject_class, "obj_class_error": layer.errors.object_class,
        "obj_cardinality_error": layer.errors.cardinality,
    }  # fmt: skip
    return {name + suffix: value for name, value in by_name.items() if value is not None}


def check_pseudo_labels(training: TrainingPass, report: Report) -> None:
    expected = training.golden.tensors("outputs_raw_text.safetensors")
    for name in ("out.target_verb_sim", *(f"out.aux{index}.target_verb_sim" for index in range(8))):
        if name in expected:
            true = torch.cat(values_of(training.golden.triplets(), "relation_labels"))
            report.compare(
                "pseudo-labels",
                name,
                pseudo_labels(true, training.relation_features).detach(),
                expected[name],
            )


def check_variants(training: TrainingPass, expected: dict[str, Any], report: Report) -> None:
    """The same predictions under other criteria, named by what they change."""
    if not isinstance(training.criterion, DetectionCriterion):
        return
    for name, values in expected.items():
        targets = training.golden.triplets()
        zero = ZERO_OBJECT.search(name)
        if zero:
            image, pair = map(int, zero.groups())
            boxes = targets[image].object_boxes.clone()
            boxes[pair] = 0
            targets[image] = replace(targets[image], object_boxes=boxes)
        if name.startswith("matcher"):
            compare_assignment(report, name, training, training.output.final, targets, values)
            continue
        quality = name.startswith("giou_only")
        if not quality and not name.startswith("plain_focal"):
            report.require("loss variants", f"{name}: unknown", False)
            continue
        other = replace(
            training,
            criterion=replace(training.criterion, quality_labels=quality, pseudo_labels=False),
        )
        compare_losses(report, name, other.losses(targets), values)


def check_matcher(training: TrainingPass, expected: dict[str, Any], report: Report) -> None:
    for name, by_layer in expected.items():
        targets = training.golden.triplets(f"{name}.")
        for layer, pairs in by_layer.items():
            output = (
                training.output.final
                if layer == "final"
                else training.output.auxiliary[int(layer.removeprefix("aux"))]
            )
            compare_assignment(report, f"{name}, {layer}", training, output, targets, pairs)


def compare_assignment(
    report: Report,
    name: str,
    training: TrainingPass,
    output: LayerOutput,
    targets: Sequence[Triplets],
    expected: Any,
) -> None:
    """`expected`: queries and triplets of each image, as lists of numbers."""
    assert isinstance(training.criterion, DetectionCriterion)
    batch = join(targets, output.relation_logits.shape[-1])
    assignment = match([output], batch, training.criterion.costs)[0]
    slots = batch.slots[assignment.triplets]
    ours = [
        [
            assignment.queries[assignment.images == image].tolist(),
            slots[assignment.images == image].tolist(),
        ]
        for image in range(len(targets))
    ]
    report.require("matcher", name, ours == expected)


def check_gradients(
    model: RLIPModel, golden: Golden, expected: Mapping[str, float | None], report: Report
) -> None:
    """Norms of the gradient by official name; again with nudged pixels where rounding errors at a
    ReLU may decide.
    """
    best = gradient_rows(model, golden, expected, "gradients")
    for seed in range(NUDGES):
        if not best.failed:
            break
        pixels = golden.inputs["images"]
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        nudged = replace(
            golden, inputs={**golden.inputs, "images": pixels * (1 + ROUNDING * noise)}
        )
        best = min(
            best,
            gradient_rows(model, nudged, expected, "gradients, nudged"),
            key=lambda rows: len(rows.failed),
        )
    report.rows += best.rows


def gradient_rows(
    model: RLIPModel, golden: Golden, expected: Mapping[str, float | None], section: str
) -> Report:
    report = Report(golden.small)
    model.zero_grad()
    training_pass(model, golden).losses(golden.triplets()).total.backward()
    parameters = dict(model.named_parameters())
    for key, norm in expected.items():
        name = renamed(key, model.config.decoder_layers)
        gradient = parameters[name].grad if name in parameters else None
        if name not in parameters and not is_ignored(key, model.config):
            report.require(section, f"{key}: no such parameter", False)
        elif norm is None or gradient is None:
            report.require(section, key, norm is None and gradient is None)
        else:
            report.compare_number(
                section, key, gradient.norm(), norm, GRADIENT_TOLERANCE, SMALLEST_GRADIENT
            )
    model.zero_grad()
    return report
