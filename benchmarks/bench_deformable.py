"""Deformable attention on a CPU: sgpipe's sampling against one `grid_sample` per level, as the
reference does it.

    python -m benchmarks.bench_deformable [--rounds N] [--threads N]

At the shape of an image of 800x1066: 17,821 tokens on 4 levels, 8 heads of 32, 4 points. Both
methods alternate in one process, after their outputs and the gradients of all three arguments have
been compared with those of grid_sample in double precision. Times are medians of the CPU time of
all threads, which other work on the machine affects less than wall time. The limit is the time of
the weighted sums alone, with rows and weights given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from benchmarks.measure import copy_rate, matrix_rate, medians, operations, report
from benchmarks.reference import as_the_reference
from rlip_model.attention import sample, sample_by_grid
from rlip_model.config import RLIPConfig
from rlip_model.encoder import EncoderLayer, pixel_centres

SHAPES = ((100, 134), (50, 67), (25, 34), (13, 17))
TOKENS = sum(height * width for height, width in SHAPES)
HEADS = 8
WIDTH = 32
POINTS = 4
SPREAD = 3.0
LARGEST = 1e-5
Way = Callable[..., Tensor]
Case = tuple[Tensor, Tensor, Tensor]


def encoder_case() -> Case:
    """Every token looks around its own place, a few pixels wide."""
    return _around(pixel_centres(SHAPES, torch.ones(1, len(SHAPES), 2)))


def decoder_case(queries: int = 200) -> Case:
    return _around(torch.rand(1, queries, 1, 2))


def _around(centres: Tensor) -> Case:
    """Values, places a few pixels from `centres` `[1, queries, levels or 1, 2]`, and weights."""
    queries = centres.shape[1]
    levels = len(SHAPES)
    sizes = torch.tensor([(width, height) for height, width in SHAPES])
    pixels = (centres * sizes - 0.5).transpose(2, 3)[:, :, :, None, :, None]
    places = pixels + SPREAD * torch.randn(1, queries, 2, HEADS, levels, POINTS)
    weights = (
        torch.randn(1, queries, HEADS, levels * POINTS).softmax(-1).unflatten(-1, (levels, POINTS))
    )
    return torch.randn(1, TOKENS, HEADS, WIDTH), places, weights


def with_gradients(way: Way, case: Case) -> tuple[Tensor, ...]:
    """What is sampled, and the gradients of values, places and weights."""
    inputs = [tensor.detach().requires_grad_() for tensor in case]
    sampled = way(inputs[0], SHAPES, *inputs[1:])
    return sampled.detach(), *torch.autograd.grad(sampled, inputs, torch.ones_like(sampled))


def check_equal(case: Case) -> str:
    """The largest difference of what is sampled, and of gradients in relation to their norm, from
    double precision.

    The gradient of a place jumps at the middle of a pixel, where rounding decides: there it is not
    compared.

    Raises:
        AssertionError: one is above 1e-5.
    """
    values, places, weights = (tensor.double() for tensor in case)
    expected = with_gradients(sample_by_grid, (values, places, weights))
    results = with_gradients(sample, case)
    of_grid = sample_by_grid(case[0], SHAPES, *case[1:])
    largest, theirs = (
        float((answer - expected[0]).abs().max()) for answer in (results[0], of_grid)
    )
    inside = [torch.ones(()), _between_middles(case[1]), torch.ones(())]
    pairs = zip(results[1:], expected[1:], inside, strict=True)
    relative = [float(((a - b) * counted).norm() / b.norm()) for a, b, counted in pairs]
    if max(largest, *relative) > LARGEST:
        raise AssertionError(f"answers differ: {largest}, gradients: {relative}")
    gradients = ", ".join(f"{difference:.0e}" for difference in relative)
    return f"{largest:.0e} (of grid_sample in float32: {theirs:.0e}); gradients {gradients}"


def _between_middles(places: Tensor) -> Tensor:
    return (places - places.round()).abs() > 1e-3


def whole_layer(way: Way) -> Callable[[], Tensor]:
    """An encoder layer at paper size that samples in this way, of all tokens at once if it is the
    reference's.
    """
    torch.manual_seed(0)
    config = RLIPConfig(num_heads=HEADS, hidden_dim=HEADS * WIDTH, num_points=POINTS)
    layer = EncoderLayer(config).eval()
    torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.05)
    tokens = torch.randn(1, TOKENS, HEADS * WIDTH)
    positions = torch.randn(1, TOKENS, HEADS * WIDTH)
    references = pixel_centres(SHAPES, torch.ones(1, len(SHAPES), 2))
    padding = torch.zeros(1, TOKENS, dtype=torch.bool)

    @torch.no_grad()
    def run() -> Tensor:
        with as_the_reference() if way is sample_by_grid else nullcontext():
            return layer(tokens, positions, references, padding, SHAPES)

    return run


def summing_alone(case: Case) -> Callable[[], object]:
    """As many weighted rows summed up, from places as far apart, without computing which."""
    value, _, weights = case
    table = value.flatten(0, 2)
    chunk = 256
    corners = 4 * weights.shape[3:].numel()
    near = torch.randint(0, 2000, (chunk * HEADS, corners), dtype=torch.int32)
    share = torch.rand(near.shape)
    starts = torch.linspace(0, len(table) - 2001, weights.shape[1] // chunk + 1).int()

    def run() -> None:
        for start in starts:
            F.embedding_bag(near, table[int(start) :], per_sample_weights=share, mode="sum")

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = encoder_case()
    decoder = decoder_case()
    table = Table(
        "what",
        "grid_sample, ms",
        "sgpipe, ms",
        "ratio",
        title=f"CPU time, threads: {options.threads}",
    )
    differences = {"encoder": check_equal(encoder), "decoder, 200 queries": check_equal(decoder)}

    def measure(label: str, run: Callable[[Way], Callable[[], object]]) -> float:
        times = medians({"grid": run(sample_by_grid), "bags": run(sample)}, options.rounds)
        figures = (
            f"{times['grid'] * 1e3:,.1f}",
            f"{times['bags'] * 1e3:,.1f}",
            f"{times['grid'] / times['bags']:.1f}",
        )
        table.add_row(label, *figures)
        return times["bags"]

    forward = 0.0
    for name, case in (("encoder", encoder), ("decoder, 200 queries", decoder)):
        taken = measure(
            f"{name}, forward", lambda way, case=case: lambda: way(case[0], SHAPES, *case[1:])
        )
        forward = forward or taken
        measure(
            f"{name}, forward + backward", lambda way, case=case: lambda: with_gradients(way, case)
        )
    torch.testing.assert_close(
        whole_layer(sample)(), whole_layer(sample_by_grid)(), rtol=0, atol=1e-4
    )
    layer = measure("whole encoder layer, forward", whole_layer)
    alone = medians({"limit": summing_alone(encoder)}, options.rounds)["limit"]
    moved = sum(tensor.numel() * tensor.element_size() for tensor in encoder) / copy_rate()
    products = operations(whole_layer(sample)) / matrix_rate()
    report(
        __doc__,
        table,
        *(
            f"Largest difference from double precision, {name}: {difference}."
            for name, difference in differences.items()
        ),
        f"Summing the weighted rows of the encoder alone, from the cache, takes {alone * 1e3:.0f}"
        f" ms, {alone / forward:.0%} of the forward pass; reading its arguments once, at the rate"
        f" of copying memory, {moved * 1e3:.0f} ms. The rest: rows are gathered from a table of"
        f" {encoder[0].nbytes / 1e6:.0f} MB, after their indices and weights have been computed. Of"
        " the backward pass, about a third is gathering rows and multiplying them by gradients, a"
        " fifth is summing bags, and less than a tenth is sorting.",
        f"The matrix products of the whole layer would take {products * 1e3:.0f} ms at the rate of"
        f" large square ones, {products / layer:.0%} of it; sampling is most of the rest.",
        "For the decoder's 200 queries the gain is smaller: most of the table's gradient stays"
        " zero, and writing these zeros takes much of the time with both methods.",
    )


if __name__ == "__main__":
    main()
