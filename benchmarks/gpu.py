"""What a GPU computes in comparison with a CPU, and how fast.

    python -m benchmarks.gpu [--images N] [--threads N]

First `tests/test_gpu.py`: what runs on a GPU gives what it gives on a CPU. Then the networks of
published sizes, with random weights: the tagger (ResNet-50, float32) on both devices with the same
inputs; the tag stage on JPEGs of 640x480 and 480x640 with one group of pairs each, cached texts and
images that are decoded in threads; ten captions of BLIP at 384 px; the tag stage also with
torch.compile; a whole labelling, in one process: BLIP-base, parser, pairs and the tagger with
Swin-T, in the formats of a GPU, where the parser gets random captions of the objects, as those of
random weights state nothing; a training step of the tagger on four images of 800x1066, in bfloat16,
also with torch.compile, and by the reference's procedure, in float32, all with a fused optimiser;
deformable attention at the shape of the encoder. Seconds are the fewest of several rounds;
nvidia-smi measures the utilization of the GPU. The page becomes benchmarks/results/gpu.md. Without
a GPU all of this runs in miniature on the CPU, and the tag stage with the simulated device of
bench_waiting; that shows that the command works, and nothing about a GPU.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from benchmarks.bench_caption import (
    LEAST,
    MOST,
    PROMPT,
    PUBLISHED,
    SAMPLES,
    SHAPES,
    random_blip,
    save_random_blip,
)
from benchmarks.bench_deformable import SHAPES as LEVELS
from benchmarks.bench_deformable import encoder_case, with_gradients
from benchmarks.bench_tagger import OBJECTS, make_groups, make_predicates
from benchmarks.bench_train_step import OPTIONS, ReferenceObjective, make_batch, make_objective
from benchmarks.bench_waiting import (
    CAPTIONER_SECONDS,
    TAGGER_SECONDS,
    Device,
    caption_stage,
    tag_stage,
)
from benchmarks.measure import report
from benchmarks.reference import as_the_reference
from rlip_model.attention import gpu_sampling, sample, sample_by_grid
from rlip_model.checkpoint import save_atomically
from rlip_model.config import RTaggerConfig
from rlip_model.model import RTagger
from rlip_model.presets import preset, tiny_sizes
from rlip_model.text import build_tokenizer
from rlip_model.training.compiling import CompiledLayers
from rlip_model.training.objective import Objective
from rlip_model.training.optimisation import make_optimizer
from sgpipe.recipe import CaptionConfig, PairConfig, ParseConfig, Resources, TagConfig
from sgpipe.records import Box, Caption, Pair, Record
from sgpipe.stages.caption.blip import GPU_GROUP, fuse_vision_attention
from sgpipe.stages.caption.blip_decoder import BlipDecoder, RecordedCaptions, sample_captions
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.pair import PairStage
from sgpipe.stages.parse.stage import ParseStage
from sgpipe.stages.tag.stage import TagStage
from sgpipe.utils.gpu import one_line

SPLIT = "drawn"
PREDICATES = 50
PAIRS = 90
GROUP = 8
SIZES = ((640, 480), (480, 640))
END_OF_CAPTION = 102
STATED = (
    "riding",
    "holding",
    "on",
    "next to",
    "looking at",
    "in front of",
    "behind",
    "carrying",
    "under",
    "above",
)
COCO_IMAGES = 118_000
PAGE = Path(__file__).parent / "results" / "gpu.md"


@dataclass(frozen=True)
class Machine:
    """What is measured on: a GPU and published sizes, or the CPU and miniatures."""

    device: torch.device
    rounds: int = 5

    @property
    def real(self) -> bool:
        return self.device.type == "cuda"

    def synchronise(self) -> None:
        if self.real:
            torch.cuda.synchronize(self.device)

    def seconds(self, way: Callable[[], object]) -> float:
        """The fewest of several rounds, after one that warms up."""
        way()
        taken = []
        for _ in range(self.rounds if self.real else 1):
            self.synchronise()
            began = time.perf_counter()
            way()
            self.synchronise()
            taken.append(time.perf_counter() - began)
        return min(taken)

    def half(self) -> Any:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.real else nullcontext()


@dataclass
class GpuUsage:
    """What nvidia-smi reported meanwhile: utilization in percent, memory in MB."""

    utilization: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.utilization:
            return "not measured"
        return f"{mean(self.utilization):.0f}%, {max(self.memory):,.0f} MB"


@contextmanager
def watched(machine: Machine) -> Iterator[GpuUsage]:
    """Samples nvidia-smi every 200 ms, if there is one."""
    usage = GpuUsage()
    command = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
        "-lms",
        "200",
        f"--id={os.environ.get('CUDA_VISIBLE_DEVICES', '').partition(',')[0] or 0}",
    ]
    try:
        process = (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if machine.real else None
        )
    except FileNotFoundError:
        process = None
    try:
        yield usage
    finally:
        if process is not None:
            process.terminate()
            for line in process.communicate()[0].splitlines():
                # a line that was cut, or a figure that this GPU does not have
                with suppress(ValueError):
                    utilization, memory = map(float, line.split(","))
                    usage.utilization.append(utilization)
                    usage.memory.append(memory)


def equality() -> str:
    """The last line of the tests. Raises SystemExit: one fails."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_gpu.py",
    ]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        raise SystemExit("\n".join(["tests/test_gpu.py failed:", *lines[-40:]]))
    return f"tests/test_gpu.py: {lines[-1].strip('= ')}."


