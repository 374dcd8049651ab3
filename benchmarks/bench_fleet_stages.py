"""Parsers and taggers by a fleet of model servers: which share of its capacity they use.

    python -m benchmarks.bench_fleet_stages [--requests N] [--seconds S]

The servers are those of `bench_fleet`: eight, each with 32 requests at once and log-normal latencies
(sigma 0.5, mean S seconds), and one client process that keeps the answers. `parse.parser: llm` asks
about one caption of each of 512 images of a unit; `tag.method: vlm` about three relations of each of
128 images of a unit, twice, each image a JPEG of 480 x 360 pixels. Before: one unit after the other,
and the tagger one image after the other (of which 20 images are measured). The scorer's one stream
asks about all images, by one thread. Used: seconds of work of all servers, of what they could have worked
while the client ran, which includes the start with 64 requests and the last answers. CPU: of the
client, with drawing and encoding images.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.bench_fleet import CAPACITY, CAPTION, MODEL, SERVERS, fleet
from benchmarks.measure import report
from sgpipe.generation.engine import WorkUnit, open_units_of
from sgpipe.recipe import ParseConfig, Requests, TagConfig
from sgpipe.records import Box, Caption, Pair, Record, Relation
from sgpipe.stages.base import Stage
from sgpipe.stages.parse.stage import ParseStage
from sgpipe.stages.runner import StageRunner
from sgpipe.stages.score.scorer import ScorerInput, VlmScorer
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.tag.stage import ScoredStage

PARSE_UNIT = 512
TAG_UNIT = 128
IMAGES_BEFORE = 20
WIDTH = 480
HEIGHT = 360
SPLIT = "train"
PAIRS = ((0, 1), (1, 2), (2, 3))
REQUESTS_PER_IMAGE = 2 * len(PAIRS)
PREDICATE = "next to"
GRAPH = {"message": {"role": "assistant", "content": '{"relations": []}'}}
YES = {"token": "Yes", "logprob": -0.25}
NO = {"token": "No", "logprob": -1.5}
JUDGEMENT = {
    "message": {"role": "assistant", "content": "Yes"},
    "logprobs": {"content": [YES | {"top_logprobs": [YES, NO]}]},
}
Questions = Literal["each", "shared"]
Work = Callable[[], None]
SetUp = Callable[[Sequence[str], CacheFolder], Work]  # of servers, and where answers are kept


def captioned(number: int) -> Record:
    record = Record(str(number), "bench", SPLIT, "photograph.jpg", WIDTH, HEIGHT)
    record.captions = [Caption(f"a man with {number} dogs sits on a bench")]
    return record


def with_candidates(number: int) -> Record:
    """Return an image with three candidates; its boxes make its requests unlike those of others."""
    record = Record(str(number), "bench", SPLIT, "photograph.jpg", WIDTH, HEIGHT)
    for index in range(4):
        left = 100.0 * index + number % 20
        top = float(number // 20 % 200)
        record.objects.append(Box(f"thing {number}", index, (left, top, 60.0, 80.0)))
    record.pairs = [Pair(subject, object_, [PREDICATE]) for subject, object_ in PAIRS]
    return record


def write_photograph(folder: Path) -> None:
    """Write a JPEG that costs as much to decode and encode as a photograph: smooth, with noise."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    photograph = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    photograph.save(folder / "photograph.jpg", quality=92)


def run_units(runner: StageRunner, records: Sequence[Record], rows: int, open_units: int) -> None:
    """Run stages on units of so many rows, several of them at once, as a worker does."""
    units = [list(records[start : start + rows]) for start in range(0, len(records), rows)]
    with ThreadPoolExecutor(open_units) as threads:
        for labelled, _ in threads.map(runner, units):
            assert all(record.ok for record in labelled)


def open_units(rows: int) -> int:
    return open_units_of([WorkUnit(SPLIT, 0, rows)], Requests().in_flight)


def set_up(stage: Stage, cache_folder: CacheFolder) -> StageRunner:
    stage.cache_folder = cache_folder
    runner = StageRunner([stage])
    runner.set_up()
    return runner


