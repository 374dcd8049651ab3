"""Miniature models of the drawn world."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import RobertaConfig

from rlip_model.config import RTaggerConfig
from rlip_model.model import RTagger
from rlip_model.text import build_tokenizer


def untrained_tagger(folder: Path, words: Iterable[str], seed: int = 0) -> None:
    """Save an R-Tagger of 1 M parameters with random weights: it runs, and its confidences mean nothing.

    Args:
        words: texts whose words its tokenizer knows; all others are one unknown word to it.
    """
    tokenizer = build_tokenizer(words)
    text = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=34,
        type_vocab_size=1,
    )
    config = RTaggerConfig(
        swin_embed_dim=24,
        swin_depths=(1, 1, 2, 1),
        swin_heads=(1, 2, 4, 8),
        drop_path=0.0,
        hidden_dim=64,
        feedforward_dim=128,
        num_queries=40,
        fusion_dim=64,
        text_config=text,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = RTagger(config)
    tagger.set_tokenizer(tokenizer)
    tagger.save_pretrained(folder)