def make_tagger(machine: Machine, backbone: str = "resnet50") -> tuple[RTagger, list[str]]:
    """With random weights, and its predicates."""
    torch.manual_seed(0)
    predicates = make_predicates(PREDICATES)
    tokenizer = build_tokenizer([*OBJECTS, *predicates, *STATED])
    config = (
        preset("tagger", backbone) if machine.real else RTaggerConfig(**tiny_sizes(len(tokenizer)))
    )
    tagger = RTagger(config).eval()
    tagger.set_tokenizer(tokenizer)
    return tagger, predicates


@torch.no_grad()
def difference(machine: Machine) -> str:
    """How the tagger's logits in float32, and the labels above their median, differ from those of
    the CPU.
    """
    tagger, predicates = make_tagger(machine)
    pixels = torch.randn(1, 3, *((800, 1066) if machine.real else (96, 128)))
    groups = make_groups(1)
    groups = (
        groups
        if machine.real
        else [type(groups[0])(*(part[:10] for part in vars(groups[0]).values()))]
    )
    scores = []
    torch.backends.cudnn.allow_tf32 = False
    for device in (torch.device("cpu"), machine.device):
        nn.Module.to(tagger, device)
        memory = tagger.fuse(
            tagger.encode_image(pixels.to(device)), tagger.encode_labels(OBJECTS, predicates)
        )
        pairs_of_image = [
            type(group)(*(part.to(device) for part in vars(group).values())) for group in groups
        ]
        scores.append(tagger.score_pairs(memory, pairs_of_image).cpu().double())
    torch.backends.cudnn.allow_tf32 = True
    largest = float((scores[0].logit() - scores[1].logit()).abs().max())
    labels = [score > scores[0].median() for score in scores]
    return (
        f"Logits of the tagger in float32 differ from those of the CPU by at most {largest:.0e}"
        f" (goal: 1e-3); of {int(labels[0].sum()):,} labels above their median"
        f" {int((labels[0] != labels[1]).sum()):,} are others."
    )


def make_images(folder: Path, count: int, predicates: Sequence[str]) -> list[Record]:
    """Smooth JPEGs of two sizes by turns, with ten boxes and all of their pairs."""
    random = np.random.default_rng(0)
    records = []
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        coarse = random.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{index}.jpg", quality=90)
        names = random.choice(OBJECTS[:-1], 10)
        corners = random.uniform(0, 0.5, (10, 2)) * (width, height)
        boxes = [
            Box(str(name), 0, (float(x), float(y), 0.4 * width, 0.4 * height))
            for name, (x, y) in zip(names, corners, strict=True)
        ]
        pairs = [Pair(one, other, list(predicates)) for one, other in permutations(range(10), 2)][
            :PAIRS
        ]
        records.append(
            Record(str(index), SPLIT, SPLIT, f"{index}.jpg", width, height, boxes, pairs=pairs)
        )
    return records


def rate(images: int, seconds: float, failure: str = "") -> str:
    """Images per second; without them, why what was to be compiled was not."""
    return f"not compiled: {failure}" if failure else f"{images / seconds:.1f}"


