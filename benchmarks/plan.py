"""`sgpipe plan` against the run that it plans: predicted and measured seconds.

    python -m benchmarks.plan [--images 2000] [--rounds 5] [--recipes models served] [--actors 1 2]

Images of the miniworld, drawn before. *models*: the recipe miniworld, with its captioner and
tagger; *served*: captions by a server on this machine that answers each request after 0.1 s, four
at a time from each actor, and no tagger (`tag.method=all`). In each round every row is planned (a
sample of 64 images; for *served* with two actors, 128) and then run, both as commands of their own;
measured is the whole command. The ratio is predicted / measured; load: the mean of the number of
processes that wanted a core in the last minute, when the run ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from benchmarks.measure import report
from sgpipe.miniworld.dataset import IMAGES, INSTANCES
from sgpipe.sources.miniworld import render_dataset
from tests.endpoint_server import EndpointServer

SECONDS = 0.1
IN_FLIGHT = 4


def recipe_of(kind: str, world: Path, url: str) -> dict[str, Any]:
    """Return the settings of a recipe for drawn images."""
    caption: dict[str, Any] = {"captioner": "MINIWORLD"}
    tag: dict[str, Any] = {"tagger": "MINIWORLD", "short_side": 96, "long_side": 144}
    if kind == "served":
        caption = {
            "captioner": "tiny-vlm",
            "endpoint": url,
            "samples": 1,
            "requests": {"in_flight": IN_FLIGHT},
        }
        tag = {"method": "all"}
    splits = {"val": {"annotations": str(world / INSTANCES), "images": str(world / IMAGES)}}
    source = {"format": "coco", "splits": splits}
    return {
        "name": kind,
        "source": source,
        "caption": caption,
        "pair": {"loose": False},
        "tag": tag,
    }


def seconds_of(*arguments: str) -> tuple[float, Mapping[str, Any]]:
    """Return how long a command of sgpipe took, and its JSON. Raises CalledProcessError: it
    failed.
    """
    command = [
        sys.executable,
        "-c",
        "from sgpipe.cli.main import main; main()",
        *arguments,
        "--json",
    ]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--recipes", nargs="+", default=["models", "served"], choices=["models", "served"]
    )
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--work", type=Path, help="folder that keeps the images")
    options = parser.parse_args()
    rows = [(kind, actors) for kind in options.recipes for actors in options.actors]
    ratios: dict[tuple[str, int], list[float]] = {row: [] for row in rows}
    table = Table(
        "round",
        "recipe",
        "actors",
        "predicted, s",
        "of it the start, s",
        "measured, s",
        "ratio",
        "load",
    )
    with EndpointServer(seconds=SECONDS) as server, tempfile.TemporaryDirectory() as temporary:
        world = (options.work or Path(temporary)) / f"world-{options.images}"
        render_dataset(world, options.images, 0, "val")
        for number in range(1, options.rounds + 1):
            for kind, actors in rows:
                recipe = Path(temporary) / f"{kind}.yaml"
                out = Path(temporary) / "run"
                recipe.write_text(
                    yaml.safe_dump(recipe_of(kind, world, server.url)), encoding="utf-8"
                )
                cores = ("--set", f"engine.cpus={actors}")
                _, plan = seconds_of("plan", str(recipe), *cores)
                measured, _ = seconds_of("generate", str(recipe), *cores, "--out", str(out))
                shutil.rmtree(out)
                ratio = plan["seconds"] / measured
                ratios[kind, actors].append(ratio)
                figures = [plan["seconds"], plan["start_seconds"], measured]
                row = [number, kind, actors, *(f"{value:.1f}" for value in figures), f"{ratio:.2f}"]
                table.add_row(*map(str, row), f"{os.getloadavg()[0]:.0f}")
                print(*row, f"load {os.getloadavg()[0]:.0f}", file=sys.stderr, flush=True)
    medians = Table("recipe", "actors", "rounds", "median ratio", "smallest", "largest")
    for (kind, actors), ratios_of_kind in ratios.items():
        shown = (statistics.median(ratios_of_kind), min(ratios_of_kind), max(ratios_of_kind))
        medians.add_row(
            kind, str(actors), str(len(ratios_of_kind)), *(f"{value:.2f}" for value in shown)
        )
    report(__doc__, f"{options.images:,} images.", medians, table)


if __name__ == "__main__":
    main()
