"""Matching and losses: empty batches, missing objects, degenerate boxes, and where gradients go."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torchvision.ops import generalized_box_iou

from rlip_model.boxes import generalized_iou, to_corners
from rlip_model.heads import RelationOutput
from rlip_model.losses import DetectionCriterion, TaggerCriterion, prediction_errors
from rlip_model.matcher import NonFiniteError, match, matching_costs
from rlip_model.postprocess import hoi_detections, scene_graph_detections, zero_shot_hoi_detections
from rlip_model.relation_losses import focal_loss, quality_focal_loss
from rlip_model.settings import MatchingCosts
from rlip_model.targets import Triplets, join
from tests.rlip_model import samples
from tests.rlip_model.samples import PAIRS, RELATIONS, random_layer, random_output, random_triplets


def test_agrees_with_torchvision_for_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (to_corners(samples.random_boxes(generator, count)) for count in (30, 20))
    torch.testing.assert_close(generalized_iou(first.unsqueeze(1), second), generalized_box_iou(first, second))


def test_boxes_without_area_give_numbers_and_gradients() -> None:
    point = torch.tensor([[0.3, 0.3, 0.3, 0.3]], requires_grad=True)
    for other in (torch.zeros(1, 4), point.detach(), torch.tensor([[0.0, 0.0, 1.0, 1.0]])):
        value = generalized_iou(point, other)
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss])
def test_certain_and_wrong_is_finite(loss: Callable[..., torch.Tensor]) -> None:
    logits = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert gradient.isfinite().all()


COSTS = MatchingCosts()


def test_diverged_predictions_are_refused() -> None:
    output = random_layer(batch=1)
    broken = replace(output, relation_logits=torch.full_like(output.relation_logits, float("nan")))
    with pytest.raises(NonFiniteError, match="not finite"):
        match([broken], join([random_triplets(2)], RELATIONS), COSTS)


def test_images_without_triplets_are_joined_and_an_object_is_missing_only_if_its_box_is_all_zero() -> None:
    triplets = [random_triplets(count) for count in (0, 3, 0, 2)]
    triplets[1].object_boxes[:2] = torch.tensor([[0.0] * 4, [0.0, 0.0, 0.1, 0.1]])
    batch = join(triplets, RELATIONS)
    assert (batch.counts, len(batch)) == ((0, 3, 0, 2), 5)
    assert (batch.images.tolist(), batch.slots.tolist()) == ([1, 1, 1, 3, 3], [0, 1, 2, 0, 1])
    assert batch.has_object.tolist() == [False, True, True, True, True]


def test_wrong_classes_are_counted_in_percent() -> None:
    triplets = random_triplets(4)
    layer, batch = samples.perfect_layer(triplets), join([triplets], RELATIONS)
    assignment = match([layer], batch, COSTS)[0]
    layer.object_logits[0, 0] = layer.object_logits[0, 0].roll(1)
    errors = prediction_errors(layer, batch, assignment)
    assert float(errors.object_class) == 25


def test_subjects_that_are_not_classified_cost_nothing_and_are_not_detected() -> None:
    triplets, layer = random_triplets(3), random_layer(batch=1, subjects=False)
    other = replace(triplets, subject_labels=(triplets.subject_labels + 1) % 4)
    first, second = (matching_costs(layer, join([each], RELATIONS), COSTS) for each in (triplets, other))
    torch.testing.assert_close(first, second)
    output, sizes = random_layer(subjects=False), torch.tensor([[100, 200], [50, 40]])
    assert len(hoi_detections(output, sizes)[0]) == PAIRS
    for detections in (zero_shot_hoi_detections, scene_graph_detections):
        with pytest.raises(ValueError, match="does not classify subjects"):
            detections(output, sizes)


FEATURES = torch.randn(RELATIONS, 8, generator=torch.Generator().manual_seed(3))
CRITERIA: dict[str, Callable[[RelationOutput, list[Triplets]], object]] = {
    "plain": DetectionCriterion(quality_labels=False, pseudo_labels=False),
    "quality": DetectionCriterion(pseudo_labels=False),
    "pseudo": partial(DetectionCriterion(quality_labels=False), relation_features=FEATURES),
    "pre-training": partial(DetectionCriterion(), relation_features=FEATURES),
    "tagger": TaggerCriterion(),
}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_triplets(name: str, counts: tuple[int, int]) -> None:
    output = random_output()
    losses = CRITERIA[name](output, [random_triplets(count) for count in counts])
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in vars(output.final).values())
    if counts == (0, 0):
        parts = [losses.final.subject_box, losses.final.object_box, losses.final.subject_giou, losses.final.object_giou]
        assert [float(part.detach()) for part in parts] == [0] * 4
        assert name != "tagger" or float(losses.total.detach()) == 0


def test_unused_slots_of_the_tagger_get_no_gradient() -> None:
    output = random_output(batch=2)
    TaggerCriterion()(output, [random_triplets(2), random_triplets(0)]).total.backward()
    for tensor in vars(output.final).values():
        assert tensor.grad[0, :2].abs().sum() > 0
        assert tensor.grad[0, 2:].eq(0).all()
        assert tensor.grad[1].eq(0).all()


@pytest.mark.parametrize("published", [False, True])
def test_pseudo_labels_move_the_text_encoder_only_if_asked_to(published: bool) -> None:
    features = FEATURES.clone().requires_grad_()
    criterion = DetectionCriterion(pseudo_label_gradient=published)
    criterion(random_output(), [random_triplets(3), random_triplets(2)], features).total.backward()
    assert (features.grad is not None and bool(features.grad.abs().sum() > 0)) is published
    assert published or features.grad is None
