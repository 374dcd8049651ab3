"""The decoders: whose boxes are refined by which head, and where relations look."""

import math

import pytest
import torch

from rlip_model.decoder import AnchorPositions, EntityDecoder, RelationDecoder
from rlip_model.encoder import Memory
from rlip_model.queries import EntityQueries, RelationQueries
from tests.factories import tiny_config

CONFIG = tiny_config(100)
SHAPES = ((8, 8), (4, 4), (2, 2), (2, 2))


def memory() -> Memory:
    torch.manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    return Memory(
        torch.randn(1, tokens, 64),
        torch.zeros(1, tokens, dtype=torch.bool),
        torch.ones(1, 4, 2),
        SHAPES,
        torch.randn(3, 1, 5, 64),
        3,
    )


def entity_queries() -> EntityQueries:
    return EntityQueries(torch.randn(2, 6, 64), torch.randn(2, 6, 64), torch.rand(2, 6, 2))


def test_subjects_and_objects_have_their_own_heads() -> None:
    decoder = EntityDecoder(CONFIG).eval()
    with torch.no_grad():
        decoder.object_box_heads[0].mlp.layers[-1].bias[0] = 30.0
    queries = entity_queries()
    decoded = decoder(queries, memory())
    assert decoded.hidden.shape == (3, 2, 6, 64)
    torch.testing.assert_close(decoded.boxes[0, :, :3, :2], queries.references[:, :3])
    assert decoded.boxes[0, :, 3:, 0].gt(0.999).all()
    torch.testing.assert_close(decoded.boxes[0, ..., 2:], torch.full((2, 6, 2), 0.1192), atol=1e-4, rtol=0)


def test_references_carry_no_gradient_between_layers() -> None:
    decoder = EntityDecoder(CONFIG)
    decoded = decoder(entity_queries(), memory())
    decoded.boxes[2].sum().backward()
    assert decoder.subject_box_heads[2].mlp.layers[-1].bias.grad.abs().sum() > 0
    assert not decoder.subject_box_heads[1].mlp.layers[-1].bias.grad.any()


def test_relations_look_between_the_boxes_of_their_pair() -> None:
    decoder = RelationDecoder(CONFIG).eval()
    seen = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    with torch.no_grad():
        decoder.subject_box_heads[0].mlp.layers[-1].bias[1] = 1.0
    boxes = torch.rand(2, 6, 4)
    decoded = decoder(RelationQueries(torch.randn(2, 3, 64), torch.randn(2, 3, 64)), boxes, memory())
    torch.testing.assert_close(seen[0], (boxes[:, :3] + boxes[:, 3:]) / 2)
    moved = boxes[:, :3].clone()
    moved[..., 1] = (moved[..., 1].logit(eps=1e-5) + 1).sigmoid()
    torch.testing.assert_close(seen[1], (moved + boxes[:, 3:]) / 2)
    torch.testing.assert_close(decoded.subject_boxes[0], moved)


def test_padded_queries_do_not_disturb_the_others() -> None:
    decoder = EntityDecoder(CONFIG).eval()
    queries = entity_queries()
    padding = torch.tensor([[False, False, True] * 2] * 2)
    changed = torch.where(padding.unsqueeze(-1), torch.randn(2, 6, 64), queries.content)
    first = decoder(EntityQueries(queries.content, queries.positions, queries.references, padding), memory())
    second = decoder(EntityQueries(changed, queries.positions, queries.references, padding), memory())
    torch.testing.assert_close(first.hidden[:, ~padding], second.hidden[:, ~padding])


def test_anchor_positions_by_hand() -> None:
    module = AnchorPositions(8).eval()
    boxes, content = torch.rand(1, 2, 4), torch.randn(1, 2, 8)
    sines = []
    for place in (1, 0, 2, 3):
        angle = 2 * math.pi * boxes[..., place]
        slow = angle / 100
        sines += [angle.sin(), angle.cos(), slow.sin(), slow.cos()]
    expected = module.ref_point_head(torch.stack(sines, dim=-1))
    torch.testing.assert_close(module(0, content, boxes), expected, atol=1e-5, rtol=1e-5)
    scaled = module.query_scale(content) * expected
    torch.testing.assert_close(module(2, content, boxes), scaled, atol=1e-5, rtol=1e-5)


def test_anchors_are_placed_on_the_padded_finest_level() -> None:
    decoder = EntityDecoder(CONFIG, anchored=True).eval()
    seen = []
    decoder.anchor_positions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    half = memory()
    half.valid_ratios[:, 0] = torch.tensor([0.5, 0.25])
    queries = EntityQueries(torch.randn(2, 6, 64), None, torch.rand(2, 6, 4))
    decoder(queries, half)
    torch.testing.assert_close(seen[0], queries.references * torch.tensor([0.5, 0.25, 0.5, 0.25]))
    with pytest.raises(ValueError, match="queries without positions"):
        EntityDecoder(CONFIG)(queries, half)