def tagging(
    machine: Machine, count: int, threads: int, *, compiled: bool = False
) -> tuple[str, GpuUsage]:
    """Images per second of the tag stage, and the usage of the GPU; `compiled` is for a GPU
    only.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, (tagger, predicates) = Path(temporary), make_tagger(machine)
        records = make_images(folder, count, predicates)
        if machine.real:
            save_atomically(tagger, folder / "tagger")
            resources = Resources(io_threads=threads, cpus=threads, gpus=1)
            config = TagConfig(
                tagger=str(folder / "tagger"), threshold=0.9, compile=compiled, resources=resources
            )
            stage: Any = TagStage(config, {SPLIT: folder}, OBJECTS[:-1])
            stage.setup()
            stage(make_images(folder, (20 if compiled else 2) * GROUP, predicates))
        else:
            stage = tag_stage({SPLIT: folder}, OBJECTS[:-1], Device(TAGGER_SECONDS), threads)
        with watched(machine) as usage:
            began = time.perf_counter()
            stage(records)
            taken = time.perf_counter() - began
    return rate(count, taken, stage.gpu_use().get("compile_error", "") if compiled else ""), usage


def captioning(machine: Machine, shape: str) -> str:
    """Images per second with ten captions each, in groups as large as those of the caption
    stage.
    """
    model = random_blip(
        **(SHAPES[shape] if machine.real else {"width": 48, "layers": 2, "heads": 2})
    )
    fuse_vision_attention(model)
    nn.Module.to(model, machine.device, torch.bfloat16 if machine.real else torch.float32)
    decoder = BlipDecoder(model)
    count = GPU_GROUP if machine.real else 2
    pixels = torch.randn(count, 3, 384, 384).to(machine.device, model.dtype)
    keys = list(range(count))
    sampling = CaptionConfig(samples=SAMPLES, min_tokens=LEAST, max_tokens=MOST, **PUBLISHED)
    recorded = None
    refusal = ""

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return model.vision_model(pixels).last_hidden_state

    if machine.real:
        try:
            recorded = RecordedCaptions(decoder, encode(), keys, PROMPT, sampling)
        except RuntimeError as reason:
            refusal = f", without CUDA graphs: {one_line(reason)}"
    taken = machine.seconds(
        lambda: sample_captions(decoder, encode(), PROMPT, keys, sampling, recorded)
    )
    return rate(count, taken) + refusal


def draw_captions(records: list[Record]) -> list[Record]:
    """Ten captions of each image, of its objects, in place of those of random weights."""
    random = np.random.default_rng(0)
    for record in records:
        drawn = [(*random.choice(record.objects, 2), random.choice(STATED)) for _ in range(SAMPLES)]
        record.captions = [
            Caption(f"a {a.category} {word} a {b.category}", "image", []) for a, b, word in drawn
        ]
    return records


def labelling_stages(
    machine: Machine, folder: Path, threads: int
) -> dict[str, Callable[[list[Record]], list[Record]]]:
    """What labels records, set up; without a GPU a simulated device is in place of the models."""
    parse = ParseStage(ParseConfig())
    pair = PairStage(PairConfig(), "coco", OBJECTS[:-1])
    caption: Any = caption_stage({SPLIT: folder}, Device(CAPTIONER_SECONDS), threads)
    tag: Any = tag_stage({SPLIT: folder}, OBJECTS[:-1], Device(TAGGER_SECONDS), threads)
    if machine.real:
        resources = Resources(io_threads=threads, cpus=threads, gpus=1)
        tagger, _ = make_tagger(machine, "swin_tiny")
        save_atomically(tagger, folder / "tagger")
        captioner = save_random_blip(folder / "captioner")
        caption = CaptionStage(
            CaptionConfig(captioner=captioner, resources=resources), {SPLIT: folder}, 0
        )
        config = TagConfig(tagger=str(folder / "tagger"), threshold=0.9, resources=resources)
        tag = TagStage(config, {SPLIT: folder}, OBJECTS[:-1])
    for stage in (caption, parse, pair, tag) if machine.real else (parse, pair):
        stage.setup()
    return {"caption": caption, "drawing": draw_captions, "parse": parse, "pair": pair, "tag": tag}


def labelling(machine: Machine, count: int, threads: int) -> tuple[float, str]:
    """Images per second of all stages one after the other, and the share of each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stages = labelling_stages(machine, folder, threads)
        seconds: dict[str, float] = {}
        for number in (2 * GROUP, count):
            records = make_images(folder, number, ())
            for name, stage in stages.items():
                began = time.perf_counter()
                records = stage(records)
                seconds[name] = time.perf_counter() - began
        pairs = sum(len(record.pairs) for record in records)
    del seconds["drawing"]
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {taken / total:.0%}" for name, taken in seconds.items())
    return count / total, f"{shares}; {pairs / count:.0f} pairs per image"


