"""The building blocks of ALIF (RLIPv2, section 3.2).

Gated cross-attention in both directions between image and labels, a transformer layer over the
labels, and the projection of labels to the width of the queries.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaLayer

from rlip_model.config import Gating, RLIPConfig

MASKED_LABEL = -10_000.0  # added to the attention scores of masked labels


def initialise_by_xavier(module: nn.Module) -> None:
    """Draw all matrices of a module by Xavier's rule; leave its vectors."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class MultiBranchFusion(nn.Module):
    """Multi-branch fusion (MBF): relu of the sum of `fc_3(relu(fc_1(left) * fc_2(right)))` over all
    branches.

    From spatially conditioned graphs (Zhang et al., ICCV 2021).
    """

    def __init__(self, dim: int, branches: int = 16) -> None:
        super().__init__()
        inner = dim // branches
        self.fc_1 = nn.ModuleList(nn.Linear(dim, inner) for _ in range(branches))
        self.fc_2 = nn.ModuleList(nn.Linear(dim, inner) for _ in range(branches))
        self.fc_3 = nn.ModuleList(nn.Linear(inner, dim) for _ in range(branches))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """`left`, `right` and the result: `[..., dim]`."""
        outputs = []
        for first, second, third in zip(self.fc_1, self.fc_2, self.fc_3, strict=True):
            outputs.append(third((first(left) * second(right)).relu()))
        return torch.stack(outputs).sum(0).relu()


@dataclass(frozen=True)
class GateRule:
    """How the value of a gate is computed: from a source, optionally through a bottleneck and tanh.

    bottleneck: factor by which the width is reduced; scalar: one value for all channels; norm:
    layer norm in the bottleneck.
    """

    source: Literal["gamma", "first gamma", "update", "input", "one"]
    bottleneck: int | None = None
    scalar: bool = False
    norm: bool = False
    tanh: bool = False


GATE_RULES: dict[Gating, GateRule] = {
    "GLIP": GateRule("gamma"),
    "VXAc": GateRule("first gamma"),
    "Vtanh": GateRule("first gamma", tanh=True),
    "Etanh": GateRule("gamma", tanh=True),
    "XGating": GateRule("one"),
    "Stanh": GateRule("gamma", bottleneck=4, tanh=True),
    "SXAc": GateRule("gamma", bottleneck=4),
    "SDFtanh": GateRule("update", bottleneck=4, tanh=True),
    "SDFXAc": GateRule("update", bottleneck=4),
    "SFtanh": GateRule("input", bottleneck=4, tanh=True),
    "SXAcLN": GateRule("gamma", bottleneck=4, norm=True),
    "SDFXAcLN": GateRule("update", bottleneck=4, norm=True),
    "SOtanh": GateRule("gamma", bottleneck=2, scalar=True, tanh=True),
    "SDFOXAcLN": GateRule("update", bottleneck=2, scalar=True, norm=True),
}


class Gate(nn.Module):
    """Adds a gated update to its input. `gamma` is in every checkpoint, whether it is used or
    not.
    """

    def __init__(self, dim: int, gating: Gating, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))
        self.rule = GATE_RULES.get(gating)
        if self.rule is None:
            self.branches = MultiBranchFusion(dim)
        elif self.rule.bottleneck is not None:
            inner = dim // self.rule.bottleneck
            self.down = nn.Linear(dim, inner)
            self.norm = nn.LayerNorm(inner) if self.rule.norm else nn.Identity()
            self.up = nn.Linear(inner, 1 if self.rule.scalar else dim)

    def forward(self, base: Tensor, update: Tensor) -> Tensor:
        """`base`, `update` and the result: `[batch, sequence, dim]`."""
        if self.rule is None:
            return self.branches(base, update)
        gate = self._source(self.rule, base, update)
        if self.rule.bottleneck is not None:
            gate = self.up(self.norm(self.down(gate)).relu())
        if self.rule.tanh:
            gate = gate.tanh()
        return base + gate * update

    def _source(self, rule: GateRule, base: Tensor, update: Tensor) -> Tensor:
        match rule.source:
            case "gamma":
                return self.gamma
            case "first gamma":
                return self.gamma[0]
            case "update":
                return update
            case "input":
                return base
            case "one":
                return torch.ones_like(self.gamma)


