"""Small stand-ins for downloaded checkpoints, made from a seed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
)

from rlip_model.config import RTaggerConfig
from rlip_model.model import RTagger
from rlip_model.presets import tiny_sizes
from rlip_model.text import build_tokenizer
from sgpipe.calibration import Calibration

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """
    a an the picture of two man woman person dog cat horse bus car chair table cup bench street grass
    on in under near behind holding riding sitting standing wearing with next to and is large small
    red blue white ##s ##ing ##ed . ,
"""


def make_calibration(file: Path, tagger: dict[str, Any], offset: float = 0.0) -> Path:
    """A calibration; by it, thresholds of 0, 0.5 and 0.9 keep 60, 80 and 95% right, surely."""
    levels = ((0.9, 0.95, 1.0), (0.5, 0.8, 1.0), (0.0, 0.6, 1.0))
    Calibration(
        run="made", tagger=tagger, judged_by="people", images=50, judged=50, correct=25, slope=1.0, offset=offset,
        lowest=0.0, levels=levels,
    ).save(file)  # fmt: skip
    return file


def make_tokenizer(
    folder: Path, words: str = WORDS, *, blip_tokens: bool = True
) -> BertTokenizerFast:
    """A WordPiece tokenizer of BERT's kind with BLIP's further tokens [DEC] and [ENC], saved in
    `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *words.split()]) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    if blip_tokens:
        tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_blip(
    folder: Path,
    *,
    seed: int = 0,
    width: int = 32,
    vision_width: int = 48,
    layers: int = 2,
    heads: int = 4,
    image_size: int = 32,
    patch_size: int = 8,
    words: str = WORDS,
) -> Path:
    """A random BLIP captioner, as a folder that `--captioner` takes, whose captions vary with the
    image.
    """
    tokenizer = make_tokenizer(folder, words)
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads}
    text = {"vocab_size": len(tokenizer), "hidden_size": width, "encoder_hidden_size": vision_width}
    text |= {
        "intermediate_size": 2 * width,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text |= {"sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id}
    text |= {"bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]")}
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 2 * vision_width,
        "image_size": image_size,
    }
    config = BlipConfig(
        text_config=text | sizes, vision_config=vision | sizes | {"patch_size": patch_size}
    )
    model = BlipForConditionalGeneration(config)
    # larger weights than a model starts training with: images then make a difference
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "word_embeddings" not in name:
                weight.normal_(std=0.7 * weight[0].numel() ** -0.5)
            elif name.endswith("bias") and "predictions" not in name:
                weight.normal_(std=0.1)
        embeddings = model.text_decoder.bert.embeddings.word_embeddings.weight
        embeddings.normal_(std=6 * embeddings.shape[1] ** -0.5 / 3)
    model.save_pretrained(folder)
    BlipImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return folder


def tiny_config(vocabulary: int) -> RTaggerConfig:
    """The configuration of a tiny R-Tagger; see `tiny_sizes`."""
    return RTaggerConfig(**{**tiny_sizes(vocabulary), "num_queries": 40})


def make_tagger(folder: Path, texts: Iterable[str], seed: int = 0) -> RTagger:
    """Save an untrained R-Tagger that knows the words of `texts`, and return it in evaluation
    mode.
    """
    tokenizer = build_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = RTagger(tiny_config(len(tokenizer))).eval()
    tagger.set_tokenizer(tokenizer)
    tagger.save_pretrained(folder)
    return tagger


def untrained_tagger(folder: Path, words: Iterable[str]) -> None:
    """Save a miniature R-Tagger with random weights, with spread logits, so that there is something
    to count.
    """
    tagger = make_tagger(folder, words)
    with torch.no_grad():
        tagger.scorer.projection.weight.mul_(40.0)
    tagger.save_pretrained(folder)