def training_step(
    machine: Machine, kind: type[Objective], *, compiled: bool = False
) -> tuple[float, str]:
    """Seconds of a step, with Swin-T; and why it is not compiled, if it should be.

    Args:
        compiled: the layers of the backbone; without a GPU no kernels are made for them.
    """
    batch = make_batch(4 if machine.real else 1, *((800, 1066) if machine.real else (96, 128))).to(
        machine.device
    )
    model = make_objective(kind, batch, backbone="swin_tiny", miniature=not machine.real)
    layers = (
        CompiledLayers(model.network, "inductor" if machine.real else "eager") if compiled else None
    )
    objective = nn.Module.to(model, machine.device).train()
    if layers is not None:
        with machine.half():
            layers.compile(objective, len(batch))
    is_reference = kind is ReferenceObjective
    optimizer = make_optimizer(objective.network, OPTIONS)

    def step() -> None:
        optimizer.zero_grad()
        with as_the_reference() if is_reference else machine.half():
            losses = objective(batch)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), OPTIONS.clip_norm)
        optimizer.step()

    taken = machine.seconds(step)
    return taken, (
        one_line(layers.failure) if layers is not None and layers.failure is not None else ""
    )


def attention(machine: Machine) -> dict[str, tuple[float, float]]:
    """Milliseconds of one `grid_sample` per level, and of sgpipe's sampling."""
    case = tuple(tensor.to(machine.device) for tensor in encoder_case())

    def forward(way: Callable[..., Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: way(case[0], LEVELS, *case[1:]))

    def both(way: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: with_gradients(way, case)

    return {
        name: (1e3 * machine.seconds(run(sample_by_grid)), 1e3 * machine.seconds(run(sample)))
        for name, run in (("forward", forward), ("forward + backward", both))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=0, help="of the tag stage; 0: 1,000, without a GPU 40"
    )
    parser.add_argument(
        "--threads", type=int, default=min(8, os.cpu_count() or 1), help="that decode images"
    )
    options = parser.parse_args()
    machine = Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tests = equality()
    differences = difference(machine)
    table = Table(
        "what",
        "figure",
        "goal on an H100",
        title="throughput" if machine.real else "throughput of miniatures",
    )
    figure, usage = tagging(
        machine, options.images or (1000 if machine.real else 40), options.threads
    )
    table.add_row("tagging, images/s", figure, "60")
    table.add_row("GPU meanwhile: utilization, memory", str(usage), "85%")
    if machine.real:
        figure, _ = tagging(machine, options.images or 1000, options.threads, compiled=True)
        table.add_row("tagging with tag.compile, images/s", figure, "")
    per_second, shares = labelling(
        machine, options.images or (1000 if machine.real else 40), options.threads
    )
    table.add_row(
        "labelling with BLIP-base and a Swin-T tagger, images/s", f"{per_second:.1f}", "25"
    )
    table.add_row(
        "labelling COCO's 118,000 images at this rate, minutes",
        f"{COCO_IMAGES / per_second / 60:.0f}",
        "80",
    )
    table.add_row("share of each stage", shares, "")
    for shape, goal in (("base", "60"), ("large", "25")):
        table.add_row(f"ten captions, BLIP-{shape}, images/s", captioning(machine, shape), goal)
    (reference, _), (ours, _) = (
        training_step(machine, kind) for kind in (ReferenceObjective, Objective)
    )
    table.add_row("training step of the reference, s", f"{reference:.3f}", "")
    table.add_row("training step of sgpipe, s", f"{ours:.3f}", f"{reference / 1.5:.3f}")
    taken, failure = training_step(machine, Objective, compiled=True)
    figure = f"not compiled: {failure}" if failure else f"{taken:.3f}"
    table.add_row("training step of sgpipe with workers.compile, s", figure, "")
    for (name, (grid, sgpipe_time)), ratio in zip(attention(machine).items(), (4, 3), strict=True):
        table.add_row(f"deformable attention, {name}, ms: grid_sample", f"{grid:.2f}", "")
        table.add_row(
            f"deformable attention, {name}, ms: sgpipe", f"{sgpipe_time:.2f}", f"{grid / ratio:.2f}"
        )
    remarks = ["No GPU: miniatures on the CPU, and a simulated device.", tests, differences]
    if machine.real:
        remarks = [
            f"Device: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}.",
            tests,
            f"Deformable attention: {gpu_sampling(machine.device)}.",
            differences,
        ]
    page = io.StringIO()
    with redirect_stdout(page):
        report(__doc__, *remarks, table)
    print(page.getvalue(), end="")
    if machine.real:
        PAGE.write_text(page.getvalue())


if __name__ == "__main__":
    main()