def parsing(requests: int, *, streams: bool) -> SetUp:
    records = [captioned(number) for number in range(requests)]

    units = open_units(PARSE_UNIT) if streams else 1

    def prepare(urls: Sequence[str], cache_folder: CacheFolder) -> Work:
        stage = ParseStage(ParseConfig(parser="llm", model=MODEL, endpoint=list(urls)))
        return partial(run_units, set_up(stage, cache_folder), records, PARSE_UNIT, units)

    return prepare


def tag_config(urls: Sequence[str], questions: Questions) -> TagConfig:
    return TagConfig(method="vlm", tagger=MODEL, endpoint=list(urls), questions=questions)


def tagging(images: int, folder: Path, questions: Questions) -> SetUp:
    records = [with_candidates(number) for number in range(images)]
    units = open_units(TAG_UNIT)

    def prepare(urls: Sequence[str], cache_folder: CacheFolder) -> Work:
        stage = ScoredStage(tag_config(urls, questions), {SPLIT: folder})
        return partial(run_units, set_up(stage, cache_folder), records, TAG_UNIT, units)

    return prepare


def inputs(images: int, folder: Path) -> Iterable[ScorerInput]:
    for number in range(images):
        record = with_candidates(number)
        relations = [Relation(subject, object_, PREDICATE) for subject, object_ in PAIRS]
        image = Image.open(folder / "photograph.jpg").convert("RGB")
        yield ScorerInput(image, record.objects, relations)


def scoring(images: int, folder: Path, questions: Questions, *, streams: bool) -> SetUp:
    def work(scorer: VlmScorer) -> None:
        if streams:
            scored = sum(len(scores) for scores in scorer.score_images(inputs(images, folder)))
        else:
            scored = sum(len(scorer.scores(*item)) for item in inputs(images, folder))
        assert scored == images * len(PAIRS)

    def prepare(urls: Sequence[str], cache_folder: CacheFolder) -> Work:
        scorer = VlmScorer(tag_config(urls, questions), cache_folder)
        scorer.load()
        return partial(work, scorer)

    return prepare


def measure(
    prepare: SetUp, requests: int, seconds: float, choice: Mapping[str, object] = CAPTION
) -> list[str]:
    """Return the cells of a row."""
    with tempfile.TemporaryDirectory() as folder, fleet(seconds, choice=choice) as (urls, pipe):
        work = prepare(urls, CacheFolder(Path(folder)))
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        began = time.monotonic()
        work()
        wall = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime - cpu
        pipe.send("end")
        busy, answers, _ = pipe.recv()
    return [
        f"{answers:,} of {requests:,}",
        f"{wall:.0f}",
        f"{busy / (wall * SERVERS * CAPACITY):.1%}",
        f"{requests / wall:.0f}",
        f"{1000 * cpu / requests:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    requests: int = options.requests
    images = requests // REQUESTS_PER_IMAGE
    before = IMAGES_BEFORE * REQUESTS_PER_IMAGE
    table = Table("way", "answers", "seconds", "used", "requests/s", "CPU ms")

    def add(way: str, prepare: SetUp, number: int, choice: Mapping[str, object]) -> None:
        table.add_row(way, *measure(prepare, number, options.seconds, choice))

    number = open_units(PARSE_UNIT)
    add("parse, one unit after the other", parsing(requests, streams=False), requests, GRAPH)
    add(f"parse, {number} units open", parsing(requests, streams=True), requests, GRAPH)
    asked = images * REQUESTS_PER_IMAGE
    number = open_units(TAG_UNIT)
    ways: tuple[Questions, ...] = ("each", "shared")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photograph(folder)
        for questions in ways:
            alone = scoring(IMAGES_BEFORE, folder, questions, streams=False)
            add(f"tag ({questions}), image by image", alone, before, JUDGEMENT)
            tagged = tagging(images, folder, questions)
            add(f"tag ({questions}), {number} units open", tagged, asked, JUDGEMENT)
            scored = scoring(images, folder, questions, streams=True)
            add(f"scorer ({questions}), one stream", scored, asked, JUDGEMENT)
    report(__doc__, table)


if __name__ == "__main__":
    main()
