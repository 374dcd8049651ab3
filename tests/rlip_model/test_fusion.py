"""ALIF's parts: both directions of attention, every gate by its formula, and what masks do and don't."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from rlip_model.config import Gating
from rlip_model.fusion import Gate, LabelLayer
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
