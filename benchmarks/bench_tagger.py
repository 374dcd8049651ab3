"""The R-Tagger at paper size on one image: sgpipe against the reference's procedure, on the same weights.

    python -m benchmarks.bench_tagger [--rounds N] [--threads N] [--groups N ...]

An image of 800x1066, 600 label texts of 3 to 8 tokens, groups of 100 pairs. The reference passes the image through
the network once per group, and all texts through the text encoder for every image, padded to the longest. sgpipe
encodes the image once for all groups, and knows texts that it has seen. Scores are compared. Times are medians of CPU
time by turns; from 4 groups on one turn is measured.
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

TEXTS, PAIRS, LARGEST = 600, 100, 1e-5
NAMES = (*relation_names("hico").values(), *category_names("objects365").values(), *relation_names("vcoco").values())
WORDS = sorted({word for name in NAMES for word in name.split()})
SHARES_OF_WORDS = {1: 0.3, 2: 0.4, 3: 0.2, 4: 0.06, 5: 0.03, 6: 0.01}  # a word is a token, and there are two around
IN_THE_WAY = (
    "At the limit: the share of the time that the matrix products and convolutions of a part would take at the rate "
    "of large square products. In the way: convolutions of few channels, 256 wide products, and between them "
    "deformable sampling (bench_deformable), norms and activations, which move memory."
)
OBJECTS = [*category_names("coco").values(), NO_OBJECTS]


@dataclass(frozen=True)
class Case:
    """An image and what is asked about it."""

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
    """Distinct texts, of as many words as relations of Visual Genome have."""
    choose, made = random.Random(0), dict[str, None]()
    lengths, shares = list(SHARES_OF_WORDS), list(SHARES_OF_WORDS.values())
    made[" ".join(WORDS[: max(lengths)])] = None
    while len(made) < count:
        made[" ".join(choose.sample(WORDS, choose.choices(lengths, shares)[0]))] = None
    return list(made)


def make_case() -> Case:
    """Random weights; points of deformable attention spread over some pixels, as trained ones do."""
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


def check_equal(found: Tensor, expected: Tensor) -> float:
    """The largest difference. Raises AssertionError: it is above 1e-5."""
    largest = float((found - expected).abs().max())
    if not largest <= LARGEST:
        raise AssertionError(f"answers differ by {largest}")
    return largest


@torch.no_grad()
def parts(case: Case, groups: list[GivenPairs]) -> dict[str, Callable[[], object]]:
    """What sgpipe does for an image whose texts it has seen, part by part."""
    tagger = case.tagger
    image, labels = tagger.encode_image(case.pixels), tagger.encode_labels(OBJECTS, case.predicates)
    memory = tagger.fuse(image, labels)

    def untracked(way: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(way)

    return {
        "backbone": untracked(lambda: tagger.encode_image(case.pixels)),
        "encoder and fusion": untracked(lambda: tagger.fuse(image, labels)),
        "decoders": untracked(lambda: tagger.score_pairs(memory, groups)),
    }


def texts_table(case: Case, rounds: int, rate: float) -> tuple[Table, str]:
    texts, tokenizer = [*OBJECTS, *case.predicates], case.tagger.tokenizer
    assert tokenizer is not None

    def anew() -> Tensor:
        return LabelCache(case.tagger.text_encoder, tokenizer, TEXTS).encode(texts)

    padded = torch.no_grad()(lambda: case.padded.encode(texts, tokenizer))
    difference = check_equal(anew(), padded())
    case.tagger.encode_texts(texts)
    ways = {"padded": padded, "anew": anew, "seen": lambda: case.tagger.encode_texts(texts)}
    seconds = medians(ways, rounds, warm_up=False)
    table = Table("label texts", "CPU seconds", "ratio")
    for name, way in (
        ("reference: padded", "padded"),
        ("sgpipe, nothing cached", "anew"),
        ("sgpipe, all cached", "seen"),
    ):
        table.add_row(name, f"{seconds[way]:.4f}", f"{seconds['padded'] / seconds[way]:,.2f}")
    limit = operations(anew) / rate
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)
    table.title = f"{TEXTS} label texts of {tokens:.1f} tokens"
    return table, (
        f"Features differ by up to {difference:.0e}. At the rate of large square matrix products, {rate / 1e9:.0f} "
        f"GFLOP/s, those of new texts would take {limit / seconds['anew']:.0%} of the time that they take. In the way: "
        "groups of texts of one length are small, and softmax, GELU and norms come between the products."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case, rate = make_case(), matrix_rate()
    texts, remark = texts_table(case, options.rounds, rate)
    columns = ("groups of 100 pairs", "reference, s", "sgpipe, s", "ratio", "scores differ by")
    table = Table(*columns, title=f"an image of 800x1066, {TEXTS} texts seen before")
    split = Table("groups", "part", "CPU seconds", "at the limit", title="sgpipe, part by part")
    for count in options.groups:
        groups = make_groups(count)
        table.add_row(str(count), *compared(case, groups, options.rounds if count < 4 else 1))
        ways = parts(case, groups)
        for name, taken in medians(ways, options.rounds, warm_up=False).items():
            split.add_row(str(count), name, f"{taken:.2f}", f"{operations(ways[name]) / rate / taken:.0%}")
    report(__doc__, texts, remark, table, split, IN_THE_WAY)


def compared(case: Case, groups: list[GivenPairs], rounds: int) -> tuple[str, ...]:
    """Seconds of both, their ratio, and by how much the answers differ. Raises AssertionError: by more than 1e-5."""
    answers: dict[str, Tensor] = {}
    ways = {name: _keeping(answers, name, getattr(case, name), groups) for name in ("reference", "ours")}
    seconds = medians(ways, rounds, warm_up=False)
    difference = check_equal(answers["ours"], answers["reference"])
    ratio = seconds["reference"] / seconds["ours"]
    return f"{seconds['reference']:.1f}", f"{seconds['ours']:.2f}", f"{ratio:.1f}", f"{difference:.0e}"


def _keeping(
    answers: dict[str, Tensor], name: str, way: Callable[[list[GivenPairs]], Tensor], groups: list[GivenPairs]
) -> Callable[[], object]:
    def run() -> None:
        answers[name] = way(groups)

    return run


if __name__ == "__main__":
    main()
