"""ALIF's parts: both directions of attention, every gate by its formula, and what masks do and don't."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from rlip_model.config import Gating, RLIPConfig
from rlip_model.fusion import Gate, LabelLayer, MultiBranchFusion, VisionLanguageFusion
from tests.factories import tiny_config


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
        "GLIP": lambda: gamma * update,
        "VXAc": lambda: gamma[0] * update,
        "Vtanh": lambda: torch.tanh(gamma[0]) * update,
        "Etanh": lambda: torch.tanh(gamma) * update,
        "XGating": lambda: update,
        "Stanh": lambda: torch.tanh(narrow(gamma)) * update,
        "SXAc": lambda: narrow(gamma) * update,
        "SDFtanh": lambda: torch.tanh(narrow(update)) * update,
        "SDFXAc": lambda: narrow(update) * update,
        "SFtanh": lambda: torch.tanh(narrow(base)) * update,
        "SXAcLN": lambda: narrow(gamma, norm=True) * update,
        "SDFXAcLN": lambda: narrow(update, norm=True) * update,
        "SOtanh": lambda: torch.tanh(narrow(gamma)) * update,
        "SDFOXAcLN": lambda: narrow(update, norm=True) * update,
        "MBF": lambda: gate.branches(base, update) - base,
    }
    return formulas[gating]()


@pytest.mark.parametrize("gating", get_args(Gating))
def test_every_gate(gating: Gating) -> None:
    gate = randomised(Gate(64, gating, 0.25))
    base, update = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    torch.testing.assert_close(gate(base, update), base + expected_gate(gate, gating, base, update))
    if gating in ("SOtanh", "SDFOXAcLN"):
        assert gate.up.out_features == 1
        assert gate.down.out_features == 32
    elif hasattr(gate, "down"):
        assert gate.up.out_features == 64
        assert gate.down.out_features == 16


def test_updates_are_added_to_the_normalised_input() -> None:
    config: RLIPConfig = tiny_config(100)
    fusion = VisionLanguageFusion(config).eval()
    with torch.no_grad():
        fusion.vision_gate.gamma.zero_()
        fusion.label_gate.gamma.zero_()
    vision, labels = 5 + 3 * torch.randn(1, 6, 64), 2 * torch.randn(1, 4, 64)
    fused_vision, fused_labels = fusion(vision, torch.zeros_like(vision), labels)
    torch.testing.assert_close(fused_vision, torch.nn.functional.layer_norm(vision, (64,)))
    torch.testing.assert_close(fused_labels, torch.nn.functional.layer_norm(labels, (64,)))


def test_multi_branch_fusion_by_hand() -> None:
    fusion = randomised(MultiBranchFusion(32, branches=8))
    left, right = torch.randn(3, 32), torch.randn(3, 32)
    total = torch.zeros(3, 32)
    for branch in range(8):
        product = fusion.fc_1[branch](left) * fusion.fc_2[branch](right)
        total = total + fusion.fc_3[branch](torch.relu(product))
    torch.testing.assert_close(fusion(left, right), torch.relu(total))


def test_masked_labels_are_not_looked_at_unless_all_are() -> None:
    layer = LabelLayer(tiny_config(100).text_config).eval()
    labels = torch.randn(1, 5, 64)
    masked = torch.tensor([[False, True, False, True, False]])
    changed = labels.clone()
    changed[:, masked[0]] = torch.randn(2, 64)
    kept = ~masked[0]
    torch.testing.assert_close(layer(changed, masked)[:, kept], layer(labels, masked)[:, kept])
    assert not torch.allclose(layer(changed, None)[:, kept], layer(labels, None)[:, kept])
    everything = torch.ones_like(masked)
    torch.testing.assert_close(layer(labels, everything), layer(labels, None), atol=1e-3, rtol=0)
