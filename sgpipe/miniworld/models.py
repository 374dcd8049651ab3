"""Miniature models of the drawn world."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from rlip_model.tiny import make_tagger

UNTRAINED = "UNTRAINED"
EVERYDAY_PREDICATES = (
    "on", "in", "under", "next to", "behind", "in front of", "near", "with", "has", "over", "by", "of",
    "riding", "holding", "sitting on", "standing on", "walking", "flying", "kicking", "chasing", "looking at",
    "pushing", "carrying", "wearing", "eating", "playing with", "lying on", "jumping over", "leaning on", "no objects",
)  # fmt: skip
_SPREAD = 40.0


def untrained_tagger(folder: Path, words: Iterable[str]) -> None:
    """Save a miniature R-Tagger with random weights: it runs, and its confidences mean nothing.

    As initialised it would score everything 0.01; its logits are spread out, so that there is something to count.

    Args:
        words: texts whose words its tokenizer knows; all others are one unknown word to it.
    """
    tagger = make_tagger(folder, words)
    with torch.no_grad():
        tagger.scorer.projection.weight.mul_(_SPREAD)
    tagger.save_pretrained(folder)
