"""Captions parsed per second by one process with one thread: sgpipe and the spaCy model that it
runs on.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_parse [CAPTIONS] [--limit N]

CAPTIONS is a text file with one caption per line or a COCO captions JSON, by default the one of
SGPIPE_ORACLE, otherwise generated captions. All captions are distinct, so the cache is used in the
last row only. The rows for spaCy are upper limits: the complete model as loaded by default, and
only the components that sgpipe uses. Best of three runs by wall clock and by CPU time, after a
warm-up on 200 captions. The reference's SceneGraphParser is slower than the complete model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import spacy
from rich.table import Table

from benchmarks.measure import report
from sgpipe.recipe import ParseConfig
from sgpipe.stages.parse.rules import load_model
from sgpipe.stages.parse.stage import CaptionParser

RUNS = 3
BATCH = 256
PEOPLE = (
    "man",
    "woman",
    "boy",
    "young girl",
    "group of people",
    "baseball player",
    "man and a woman",
    "surfer",
)
VERBS = (
    "riding",
    "holding",
    "standing next to",
    "sitting on",
    "looking at",
    "walking with",
    "carrying",
    "eating",
)
THINGS = (
    "horse",
    "red umbrella",
    "wooden bench",
    "dog",
    "tennis racket",
    "slice of pizza",
    "bicycle",
    "large cake",
)
KINDS = ("small", "young", "smiling", "tall", "happy", "tired", "old", "blond")
PLACES = (
    "on a sandy beach",
    "in front of a building",
    "at a small table",
    "wearing a black hat",
    "in the kitchen",
    "next to a parked train",
    "under a tree",
    "on the side of the road",
)


def make_captions(count: int) -> list[str]:
    """Distinct generated captions."""
    choose = random.Random(0)
    captions: dict[str, None] = {}
    while len(captions) < count:
        kind, person, verb, thing, place = map(
            choose.choice, (KINDS, PEOPLE, VERBS, THINGS, PLACES)
        )
        captions[f"A {kind} {person} {verb} a {thing} {place}."] = None
    return list(captions)


def read_captions(path: Path) -> list[str]:
    """The distinct captions of a text file or a COCO captions JSON."""
    text = path.read_text()
    if path.suffix == ".json":
        lines: Iterable[str] = (item["caption"] for item in json.loads(text)["annotations"])
    else:
        lines = text.splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def speed(
    run: Callable[[list[str]], object], captions: list[str], clock: Callable[[], float]
) -> float:
    """Captions per second of a clock, best of `RUNS`."""
    seconds = []
    for _ in range(RUNS):
        start = clock()
        run(captions)
        seconds.append(clock() - start)
    return len(captions) / min(seconds)


def parse_uncached(parser: CaptionParser, captions: list[str]) -> int:
    parser._cache.clear()
    return sum(map(len, parser.parse(captions)))


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    data = (
        Path(os.environ.get("SGPIPE_ORACLE") or ".")
        / "data"
        / "coco_captions_val2017"
        / "captions_val2017.json"
    )
    arguments.add_argument(
        "captions", type=Path, nargs="?", default=data if data.is_file() else None
    )
    arguments.add_argument("--limit", type=int, default=5000)
    options = arguments.parse_args()
    captions = read_captions(options.captions) if options.captions else make_captions(options.limit)
    captions = captions[: options.limit]

    parser = CaptionParser(ParseConfig(batch_size=BATCH))
    slim = load_model()
    learned = CaptionParser(ParseConfig(parser="learned", batch_size=BATCH))
    complete = spacy.load(f"{slim.meta['lang']}_{slim.meta['name']}")
    rows: dict[str, Callable[[list[str]], object]] = {
        "spaCy, complete model": lambda texts: list(complete.pipe(texts, batch_size=BATCH)),
        "spaCy, tagger and parser": lambda texts: list(slim.pipe(texts, batch_size=BATCH)),
        "sgpipe, rules": lambda texts: parse_uncached(parser, texts),
        "sgpipe, learned": lambda texts: parse_uncached(learned, texts),
        "sgpipe, cached captions": parser.parse,
    }
    words = sum(len(caption.split()) for caption in captions) / len(captions)
    table = Table(
        "procedure",
        "captions/s",
        "per CPU second",
        title=f"{len(captions):,} captions of {words:.1f} words",
    )
    rates = []
    for name, run in rows.items():
        run(captions[:200])
        figures = [speed(run, captions, clock) for clock in (time.perf_counter, time.process_time)]
        rates.append(figures[-1])
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures))
    report(
        __doc__,
        table,
        f"The tokeniser and the rules take {1 - rates[2] / rates[1]:.0%} of the rule parser's time;"
        " the rest is spaCy: mostly the sequential steps of the transition parser and matrix"
        " products. The learned parser runs both, and a network that takes"
        f" {1 - rates[3] / rates[2]:.0%} of its time.",
    )


if __name__ == "__main__":
    main()
