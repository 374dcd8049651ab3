"""Random tiny vision-language checkpoints: `make_vlm(folder, "qwen2_5_vl")` writes one that
`--captioner` takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WIDTH = 32
VOCABULARY = 600
TEXTS = (
    "A man is riding a brown horse on the beach next to a small white dog.",
    "Two women are sitting on a bench under a tree, and a cat is sleeping behind them.",
    "The image shows a table with a cup of coffee in front of a laptop.",
    "A bus is parked near a building while people walk across the street.",
    "Write one short sentence about how the things in this image relate to each other.",
)

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in"
    " message['content'] %}{% if content['type'] == 'image'"
    " %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{%"
    " endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{%"
    " endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:{% for content in"
    " message['content'] %}{% if content['type'] == 'image' %}<image>{% else %} {{ content['text']"
    " }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt"
    " %}Assistant:{% endif %}"
)

# processor, configuration, settings of generation
_Parts = tuple[Any, Any, transformers.GenerationConfig]

_QWEN_SIZES = {
    "num_heads": 4,
    "hidden_size": WIDTH,
    "out_hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
}


def make_vlm(folder: Path, family: str) -> Path:
    """A random checkpoint of a family of `FAMILIES` as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    processor, config, generation = FAMILIES[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        _spread(model)
        _prefer_words(model, processor.tokenizer)
    model.generation_config = generation
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_tokenizer(special: Sequence[str], **names: object) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `TEXTS`; `names`: such as `eos_token`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": list(special), "initial_alphabet": letters, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, **options)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _spread(model: transformers.PreTrainedModel) -> None:
    """Larger random weights everywhere than a model starts training with: images then make a
    difference.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.normal_(std=0.7 * weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
            if name.endswith(("language_projection.weight", "image_proj_norm.weight")):
                # otherwise the few image tokens of BLIP-2 and Florence-2 hardly matter
                weight *= 30
            elif "encoder_attn" in name:
                weight *= 4


def _prefer_words(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    """Scores of whole words, and of the end, vary more than others: captions then consist of
    words.
    """
    known = set(re.findall(r"\w+", " ".join(TEXTS)))
    words = [
        token for token in tokenizer.get_vocab() if token.startswith("Ġ") and token[1:] in known
    ]
    likely = [*tokenizer.convert_tokens_to_ids(words), tokenizer.eos_token_id]
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.normal_(std=0.2 * WIDTH**-0.5)
        weight[likely] *= 8


def _text_sizes(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, Any]:
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return {
        "vocab_size": len(tokenizer),
        **sizes,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        **ids,
    }


def _generation(
    tokenizer: transformers.PreTrainedTokenizerFast, **more: object
) -> transformers.GenerationConfig:
    """As checkpoints on the hub have it: with settings of sampling that a recipe replaces."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return transformers.GenerationConfig(**ends, **more)


def _qwen_tokenizer() -> transformers.PreTrainedTokenizerFast:
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
    ]
    return make_tokenizer(
        [*special, "<|video_pad|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
        },
    )  # fmt: skip


def _qwen_ids(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token": "image_pad", "video_token": "video_pad"}
    names |= {f"vision_{side}_token": f"vision_{side}" for side in ("start", "end")}
    return {
        f"{key}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for key, token in names.items()
    }


def _qwen3_vl() -> _Parts:
    tokenizer = _qwen_tokenizer()
    pixels = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}
    images = transformers.Qwen2VLImageProcessor(size=pixels, patch_size=16)
    videos = transformers.Qwen3VLVideoProcessor()
    processor = transformers.Qwen3VLProcessor(
        images, tokenizer, videos, chat_template=QWEN_TEMPLATE
    )
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = transformers.AutoConfig.for_model(
        "qwen3_vl",
        text_config={**_text_sizes(tokenizer), "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            **_QWEN_SIZES,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(tokenizer),
    )
    return (
        processor,
        config,
        _generation(tokenizer, do_sample=True, temperature=0.7, top_p=0.8, top_k=20),
    )


def _blip2() -> _Parts:
    tokenizer = make_tokenizer(
        ["<pad>", "</s>", "<image>"], bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(images, tokenizer, num_query_tokens=4)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    text = {"model_type": "opt", "ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}
    config = transformers.AutoConfig.for_model(
        "blip-2",
        vision_config={**sizes, "intermediate_size": 2 * WIDTH, "image_size": 32, "patch_size": 8},
        qformer_config={**sizes, "intermediate_size": 2 * WIDTH, "vocab_size": 8, "encoder_hidden_size": WIDTH},
        text_config={**text, **sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 256},
        num_query_tokens=4, image_text_hidden_size=WIDTH, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return processor, config, _generation(tokenizer)


def _qwen2_5_vl() -> _Parts:
    tokenizer = _qwen_tokenizer()
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    images = transformers.Qwen2VLImageProcessor(size=pixels)
    videos = transformers.Qwen2VLVideoProcessor(size=pixels)
    processor = transformers.Qwen2_5_VLProcessor(
        images, tokenizer, videos, chat_template=QWEN_TEMPLATE
    )
    text = {
        **_text_sizes(tokenizer),
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 2,
        "patch_size": 14,
        **_QWEN_SIZES,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    parts = {"text_config": text, "vision_config": vision, **_qwen_ids(tokenizer)}
    config = transformers.AutoConfig.for_model("qwen2_5_vl", **parts)
    return (
        processor,
        config,
        _generation(tokenizer, do_sample=True, temperature=0.1, top_p=0.001, top_k=1),
    )


def _smolvlm() -> _Parts:
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<end_of_utterance>",
        "<image>",
        "<fake_token_around_image>",
    ]
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer = make_tokenizer(
        [*special, "<global-img>", "<video>", *grid],
        bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
        },
    )  # fmt: skip
    sides: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    images = transformers.SmolVLMImageProcessor(**sides)
    videos = transformers.SmolVLMVideoProcessor(**sides)
    shape: dict[str, Any] = {"image_seq_len": 4, "chat_template": IDEFICS_TEMPLATE}
    processor = transformers.SmolVLMProcessor(images, tokenizer, videos, **shape)
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.AutoConfig.for_model(
        "smolvlm", scale_factor=2, vision_config=vision | {"image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **_text_sizes(tokenizer)}, pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return processor, config, _generation(tokenizer, bos_token_id=tokenizer.bos_token_id)


def _florence2() -> _Parts:
    tokenizer = make_tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>", "<loc_0>"],
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    images = transformers.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 2  # one token for the whole image, and one for each of 1 x 1 patches
    processor = transformers.Florence2Processor(images, tokenizer)
    config = transformers.AutoConfig.for_model(
        "florence2",
        text_config={
            "model_type": "bart", "d_model": WIDTH, "max_position_embeddings": 256, "vocab_size": len(tokenizer),
            "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * WIDTH,
            "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 2 * WIDTH,
        },
        vision_config={
            "embed_dim": [8, 16, 32, 32], "depths": [1, 1, 1, 1], "window_size": 2, "projection_dim": WIDTH,
            "num_heads": [1, 2, 4, 4], "num_groups": [1, 2, 4, 4],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    starts = {"forced_bos_token_id": 0, "decoder_start_token_id": 2, "bos_token_id": 0}
    return processor, config, _generation(tokenizer, num_beams=3, no_repeat_ngram_size=3, **starts)


FAMILIES: dict[str, Callable[[], _Parts]] = {
    "blip-2": _blip2, "florence2": _florence2, "smolvlm": _smolvlm, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl,
}  # fmt: skip