class BidirectionalAttention(nn.Module):
    """Image tokens attend to labels, and labels to image tokens, through one score matrix
    (GLIP).
    """

    def __init__(
        self, vision_dim: int, label_dim: int, inner_dim: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.v_proj = nn.Linear(vision_dim, inner_dim)
        self.l_proj = nn.Linear(label_dim, inner_dim)
        self.values_v_proj = nn.Linear(vision_dim, inner_dim)
        self.values_l_proj = nn.Linear(label_dim, inner_dim)
        self.out_v_proj = nn.Linear(inner_dim, vision_dim)
        self.out_l_proj = nn.Linear(inner_dim, label_dim)
        for projection in self.children():
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self, vision: Tensor, positions: Tensor, labels: Tensor, absent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Updates of `vision` `[batch, tokens, dim]` and `labels` `[batch, labels, label_dim]`.

        Positions contribute to the scores, but not to the values. Nothing is masked except `absent`

        Args:
            labels: in the published networks, the masks of padding and labels have no effect here.
        """
        query = self._split(self.v_proj(vision + positions))
        key = self._split(self.l_proj(labels))
        vision_values = self._split(self.values_v_proj(vision))
        label_values = self._split(self.values_l_proj(labels))
        dropout = self.dropout if self.training else 0.0
        present = None if absent is None else ~absent[:, None, None]
        to_vision = F.scaled_dot_product_attention(query, key, label_values, present, dropout)
        to_labels = F.scaled_dot_product_attention(key, query, vision_values, dropout_p=dropout)
        return self.out_v_proj(self._join(to_vision)), self.out_l_proj(self._join(to_labels))

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _join(self, heads: Tensor) -> Tensor:
        return heads.transpose(1, 2).flatten(-2)


class VisionLanguageFusion(nn.Module):
    """One gated exchange between image tokens and labels; updates are added to the layer-normalised
    input.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        vision_dim = config.hidden_dim
        label_dim = config.text_config.hidden_size
        self.layer_norm_v = nn.LayerNorm(vision_dim)
        self.layer_norm_l = nn.LayerNorm(label_dim)
        self.attn = BidirectionalAttention(
            vision_dim, label_dim, config.fusion_dim, config.fusion_heads, config.fusion_dropout
        )
        self.vision_gate = Gate(vision_dim, config.gating, 1 / config.num_levels)
        self.label_gate = Gate(label_dim, config.gating, 1 / config.num_levels)

    def forward(
        self, vision: Tensor, positions: Tensor, labels: Tensor, absent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`vision` and `positions` `[batch, tokens, dim]`, `labels` `[batch, labels, label_dim]`.

        Args:
            absent: `[batch, labels]`, see `LabelFeatures`.
        """
        vision = self.layer_norm_v(vision)
        labels = self.layer_norm_l(labels)
        vision_update, label_update = self.attn(vision, positions, labels, absent)
        return self.vision_gate(vision, vision_update), self.label_gate(labels, label_update)


class LabelLayer(RobertaLayer):
    """A RoBERTa layer whose sequence consists of labels, not of the tokens of one text; it has no
    positions.
    """

    def __init__(self, config: RobertaConfig) -> None:
        config = copy.deepcopy(config)
        config._attn_implementation = "sdpa"
        super().__init__(config)
        initialise_by_xavier(self)

    def forward(self, labels: Tensor, masked: Tensor | None) -> Tensor:
        """`labels` `[batch, labels, dim]`; `masked` `[batch, labels]`, True for labels that are not
        attended to.
        """
        scores = None
        if masked is not None:
            scores = masked[:, None, None, :].to(labels.dtype) * MASKED_LABEL
        output = super().forward(labels, scores)
        return output[0] if isinstance(output, tuple) else output


class LabelResizer(nn.Module):
    """Projects labels from the width of the text encoder to the width of the queries."""

    def __init__(self, label_dim: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.fc = nn.Linear(label_dim, dim)
        self.layer_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, labels: Tensor) -> Tensor:
        """`[..., label_dim]` to `[..., dim]`."""
        return self.dropout(self.layer_norm(self.fc(labels)))
