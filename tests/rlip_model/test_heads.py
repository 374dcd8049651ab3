"""Boxes start where their references are; logits are similarities with a rare prior."""

import math

import torch
import torch.nn.functional as F

from rlip_model.heads import BoxHead, LabelScorer


def test_new_box_heads_leave_references_where_they_are() -> None:
    hidden, reference = torch.randn(2, 3, 16), torch.rand(2, 3, 4)
    torch.testing.assert_close(BoxHead(16)(hidden, reference), reference)


def test_points_become_boxes_of_the_initial_size() -> None:
    hidden, point = torch.randn(2, 3, 16), torch.rand(2, 3, 2)
    boxes = BoxHead(16, size_bias=-2.0)(hidden, point)
    torch.testing.assert_close(boxes[..., :2], point)
    torch.testing.assert_close(boxes[..., 2:], torch.full((2, 3, 2), 1 / (1 + math.exp(2))))


def test_moves_are_added_before_the_sigmoid() -> None:
    head = BoxHead(16)
    with torch.no_grad():
        head.mlp.layers[-1].bias.copy_(torch.tensor([1.0, -1.0, 0.5, 0.0]))
    reference = torch.rand(5, 4)
    expected = (reference.logit() + head.mlp.layers[-1].bias).sigmoid()
    torch.testing.assert_close(head(torch.randn(5, 16), reference), expected)


def test_logits_by_hand() -> None:
    scorer = LabelScorer(16)
    with torch.no_grad():
        scorer.entity_bias.normal_()
        scorer.relation_bias.normal_()
    hidden, labels = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    projected = scorer.project(labels)
    expected = scorer.projection(F.normalize(labels, dim=-1) / 2)
    for found, bias in (
        (scorer.entities(hidden, projected), scorer.entity_bias),
        (scorer.relations(hidden, projected), scorer.relation_bias),
    ):
        similarity = torch.einsum("bqd,bld->bql", hidden + bias, expected)
        torch.testing.assert_close(found, similarity - math.log(99))
