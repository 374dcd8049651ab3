"""Fusion after decoding (RLIPv1) and no fusion: the same networks, where labels and image meet elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlip_model.config import Fusion, RLIPConfig
from rlip_model.late_fusion import JointEncoder
from rlip_model.model import ParSeD, ParSeDA, RTagger
from rlip_model.text import LabelFeatures
from tests.rlip_model.conftest import random_pairs, tiny_network

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
OBJECTS, LABELS = 4, 7


def features(masked: Tensor | None = None) -> LabelFeatures:
    return LabelFeatures(torch.randn(1, LABELS, 64, generator=torch.Generator().manual_seed(1)), OBJECTS, masked)


def attention_by_hand(layer: torch.nn.TransformerEncoderLayer, tokens: Tensor, hidden: Tensor, heads: int) -> Tensor:
    query, key, value = F.linear(tokens, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, -1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    return layer.self_attn.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_joint_encoder_by_hand() -> None:
    config = RLIPConfig(hidden_dim=32, num_heads=4, feedforward_dim=48)
    torch.manual_seed(0)
    encoder = JointEncoder(config).eval()
    for parameter in encoder.parameters():
        parameter.uniform_(-0.5, 0.5)
    queries, labels = torch.randn(2, 5, 32), torch.randn(1, 3, 32)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True]])
    masked = torch.tensor([[False, True, False]])
    tokens = torch.cat((queries, labels.expand(2, -1, -1)), 1)
    hidden = torch.cat((padding, masked.expand(2, -1)), 1)
    query_states, label_states = encoder(queries, labels, padding, masked)
    for layer, of_queries, of_labels in zip(encoder.layers, query_states, label_states, strict=True):
        tokens = tokens + attention_by_hand(layer, layer.norm1(tokens), hidden, 4)
        tokens = tokens + layer.linear2(layer.linear1(layer.norm2(tokens)).relu())
        expected = encoder.norm(tokens)
        torch.testing.assert_close(of_queries, expected[:, :5], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(of_labels, expected[:, 5:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_after_decoding_reads_out_the_last_states() -> None:
    """Fused states of layer k take the place of decoder layer k's; its boxes move from that layer's references."""
    model = tiny_network(ParSeD, "after_decoding")
    torch.nn.init.normal_(model.entity_decoder.subject_box_heads[1].mlp.layers[2].weight)
    memory = model.fuse(model.encode_image(PIXELS), features())
    entities, relations = model.decode(model.queries.entities(2), memory)
    output = model.read_out(entities, relations, memory)
    states = model.late_fusion(entities, relations, memory)
    second = output.auxiliary[1]
    expected = model.scorer.entities(states.entities[1][:, :20], model.scorer.project(states.object_labels[1]))
    assert torch.equal(second.subject_logits, expected)
    expected = model.scorer.relations(states.relations[1], model.scorer.project(states.relation_labels[1]))
    assert torch.equal(second.relation_logits, expected)
    head, start = model.entity_decoder.subject_box_heads[1], entities.boxes[0][:, :20]
    assert torch.equal(second.subject_boxes, head(states.entities[1][:, :20], start))
    assert not torch.allclose(second.subject_boxes, entities.boxes[1][:, :20], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [ParSeD, ParSeDA])
def test_image_features_depend_on_the_labels_with_alif_only(kind: type[ParSeD] | type[ParSeDA]) -> None:
    other = LabelFeatures(features().features.flip(-1), OBJECTS)
    for fusion in ("alif", "after_decoding", "none"):
        model = tiny_network(kind, fusion)
        image = model.encode_image(PIXELS)
        memories = [model.fuse(image, labels) for labels in (features(), other)]
        assert torch.equal(memories[0].tokens, memories[1].tokens) == (fusion != "alif")
        boxes = [model.read_out(*model.decode(model.queries.entities(2), m), m).auxiliary for m in memories]
        assert memories[0].labels.shape == (3, 2, LABELS, 64)
        assert len(boxes[0]) == 2


@torch.no_grad()
def test_without_fusion_labels_are_the_same_for_every_layer_and_do_not_meet() -> None:
    model = tiny_network(ParSeDA, "none")
    memory = model.fuse(model.encode_image(PIXELS), features())
    assert torch.equal(memory.labels[0], memory.labels[2])
    fewer = LabelFeatures(features().features[:, :-1], OBJECTS)
    whole = model(PIXELS, None, features()).final.relation_logits
    part = model(PIXELS, None, fewer).final.relation_logits
    torch.testing.assert_close(whole[..., :-1], part)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["after_decoding", "none"])
def test_tagger_scores_do_not_depend_on_unused_slots(fusion: Fusion) -> None:
    model = tiny_network(RTagger, fusion)
    groups = [random_pairs(3), random_pairs(6)]
    labels = features()
    whole = model(PIXELS[:1].expand(2, -1, -1, -1), None, labels, groups).final.relation_logits.sigmoid()
    scores = model.score_pairs(model.fuse(model.encode_image(PIXELS[:1]), labels), groups)
    for group, row, expected in zip(groups, scores, whole, strict=True):
        torch.testing.assert_close(row[: len(group)], expected[: len(group)], atol=1e-5, rtol=1e-4)
