"""Ten captions per image: sgpipe and transformers' `generate`, on the same random BLIP.

    python -m benchmarks.bench_caption [--shape small base] [--rounds N] [--threads N]

A random BLIP with 384 px images and 30,524 words, sampled as published: repetition penalty 1.1,
top_k 50, nucleus 0.9, captions of 20 tokens including [DEC] and the prompt. The procedures
alternate in one process on the same image. Figures are medians of CPU time after a warm-up round.
Greedy captions of both are first compared token by token, since a ratio is meaningful only for
equal results.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration

from benchmarks.measure import matrix_rate, medians, operations, report
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.blip import fuse_vision_attention
from sgpipe.stages.caption.blip_decoder import BlipDecoder, sample_captions
from sgpipe.stages.caption.captioner import PROMPT as PROMPT_TEXT

SHAPES = {
    "small": {"width": 384, "layers": 6, "heads": 6},
    "base": {"width": 768, "layers": 12, "heads": 12},
    "large": {"width": 768, "layers": 12, "heads": 12, "vision": (1024, 24, 16)},
}
VOCABULARY = 30524
START = 30522
END = 102
PROMPT = [START, 1037, 3861, 1997]
LIMITED = ("sgpipe", "of which vision tower")
SAMPLES = 10
LEAST = 5
MOST = 20
PUBLISHED = {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}
PLAIN = {"top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0}
GREEDY = PUBLISHED | {"top_k": 1}


def random_blip(
    width: int, layers: int, heads: int, vision: tuple[int, int, int] | None = None
) -> BlipForConditionalGeneration:
    """384 px, 30,524 words; scores are scaled so that a nucleus has dozens of tokens, as in a
    trained model.

    Args:
        vision: width, layers and heads of the vision tower; None: those of the decoder.
    """
    vision = vision or (width, layers, heads)
    text = {
        "vocab_size": VOCABULARY,
        "bos_token_id": START,
        "sep_token_id": END,
        "encoder_hidden_size": vision[0],
    }
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config=_transformer(width, layers, heads) | text,
            vision_config=_transformer(*vision) | {"image_size": 384, "patch_size": 16},
        )
    )
    with torch.no_grad():
        model.text_decoder.bert.embeddings.word_embeddings.weight.mul_(8 * (768 / width) ** 0.5)
    return model.eval()


def save_random_blip(folder: Path, shape: str = "base") -> str:
    """A folder with a random BLIP whose words mean nothing. Returns its path."""
    random_blip(**SHAPES[shape]).save_pretrained(folder)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PROMPT_TEXT.split()]
    words = [*known, *(f"w{number}" for number in range(START - len(known)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    tokenizer.save_pretrained(folder)
    return str(folder)


def _transformer(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "initializer_range": 0.02,
    }


def ours(
    model: BlipForConditionalGeneration,
) -> Callable[[Tensor, dict[str, Any]], list[list[int]]]:
    """A function from pixels [1, 3, 384, 384] and the settings of the sampling to caption
    tokens.
    """
    decoder = BlipDecoder(model)

    @torch.inference_mode()
    def caption(pixels: Tensor, settings: dict[str, Any]) -> list[list[int]]:
        states = model.vision_model(pixels).last_hidden_state
        sampling = CaptionConfig(samples=SAMPLES, min_tokens=LEAST, max_tokens=MOST, **settings)
        return sample_captions(decoder, states, PROMPT, [1], sampling)[0]

    return caption


def reference(
    model: BlipForConditionalGeneration, pixels: Tensor, copies: int, **choice: object
) -> Tensor:
    return model.generate(
        pixels,
        input_ids=torch.tensor([[*PROMPT, END]]),
        min_length=LEAST,
        max_length=MOST,
        num_return_sequences=copies,
        **choice,
    )


def check_same_answers(
    caption: Callable, model: BlipForConditionalGeneration, pixels: Tensor
) -> None:
    """Compare greedy captions. Raises AssertionError: they differ."""
    expected = reference(
        model, pixels, 1, do_sample=False, repetition_penalty=PUBLISHED["repetition_penalty"]
    )[0, len(PROMPT) :].tolist()
    expected = expected[: expected.index(END)] if END in expected else expected
    captions = caption(pixels, GREEDY)
    if any(tokens != expected for tokens in captions):
        raise AssertionError(f"greedy captions differ: {captions[0]} and {expected}")


def compare(shape: str, rounds: int) -> Table:
    """Times of all procedures on models of one shape. Raises AssertionError: their captions
    differ.
    """
    plain = random_blip(**SHAPES[shape])
    fused = random_blip(**SHAPES[shape])
    fuse_vision_attention(fused)
    caption = ours(fused)
    check_same_answers(caption, plain, torch.randn(1, 3, 384, 384, generator=torch.manual_seed(99)))
    sampled = {"do_sample": True, **PUBLISHED}
    pixels = torch.randn(1, 3, 384, 384)
    ways: dict[str, Callable[[], object]] = {
        "sgpipe": lambda: caption(pixels, PUBLISHED),
        "sgpipe without penalty and top_k": lambda: caption(pixels, PLAIN),
        "of which vision tower": lambda: vision(fused, pixels),
        "generate(num_return_sequences=10)": lambda: reference(plain, pixels, SAMPLES, **sampled),
        "10 x generate()": lambda: [reference(plain, pixels, 1, **sampled) for _ in range(SAMPLES)],
    }
    seconds = medians(ways, rounds)
    rate = matrix_rate()
    title = f"{SAMPLES} captions of a 384 px image, {shape} BLIP"
    table = Table("procedure", "CPU s per image", "ratio to sgpipe", "share of peak", title=title)
    for name, value in seconds.items():
        limit = f"{operations(ways[name]) / rate / value:.0%}" if name in LIMITED else ""
        table.add_row(name, f"{value:.3f}", f"{value / seconds['sgpipe']:.2f}", limit)
    return table


def decoding_rate() -> float:
    """640x480 JPEGs decoded and resized for the captioner per CPU second."""
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (640, 480)
    )
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=90)

    def decode() -> None:
        image = Image.open(buffer)
        image.draft("RGB", (384, 384))
        image.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)

    return 1 / medians({"decode": decode}, 20)["decode"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), nargs="*", default=["small", "base"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report(
        __doc__,
        *(compare(shape, options.rounds) for shape in options.shape),
        "Share of peak: the time that the matrix products would take at the rate of large square"
        " ones, as a share of the measured time. The rest: each token multiplies ten rows by all"
        " weights, which must be read from memory; attention, the noise and the nuclei of ten"
        " samples add to that.",
        f"Reading images is not a bottleneck: {decoding_rate():.0f} JPEGs of 640x480 are decoded"
        " and resized per CPU second.",
    )


@torch.inference_mode()
def vision(model: BlipForConditionalGeneration, pixels: Tensor) -> Tensor:
    return model.vision_model(pixels).last_hidden_state


if __name__ == "__main__":
    main()
