"""The decoders: whose boxes are refined by which head, and where relations look."""

import torch

from rlip_model.decoder import EntityDecoder, RelationDecoder
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
