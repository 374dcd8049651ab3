"""Small random detectors of transformers, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizerFast,
    CLIPTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from tests.factories import make_tokenizer

SIZE = 32


def make_closed(folder: Path, names: tuple[str, ...] = ("N/A", "dog", "cup")) -> Path:
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[SIZE, SIZE],
        patch_size=8,
        num_detection_tokens=20,
        id2label=dict(enumerate(names)),
    )
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.layers[-1].weight.normal_(std=3)  # so that queries differ
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def make_owl(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    # A text that begins with token 0 is padding to these detectors.
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
    }
    Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=16)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer).save_pretrained(folder)
    return folder


def make_grounding_dino(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer: BertTokenizerFast = make_tokenizer(folder, blip_tokens=False)
    text = {
        "model_type": "bert",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 300,
    }
    backbone = {
        "model_type": "swin",
        "image_size": SIZE,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_features": ["stage2", "stage3", "stage4"],
    }
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=20,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image = GroundingDinoImageProcessor(size={"height": 128, "width": 128})
    GroundingDinoProcessor(image, tokenizer).save_pretrained(folder)
    return folder
