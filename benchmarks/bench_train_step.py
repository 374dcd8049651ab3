"""A training step of the R-Tagger at paper size: sgpipe against the reference's procedure, time and
memory.

    python -m benchmarks.bench_train_step [--rounds N] [--threads N]

One image of 800x1066 with 100 pairs, 334 object and 167 relation texts of 3 to 8 tokens, ResNet-50,
dropout as published. The reference pads all texts to the longest, samples by one `grid_sample` per
level and uses AdamW with its defaults. Measurements alternate, each in its own process: first a
step without dropout and noise, whose loss and gradient are compared, then the step that is timed
(CPU time of all threads). Peak is the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from rich.table import Table
from torch import nn
from torch.optim import AdamW

from benchmarks.bench_tagger import OBJECTS, make_groups, make_predicates
from benchmarks.measure import matrix_rate, operations, report
from benchmarks.reference import PaddedTextEncoder, as_the_reference
from rlip_model.attention import DeformableAttention
from rlip_model.config import RTaggerConfig
from rlip_model.dense_head import LabelledBoxes
from rlip_model.losses import TaggerCriterion
from rlip_model.model import RTagger
from rlip_model.presets import preset, tiny_sizes
from rlip_model.settings import Optimisation
from rlip_model.targets import Triplets
from rlip_model.text import LabelFeatures, build_tokenizer
from rlip_model.training.batches import TrainingBatch
from rlip_model.training.objective import Objective
from rlip_model.training.optimisation import make_optimizer
from rlip_model.training.sampling import Texts

OBJECT_TEXTS = 334
RELATION_TEXTS = 167
TOLERANCE = 1e-4
PARTS = ("forward", "backward", "optimizer")
OPTIONS = Optimisation()


class ReferenceObjective(Objective):
    """Texts padded to the longest, each layer on all of their tokens."""

    def __init__(self, network: RTagger, criterion: TaggerCriterion) -> None:
        super().__init__(network, criterion)
        self.padded = PaddedTextEncoder(network)

    def _encode(self, batch: TrainingBatch) -> LabelFeatures:
        features = self.padded.encode(
            [*batch.texts.objects, *batch.texts.relations], self.tokenizer
        )
        return LabelFeatures(features.unsqueeze(0), len(batch.texts.objects))


def make_batch(images: int = 1, height: int = 800, width: int = 1066) -> TrainingBatch:
    torch.manual_seed(0)
    texts = make_predicates(OBJECT_TEXTS + RELATION_TEXTS)
    objects = [*OBJECTS, *texts[: OBJECT_TEXTS - len(OBJECTS)]]
    groups = make_groups(images)
    relations = [(torch.rand(len(pairs), RELATION_TEXTS) < 0.01).float() for pairs in groups]
    return TrainingBatch(
        image_ids=tuple(map(str, range(images))),
        pixel_values=torch.randn(images, 3, height, width),
        padding=torch.zeros(images, height, width, dtype=torch.bool),
        triplets=tuple(
            Triplets(**vars(pairs), relation_labels=relation)
            for pairs, relation in zip(groups, relations, strict=True)
        ),
        texts=Texts(tuple(objects), tuple(texts[-RELATION_TEXTS:])),
        sizes=((width, height),) * images,
        boxes=tuple(LabelledBoxes(pairs.subject_boxes, pairs.subject_labels) for pairs in groups),
    )


def make_objective(
    kind: type[Objective],
    batch: TrainingBatch,
    *,
    backbone: str = "resnet50",
    miniature: bool = False,
) -> Objective:
    torch.manual_seed(0)
    tokenizer = build_tokenizer([*batch.texts.objects, *batch.texts.relations])
    config = preset("tagger", backbone)
    if miniature:
        config = RTaggerConfig(**tiny_sizes(len(tokenizer)) | {"num_queries": config.num_queries})
    tagger = RTagger(config)
    tagger.set_tokenizer(tokenizer)
    for module in tagger.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
    return kind(tagger, TaggerCriterion()).train()


def measure(way: str) -> dict[str, float]:
    """What a process of its own prints."""
    batch = make_batch()
    is_reference = way == "reference"
    objective = make_objective(ReferenceObjective if is_reference else Objective, batch)
    named = make_optimizer(objective.network, OPTIONS)
    optimizer = (
        AdamW(named.param_groups, lr=OPTIONS.lr, weight_decay=OPTIONS.weight_decay)
        if is_reference
        else named
    )
    with as_the_reference() if is_reference else nullcontext():
        restore = without_chance(objective)
        loss, norm, _ = step(objective, optimizer, batch)
        restore()
        _, _, seconds = step(objective, optimizer, batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    counted = (
        {}
        if is_reference
        else {"operations": operations(lambda: step(objective, optimizer, batch))}
    )
    return {"loss": loss, "norm": norm, "peak": peak, **seconds, **counted}


def without_chance(objective: Objective) -> Callable[[], None]:
    """Switch dropout and noise off, as random numbers are drawn in another order; returns what
    brings them back.
    """
    switches: list[tuple[object, str]] = [(objective.network.queries, "box_noise")]
    switches.append((objective.network.queries, "label_noise"))
    for module in objective.modules():
        if isinstance(module, nn.Dropout):
            switches.append((module, "p"))
        elif isinstance(getattr(module, "dropout", None), float):
            switches.append((module, "dropout"))
    before = [getattr(owner, name) for owner, name in switches]
    for owner, name in switches:
        setattr(owner, name, 0.0)

    def restore() -> None:
        for (owner, name), value in zip(switches, before, strict=True):
            setattr(owner, name, value)

    return restore


def step(
    objective: Objective, optimizer: AdamW, batch: TrainingBatch
) -> tuple[float, float, dict[str, float]]:
    """The loss, the norm of its gradient, and CPU seconds of each part."""
    torch.manual_seed(1)
    optimizer.zero_grad()
    clock = [time.process_time()]
    losses = objective(batch)
    clock.append(time.process_time())
    losses["loss"].backward()
    clock.append(time.process_time())
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), OPTIONS.clip_norm)
    optimizer.step()
    clock.append(time.process_time())
    spans = (end - start for start, end in pairwise(clock))
    return float(losses["loss"].detach()), float(norm), dict(zip(PARTS, spans, strict=True))


def alone(way: str, threads: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_train_step",
        "--only",
        way,
        "--threads",
        str(threads),
    ]
    figures: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return figures


def check_equal(ours: Sequence[dict[str, float]], reference: Sequence[dict[str, float]]) -> float:
    """The largest difference of losses and gradient norms. Raises AssertionError: it is above 1e-4
    of them.
    """
    pairs = [(ours[0][name], reference[0][name]) for name in ("loss", "norm")]
    largest = max(abs(a - b) / abs(b) for a, b in pairs)
    if not largest <= TOLERANCE:
        raise AssertionError(f"loss and gradient differ: {pairs}")
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("ours", "reference"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(measure(options.only)))
        return
    runs: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}
    for _ in range(options.rounds):
        for way, figures in runs.items():
            figures.append(alone(way, options.threads))
    difference = check_equal(runs["ours"], runs["reference"])
    table = Table(
        "what", "reference", "sgpipe", "ratio", title="training step, 800x1066, 501 texts, batch 1"
    )

    def add(label: str, of_run: Callable[[dict[str, float]], float]) -> None:
        before, after = (statistics.median(map(of_run, runs[way])) for way in ("reference", "ours"))
        table.add_row(label, f"{before:.1f}", f"{after:.1f}", f"{before / after:.2f}")

    for part in PARTS:
        add(f"{part}, CPU seconds", lambda run, part=part: run[part])
    add("step, CPU seconds", lambda run: sum(run[part] for part in PARTS))
    add("peak memory, GB", lambda run: run["peak"] / 1e9)
    limit = statistics.median(run["operations"] for run in runs["ours"]) / matrix_rate()
    taken = statistics.median(run["forward"] + run["backward"] for run in runs["ours"])
    report(
        __doc__,
        table,
        f"Loss and gradient norm, without dropout and noise, differ by {difference:.0e}"
        " (relative).",
        "At the rate of large square products, all its matrix products and convolutions would take"
        f" {limit:.1f} s, {limit / taken:.0%} of forward and backward. The rest: deformable"
        " attention gathers its samples row by row, forwards and backwards; dropout, norms and"
        " activations are memory-bound; so is AdamW, which reads and writes four arrays of the"
        " size of the weights.",
    )


if __name__ == "__main__":
    main()
