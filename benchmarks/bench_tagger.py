"""The R-Tagger at paper size on one image: sgpipe and the reference's procedure, with the same
weights.

    python -m benchmarks.bench_tagger [--rounds N] [--threads N] [--groups N ...]

An 800x1066 image, 600 label texts of 3 to 8 tokens, groups of 100 pairs. The reference runs the
complete network once per group, and encodes all texts for every image, padded to the longest.
sgpipe encodes the image once for all groups, and caches label texts. Scores are compared. The
procedures alternate; times are medians of CPU time, of a single round from 4 groups on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measure import matrix_rate, medians, operations, report
from benchmarks.reference import PaddedTextEncoder, score_groups
from rlip_model.attention import DeformableAttention
from rlip_model.model import RTagger
from rlip_model.presets import preset
from rlip_model.queries import GivenPairs
from rlip_model.text import NO_OBJECTS, LabelCache, build_tokenizer
from sgpipe.sources.vocabulary import category_names, relation_names

TEXTS = 600
PAIRS = 100
LARGEST = 1e-5
NAMES = (
    *relation_names("hico").values(),
    *category_names("objects365").values(),
    *relation_names("vcoco").values(),
)
WORDS = sorted({word for name in NAMES for word in name.split()})
# a word is a token; each text has two more
SHARES_OF_WORDS = {
    1: 0.3,
    2: 0.4,
    3: 0.2,
    4: 0.06,
    5: 0.03,
    6: 0.01,
}
REMARK_ON_PEAK = (
    "Share of peak: the time that the matrix products and convolutions of a part would take at the"
    " rate of large square products, as a share of the measured time. The rest: convolutions with"
    " few channels, products of width 256, and memory-bound operations: deformable sampling"
    " (bench_deformable), norms and activations."
)
OBJECTS = [*category_names("coco").values(), NO_OBJECTS]


@dataclass(frozen=True)
class Case:
    """An image and the predicates to score."""

    tagger: RTagger
    padded: PaddedTextEncoder
    pixels: Tensor
    predicates: list[str]

    @torch.no_grad()
    def ours(self, groups: list[GivenPairs]) -> Tensor:
        image = self.tagger.encode_image(self.pixels)
        memory = self.tagger.fuse(image, self.tagger.encode_labels(OBJECTS, self.predicates))
        return self.tagger.score_pairs(memory, groups)

    def reference(self, groups: list[GivenPairs]) -> Tensor:
        return score_groups(self.tagger, self.padded, self.pixels, OBJECTS, self.predicates, groups)


def make_predicates(count: int) -> list[str]:
    """Distinct texts with as many words as relations of Visual Genome."""
    choose = random.Random(0)
    predicates = dict[str, None]()
    lengths = list(SHARES_OF_WORDS)
    shares = list(SHARES_OF_WORDS.values())
    predicates[" ".join(WORDS[: max(lengths)])] = None
    while len(predicates) < count:
        predicates[" ".join(choose.sample(WORDS, choose.choices(lengths, shares)[0]))] = None
    return list(predicates)


def make_case() -> Case:
    """Random weights; the sampling points of deformable attention are spread over some pixels, as
    after training.
    """
    torch.manual_seed(0)
    predicates = make_predicates(TEXTS - len(OBJECTS))
    tagger = RTagger(preset("tagger", "resnet50")).eval()
    tagger.set_tokenizer(build_tokenizer([*OBJECTS, *predicates]))
    for module in tagger.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
    return Case(tagger, PaddedTextEncoder(tagger), torch.randn(1, 3, 800, 1066), predicates)


def make_groups(count: int) -> list[GivenPairs]:
    def group() -> GivenPairs:
        boxes = torch.rand(2, PAIRS, 4) * 0.3 + 0.2
        labels = torch.randint(0, len(OBJECTS) - 1, (2, PAIRS))
        return GivenPairs(boxes[0], boxes[1], labels[0], labels[1])

    return [group() for _ in range(count)]


def check_equal(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference. Raises AssertionError: it is above 1e-5."""
    largest = float((actual - expected).abs().max())
    if not largest <= LARGEST:
        raise AssertionError(f"results differ by {largest}")
    return largest


