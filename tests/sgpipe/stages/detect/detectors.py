"""Small random detectors of transformers, as folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

SIZE = 32
_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_SWIN = {
    "model_type": "swin", "image_size": SIZE, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
    "window_size": 2, "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip


def make_closed(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {**_SMALL, "image_size": [SIZE, SIZE], "patch_size": 8, "num_detection_tokens": 20}
    config = transformers.YolosConfig(**sizes, id2label={0: "cat", 1: "dog", 2: "cup"})
    model = transformers.YolosForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.layers[-1].weight.normal_(std=3)  # so that queries differ
    model.save_pretrained(folder)
    transformers.YolosImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def _make_letters(length: int) -> tuple[transformers.CLIPTokenizerFast, dict[str, object]]:
    """A tokenizer of letters that reads `length` tokens, and the settings of CLIP's text encoder
    for it.
    """
    letters = list(map(chr, range(33, 127)))
    # A text that begins with token 0 is padding to OWL-ViT.
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    options = {"merges": [], "pad_token": "<|endoftext|>", "model_max_length": length}
    tokenizer = transformers.CLIPTokenizerFast(vocab=vocabulary, **options)
    size = len(vocabulary)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return tokenizer, {**_SMALL, "vocab_size": size, "max_position_embeddings": length, **ids}


def make_owl(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer, text = _make_letters(16)
    vision = _SMALL | {"image_size": SIZE, "patch_size": 8}
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    images = transformers.Owlv2ImageProcessor(size={"height": SIZE, "width": SIZE})
    transformers.Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def make_omdet(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer, text = _make_letters(77)
    text |= {"hidden_size": 32, "model_type": "clip_text_model"}
    config = transformers.OmDetTurboConfig(
        backbone_config=_SWIN, text_config=text, apply_layernorm_after_vision_backbone=False, image_size=128,
        text_projection_in_dim=32, text_projection_out_dim=32, task_encoder_hidden_dim=16, class_embed_dim=32,
        num_queries=20, vision_features_channels=[16, 16, 16], encoder_in_channels=[16, 32, 64],
        encoder_hidden_dim=16, encoder_attention_heads=2, encoder_dim_feedforward=16,
        decoder_hidden_dim=16, decoder_num_heads=2, decoder_num_layers=1, decoder_dim_feedforward=16,
    )  # fmt: skip
    transformers.OmDetTurboForObjectDetection(config).save_pretrained(folder)
    images = transformers.DetrImageProcessor(size={"height": 128, "width": 128})
    transformers.OmDetTurboProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def _make_phrase_tokenizer(folder: Path) -> transformers.BertTokenizerFast:
    """A tokenizer with BERT's ids of "[CLS]", "[SEP]", "." and "?", which are where Grounding DINO
    ends a phrase.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [f"[unused{number}]" for number in range(1030)]
    tokens[0], tokens[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens[1012], tokens[1029] = ".", "?"
    tokens += [
        "dog",
        "cup",
        "dining",
        "table",
        "-",
        "t",
        "shirt",
        *(f"thing{number}" for number in range(1000)),
    ]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_grounding_dino(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _make_phrase_tokenizer(folder)
    text = _SMALL | {
        "model_type": "bert",
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 300,
    }
    config = transformers.GroundingDinoConfig(
        backbone_config=_SWIN, text_config=text, d_model=32, num_queries=20,
        encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"height": 128, "width": 128})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def make_sam3(folder: Path) -> Path:
    """SAM 3 as it is published: the detector within the settings and weights of the video model."""
    torch.manual_seed(0)
    tokenizer, text = _make_letters(32)
    small = {"hidden_size": 32, "num_attention_heads": 2}
    part = small | {"num_layers": 1, "intermediate_size": 16}
    backbone = small | {
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    backbone |= {
        "image_size": 56,
        "pretrain_image_size": 56,
        "window_size": 2,
        "global_attn_indexes": [0],
    }
    config = transformers.Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 32},
        text_config=text | {"model_type": "clip_text_model", "projection_dim": 16}, geometry_encoder_config=part,
        detr_encoder_config=part, detr_decoder_config=part | {"num_queries": 20}, mask_decoder_config=small,
    )  # fmt: skip
    model = transformers.Sam3Model(config)
    with torch.no_grad():
        model.detr_decoder.query_embed.weight.normal_(std=3)  # so that queries differ
    model.save_pretrained(folder)
    weights = {
        f"detector_model.{name}": value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    video = {
        "model_type": "sam3_video",
        "detector_config": json.loads((folder / "config.json").read_text()),
    }
    (folder / "config.json").write_text(json.dumps(video))
    images = transformers.Sam3ImageProcessor(size={"height": 56, "width": 56})
    transformers.Sam3Processor(images, tokenizer).save_pretrained(folder)
    return folder
