"""Miniature networks, for trying out the pipeline, for laptops and for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import RobertaConfig

from rlip_model.config import RTaggerConfig
from rlip_model.model import RTagger
from rlip_model.text import build_tokenizer


def tiny_config(vocabulary: int, num_queries: int = 40) -> RTaggerConfig:
    """The configuration of a miniature R-Tagger; see `tiny_sizes`."""
    return RTaggerConfig(**{**tiny_sizes(vocabulary), "num_queries": num_queries})


def tiny_sizes(vocabulary: int) -> dict[str, Any]:
    """Settings of a network with all parts of the full one, narrow and shallow: about a million parameters.

    Args:
        vocabulary: number of tokens.
    """
    text = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,  # of so few features, dropout would hide what tells labels apart
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,  # RoBERTa's own 0.02 is for larger widths: here all texts would start out alike
    )
    return {
        "swin_embed_dim": 12,
        "swin_depths": (2, 2, 2, 2),
        "hidden_dim": 64,
        "feedforward_dim": 128,
        "num_queries": 40,
        "fusion_dim": 64,
        "fusion_dropout": 0.0,
        "text_config": text,
    }


def make_tagger(folder: Path, texts: Iterable[str], seed: int = 0, num_queries: int = 40) -> RTagger:
    """Save an untrained R-Tagger that knows the words of `texts`, and return it in evaluation mode.

    Its scores mean nothing. They follow from the seed alone, and torch's own random numbers are left alone.
    """
    tokenizer = build_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = RTagger(tiny_config(len(tokenizer), num_queries)).eval()
    tagger.set_tokenizer(tokenizer)
    tagger.save_pretrained(folder)
    return tagger
