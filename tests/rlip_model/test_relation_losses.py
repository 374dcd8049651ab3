"""Focal losses in their limits; soft labels within their range."""

from dataclasses import replace

import pytest
import torch

from rlip_model.matcher import match
from rlip_model.relation_losses import focal_loss, pseudo_labels, quality_focal_loss, relation_quality
from rlip_model.settings import MatchingCosts
from rlip_model.targets import join
from tests.rlip_model.samples import RELATIONS, perfect_layer, random_layer, random_triplets


def test_with_hard_labels_quality_focal_loss_is_focal_loss() -> None:
    """Exponent 2 on both sides: for labels 0 and 1 the two are the same number."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator)
    labels = (torch.rand(7, 5, generator=generator) < 0.4).float()
    torch.testing.assert_close(quality_focal_loss(logits, labels), focal_loss(logits, labels))


@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss])
def test_certain_and_wrong_is_finite(loss: object) -> None:
    assert callable(loss)
    logits = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_quality_lies_between_zero_and_one_and_is_one_for_perfect_boxes() -> None:
    batch = join([random_triplets(4), random_triplets(3)], RELATIONS)
    output = random_layer()
    quality = relation_quality(output, batch, match([output], batch, MatchingCosts())[0])
    assert quality.min() >= 0
    assert quality.max() < 1
    assert not quality.requires_grad
    triplets = random_triplets(3)
    batch, perfect = join([triplets], RELATIONS), perfect_layer(triplets)
    quality = relation_quality(perfect, batch, match([perfect], batch, MatchingCosts())[0])
    torch.testing.assert_close(quality, torch.ones(3))


def test_quality_is_that_of_the_worse_box_or_of_the_only_one() -> None:
    triplets = random_triplets(1)
    perfect = perfect_layer(triplets)
    shifted = replace(perfect, object_boxes=perfect.object_boxes + torch.tensor([0.9, 0.9, 0.0, 0.0]))
    batch = join([triplets], RELATIONS)
    assignment = match([perfect], batch, MatchingCosts())[0]
    assert float(relation_quality(shifted, batch, assignment)) < 0.5
    without = join([replace(triplets, object_boxes=torch.zeros(1, 4))], RELATIONS)
    assert float(relation_quality(shifted, without, assignment)) == pytest.approx(1)


def test_pseudo_labels_of_a_small_space() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0], [0.0, 10.0]])
    found = pseudo_labels(torch.tensor([[1.0, 0, 0, 0]]), features)
    # distances 0, 1, 5, 10: similarities 10, 9, 5, 0 of at most 10
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.9, 0.5, 0.0]]), atol=1e-5, rtol=0)
    assert pseudo_labels(torch.tensor([[1.0, 0, 0, 0]]), features, threshold=0.6).tolist()[0][2] == 0
