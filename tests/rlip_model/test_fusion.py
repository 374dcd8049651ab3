"""Fusion: every gate by its formula; after decoding (RLIPv1), and none."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from rlip_model.config import Gating, RLIPConfig
from rlip_model.fusion import Gate
from rlip_model.late_fusion import JointEncoder
from rlip_model.model import ParSeD, ParSeDA
from rlip_model.text import LabelFeatures
from tests.rlip_model.conftest import tiny_network

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
OBJECTS = 4
LABELS = 7


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def expected_gate(gate: Gate, gating: Gating, base: Tensor, update: Tensor) -> Tensor:
    """What is added to the base, from the table of formulas."""

    def narrow(source: Tensor, norm: bool = False) -> Tensor:
        inner = gate.down(source)
        return gate.up(torch.relu(gate.norm(inner) if norm else inner))

    gamma = gate.gamma
    formulas = {
        "GLIP": lambda: gamma * update, "VXAc": lambda: gamma[0] * update, "XGating": lambda: update,
        "Vtanh": lambda: torch.tanh(gamma[0]) * update, "Etanh": lambda: torch.tanh(gamma) * update,
        "Stanh": lambda: torch.tanh(narrow(gamma)) * update, "SOtanh": lambda: torch.tanh(narrow(gamma)) * update,
        "SDFtanh": lambda: torch.tanh(narrow(update)) * update, "SFtanh": lambda: torch.tanh(narrow(base)) * update,
        "SXAc": lambda: narrow(gamma) * update, "SXAcLN": lambda: narrow(gamma, norm=True) * update,
        "SDFXAc": lambda: narrow(update) * update, "SDFXAcLN": lambda: narrow(update, norm=True) * update,
        "SDFOXAcLN": lambda: narrow(update, norm=True) * update, "MBF": lambda: gate.branches(base, update) - base,
    }  # fmt: skip
    return formulas[gating]()


@pytest.mark.parametrize("gating", get_args(Gating))
def test_every_gate(gating: Gating) -> None:
    gate = randomised(Gate(64, gating, 0.25))
    base = torch.randn(2, 3, 64)
    update = torch.randn(2, 3, 64)
    torch.testing.assert_close(gate(base, update), base + expected_gate(gate, gating, base, update))
    if hasattr(gate, "down"):
        widths = (32, 1) if gating in ("SOtanh", "SDFOXAcLN") else (16, 64)
        assert (gate.down.out_features, gate.up.out_features) == widths


def features(masked: Tensor | None = None) -> LabelFeatures:
    return LabelFeatures(
        torch.randn(1, LABELS, 64, generator=torch.Generator().manual_seed(1)), OBJECTS, masked
    )


@torch.no_grad()
def test_joint_encoder_by_hand() -> None:
    config = RLIPConfig(hidden_dim=32, num_heads=4, feedforward_dim=48)
    torch.manual_seed(0)
    encoder = JointEncoder(config).eval()
    for parameter in encoder.parameters():
        parameter.uniform_(-0.5, 0.5)
    queries = torch.randn(2, 5, 32)
    labels = torch.randn(1, 3, 32)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True]])
    masked = torch.tensor([[False, True, False]])
    tokens = torch.cat((queries, labels.expand(2, -1, -1)), 1)
    hidden = torch.cat((padding, masked.expand(2, -1)), 1)
    query_states, label_states = encoder(queries, labels, padding, masked)
    for layer, of_queries, of_labels in zip(
        encoder.layers, query_states, label_states, strict=True
    ):
        normed = layer.norm1(tokens)
        tokens = (
            tokens
            + layer.self_attn(normed, normed, normed, key_padding_mask=hidden, need_weights=False)[
                0
            ]
        )
        tokens = tokens + layer.linear2(layer.linear1(layer.norm2(tokens)).relu())
        expected = encoder.norm(tokens)
        torch.testing.assert_close(of_queries, expected[:, :5], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(of_labels, expected[:, 5:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_after_decoding_reads_out_the_last_states() -> None:
    """Fused states of layer k take the place of decoder layer k's; its boxes move from that layer's
    references.
    """
    model = tiny_network(ParSeD, "after_decoding")
    torch.nn.init.normal_(model.entity_decoder.subject_box_heads[1].mlp.layers[2].weight)
    memory = model.fuse(model.encode_image(PIXELS), features())
    entities, relations = model.decode(model.queries.entities(2), memory)
    output = model.read_out(entities, relations, memory)
    states = model.late_fusion(entities, relations, memory)
    second = output.auxiliary[1]
    expected = model.scorer.entities(
        states.entities[1][:, :20], model.scorer.project(states.object_labels[1])
    )
    assert torch.equal(second.subject_logits, expected)
    expected = model.scorer.relations(
        states.relations[1], model.scorer.project(states.relation_labels[1])
    )
    assert torch.equal(second.relation_logits, expected)
    head = model.entity_decoder.subject_box_heads[1]
    start = entities.boxes[0][:, :20]
    assert torch.equal(second.subject_boxes, head(states.entities[1][:, :20], start))
    assert not torch.allclose(second.subject_boxes, entities.boxes[1][:, :20], atol=1e-3)


@torch.no_grad()
def test_without_fusion_labels_are_the_same_for_every_layer_and_do_not_meet() -> None:
    model = tiny_network(ParSeDA, "none")
    memory = model.fuse(model.encode_image(PIXELS), features())
    assert torch.equal(memory.labels[0], memory.labels[2])
    fewer = LabelFeatures(features().features[:, :-1], OBJECTS)
    relation_logits = model(PIXELS, None, features()).final.relation_logits
    part = model(PIXELS, None, fewer).final.relation_logits
    torch.testing.assert_close(relation_logits[..., :-1], part)
