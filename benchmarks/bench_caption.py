"""Ten captions per picture: ours against transformers' `generate`, on the same random BLIP.

    python -m benchmarks.bench_caption [--shape small|base] [--pictures N] [--threads N]

The procedures run interleaved, picture by picture, in one process. Before that, greedy captions of both are
compared, token by token: a ratio between programs that answer differently means nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration

from sgpipe.stages.blip_decoder import BlipDecoder
from sgpipe.stages.blip_vision import fuse_vision_attention
from sgpipe.stages.decoding import NucleusSampling, sample_captions

SHAPES = {"small": {"width": 384, "layers": 6, "heads": 6}, "base": {"width": 768, "layers": 12, "heads": 12}}
VOCABULARY, START, END = 30524, 30522, 102
PROMPT = [START, 1037, 3861, 1997]
SAMPLES, TOP_P, LEAST, MOST = 10, 0.9, 5, 20


def random_blip(width: int, layers: int, heads: int) -> BlipForConditionalGeneration:
    """384 px, 30,524 words; scores are spread so that a nucleus has dozens of tokens, as a trained one."""
    common = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "initializer_range": 0.02,
    }
    text = {"vocab_size": VOCABULARY, "bos_token_id": START, "sep_token_id": END, "encoder_hidden_size": width}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=common | text, vision_config=common | {"image_size": 384, "patch_size": 16})
    )
    with torch.no_grad():
        model.text_decoder.bert.embeddings.word_embeddings.weight.mul_(8 * (768 / width) ** 0.5)
    return model.eval()


def ours(model: BlipForConditionalGeneration) -> Callable[[Tensor, float], list[list[int]]]:
    """A function from pixels [1, 3, 384, 384] and top_p to the tokens of the captions."""
    decoder = BlipDecoder(model)

    @torch.inference_mode()
    def caption(pixels: Tensor, top_p: float) -> list[list[int]]:
        states = model.vision_model(pixels).last_hidden_state
        sampling = NucleusSampling(SAMPLES, top_p, 1.0, LEAST, MOST, END)
        return sample_captions(decoder, states, PROMPT, [1], sampling)[0]

    return caption


def reference(model: BlipForConditionalGeneration, pixels: Tensor, copies: int, **choice: object) -> Tensor:
    return model.generate(
        pixels,
        input_ids=torch.tensor([[*PROMPT, END]]),
        min_length=LEAST,
        max_length=MOST,
        num_return_sequences=copies,
        **choice,
    )


def check_same_answers(caption: Callable, model: BlipForConditionalGeneration, pixels: Tensor) -> None:
    """Greedy captions are equal; raises AssertionError otherwise."""
    expected = reference(model, pixels, 1, do_sample=False)[0, len(PROMPT) :].tolist()
    expected = expected[: expected.index(END)] if END in expected else expected
    found = caption(pixels, 1e-9)
    if any(tokens != expected for tokens in found):
        raise AssertionError(f"greedy captions differ: {found[0]} and {expected}")


def measure(procedures: dict[str, Callable[[Tensor], object]], pictures: int) -> dict[str, float]:
    """Median seconds per picture of each procedure; the first picture warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in procedures}
    for number in range(pictures + 1):
        pixels = torch.randn(1, 3, 384, 384, generator=torch.manual_seed(number))
        for name, procedure in procedures.items():
            start = time.perf_counter()
            procedure(pixels)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plain, fused = random_blip(**SHAPES[options.shape]), random_blip(**SHAPES[options.shape])
    fuse_vision_attention(fused)
    caption = ours(fused)
    check_same_answers(caption, plain, torch.randn(1, 3, 384, 384, generator=torch.manual_seed(99)))
    nucleus = {"do_sample": True, "top_p": TOP_P, "top_k": 0}
    seconds = measure(
        {
            "sgpipe": lambda pixels: caption(pixels, TOP_P),
            "vision tower of it": lambda pixels: vision(fused, pixels),
            "generate(num_return_sequences=10)": lambda pixels: reference(plain, pixels, SAMPLES, **nucleus),
            "10 x generate()": lambda pixels: [reference(plain, pixels, 1, **nucleus) for _ in range(SAMPLES)],
        },
        options.pictures,
    )
    table = Table(title=f"{SAMPLES} captions of a 384 px picture, {options.shape} BLIP, {options.threads} threads")
    for heading in ("procedure", "s per picture", "ratio to sgpipe"):
        table.add_column(heading, justify="left" if heading == "procedure" else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}", f"{value / seconds['sgpipe']:.2f}")
    Console().print(table)


@torch.inference_mode()
def vision(model: BlipForConditionalGeneration, pixels: Tensor) -> Tensor:
    return model.vision_model(pixels).last_hidden_state


if __name__ == "__main__":
    main()