@torch.no_grad()
def parts(case: Case, groups: list[GivenPairs]) -> dict[str, Callable[[], object]]:
    """The parts of sgpipe's work for an image whose label texts are cached."""
    tagger = case.tagger
    image = tagger.encode_image(case.pixels)
    labels = tagger.encode_labels(OBJECTS, case.predicates)
    memory = tagger.fuse(image, labels)

    def untracked(way: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(way)

    return {
        "backbone": untracked(lambda: tagger.encode_image(case.pixels)),
        "encoder and fusion": untracked(lambda: tagger.fuse(image, labels)),
        "decoders": untracked(lambda: tagger.score_pairs(memory, groups)),
    }


def texts_table(case: Case, rounds: int, rate: float) -> tuple[Table, str]:
    texts = [*OBJECTS, *case.predicates]
    tokenizer = case.tagger.tokenizer
    assert tokenizer is not None

    def uncached() -> Tensor:
        return LabelCache(case.tagger.text_encoder, tokenizer, TEXTS).encode(texts)

    padded = torch.no_grad()(lambda: case.padded.encode(texts, tokenizer))
    difference = check_equal(uncached(), padded())
    case.tagger.encode_texts(texts)
    ways = {
        "padded": padded,
        "uncached": uncached,
        "cached": lambda: case.tagger.encode_texts(texts),
    }
    seconds = medians(ways, rounds, warm_up=False)
    table = Table("label texts", "CPU seconds", "ratio")
    for name, way in (
        ("reference: padded", "padded"),
        ("sgpipe, nothing cached", "uncached"),
        ("sgpipe, all cached", "cached"),
    ):
        table.add_row(name, f"{seconds[way]:.4f}", f"{seconds['padded'] / seconds[way]:,.2f}")
    peak_seconds = operations(uncached) / rate
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)
    table.title = f"{TEXTS} label texts of {tokens:.1f} tokens"
    return (
        table,
        (
            f"Features differ by at most {difference:.0e}. Uncached texts reach"
            f" {peak_seconds / seconds['uncached']:.0%} of the rate of large square matrix products"
            f" ({rate / 1e9:.0f} GFLOP/s). The rest: groups of texts of equal length are small, and"
            " softmax, GELU and norms are memory-bound."
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = make_case()
    rate = matrix_rate()
    texts, text_remark = texts_table(case, options.rounds, rate)
    columns = ("groups of 100 pairs", "reference, s", "sgpipe, s", "ratio", "scores differ by")
    table = Table(*columns, title=f"an 800x1066 image, {TEXTS} cached texts")
    split = Table("groups", "part", "CPU seconds", "share of peak", title="sgpipe by part")
    for count in options.groups:
        groups = make_groups(count)
        table.add_row(str(count), *compared(case, groups, options.rounds if count < 4 else 1))
        ways = parts(case, groups)
        for name, taken in medians(ways, options.rounds, warm_up=False).items():
            split.add_row(
                str(count), name, f"{taken:.2f}", f"{operations(ways[name]) / rate / taken:.0%}"
            )
    report(__doc__, texts, text_remark, table, split, REMARK_ON_PEAK)


def compared(case: Case, groups: list[GivenPairs], rounds: int) -> tuple[str, ...]:
    """Seconds of both, their ratio, and the largest difference of scores. Raises AssertionError: it
    is above 1e-5.
    """
    scores: dict[str, Tensor] = {}
    ways = {
        name: _keeping(scores, name, getattr(case, name), groups) for name in ("reference", "ours")
    }
    seconds = medians(ways, rounds, warm_up=False)
    difference = check_equal(scores["ours"], scores["reference"])
    ratio = seconds["reference"] / seconds["ours"]
    return (
        f"{seconds['reference']:.1f}",
        f"{seconds['ours']:.2f}",
        f"{ratio:.1f}",
        f"{difference:.0e}",
    )


def _keeping(
    scores: dict[str, Tensor],
    name: str,
    way: Callable[[list[GivenPairs]], Tensor],
    groups: list[GivenPairs],
) -> Callable[[], object]:
    def run() -> None:
        scores[name] = way(groups)

    return run


if __name__ == "__main__":
    main()
