"""Criteria: known values, order, empty batches, missing objects, switches, and where gradients go."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from rlip_model.heads import RelationOutput
from rlip_model.losses import DetectionCriterion, LayerLosses, TaggerCriterion
from rlip_model.targets import Triplets
from tests.rlip_model.samples import RELATIONS, random_output, random_triplets

FEATURES = torch.randn(RELATIONS, 8, generator=torch.Generator().manual_seed(3))
PLAIN = DetectionCriterion(quality_labels=False, pseudo_labels=False)
CRITERIA: dict[str, Callable[[RelationOutput, list[Triplets]], object]] = {
    "plain": PLAIN,
    "quality": DetectionCriterion(pseudo_labels=False),
    "pseudo": partial(DetectionCriterion(quality_labels=False), relation_features=FEATURES),
    "pre-training": partial(DetectionCriterion(), relation_features=FEATURES),
    "tagger": TaggerCriterion(),
}


def losses_of(layer: LayerLosses) -> dict[str, Tensor]:
    return {name: value for name, value in vars(layer).items() if isinstance(value, Tensor)}


def shuffled(triplets: Triplets, order: list[int]) -> Triplets:
    return Triplets(*(tensor[order] for tensor in vars(triplets).values()))


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "tagger"])
def test_the_order_of_targets_does_not_matter(name: str) -> None:
    images, output = [random_triplets(4), random_triplets(3)], random_output()
    mixed = [shuffled(images[0], [2, 0, 3, 1]), shuffled(images[1], [1, 2, 0])]
    plain, other = CRITERIA[name](output, images), CRITERIA[name](output, mixed)
    for key, value in losses_of(plain.final).items():
        torch.testing.assert_close(value, losses_of(other.final)[key])


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_triplets(name: str, counts: tuple[int, int]) -> None:
    output = random_output()
    losses = CRITERIA[name](output, [random_triplets(count) for count in counts])
    losses.total.backward()
    assert losses.total.isfinite()
    for tensor in vars(output.final).values():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    if counts == (0, 0):
        for part in ("subject_box", "object_box", "subject_giou", "object_giou"):
            assert float(getattr(losses.final, part).detach()) == 0
        if name == "tagger":
            assert float(losses.total.detach()) == 0


@pytest.mark.parametrize("name", CRITERIA)
def test_all_objects_missing(name: str) -> None:
    images = [replace(random_triplets(n), object_boxes=torch.zeros(n, 4)) for n in (2, 3)]
    output = random_output()
    losses = CRITERIA[name](output, images)
    losses.total.backward()
    assert losses.total.isfinite()
    assert float(losses.final.object_box) == float(losses.final.object_giou) == 0
    assert float(losses.final.subject_box) > 0
    assert output.final.object_boxes.grad is not None
    assert output.final.object_boxes.grad.eq(0).all()


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
    assert (features.grad is not None) is published
    if published:
        assert features.grad is not None
        assert features.grad.abs().sum() > 0
