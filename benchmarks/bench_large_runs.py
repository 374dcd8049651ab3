"""What is done with a labelled run, by its size: synthetic annotations.

python -m benchmarks.bench_large_runs [--images 100000 1000000 1500000] [--merged 100000]
    [--exported 1000000]

Images have 2 to 12 boxes, relations and captions, of 2,048 scenes that repeat. A command is a
process of its own; CPU seconds are of it and its processes, peak MB of the largest of them. The
first stats builds the index that view opens, too; first page: from the start of `sgpipe view` on,
with that index. Merged are two runs of all images. Larger runs than named are neither merged nor
exported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.bench_merge import make_run
from benchmarks.bench_view import serving
from benchmarks.measure import report

# A process starts with the memory of the one that starts it, which is this small one.
_LAUNCHER = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
_SGPIPE = (sys.executable, "-c", "from sgpipe.cli.main import main; main()")


@dataclass(frozen=True)
class _Cost:
    """Of a command."""

    command: str
    images: int
    seconds: float
    cpu: float
    peak: int  # MB


def _cost(name: str, images: int, *arguments: str) -> _Cost:
    """Run a command. Raises CalledProcessError: it failed."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _LAUNCHER, *_SGPIPE, "-q", *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    cpu, peak = json.loads(answer.stdout)
    return _Cost(name, images, time.perf_counter() - start, cpu, peak // 1024)


def _first_page(images: int, run: Path) -> _Cost:
    """Start `sgpipe view` and get its first page."""
    start = time.perf_counter()
    with serving(run) as server:
        server.get("/")
        seconds = time.perf_counter() - start
        return _Cost("view, first page", images, seconds, server.cpu, server.peak)


def _costs(folder: Path, images: int, *, merged: bool, exported: bool) -> Iterator[_Cost]:
    """Yield the costs of the commands for a run of a size."""
    run = folder / "detected"
    make_run(run, images, detected=True)
    yield _cost("stats, first", images, "stats", str(run))
    yield _cost("stats, again", images, "stats", str(run))
    yield _first_page(images, run)
    yield _cost("verify", images, "verify", str(run))
    if exported:
        coco = ("--to", "coco-rel", "--out", str(folder / "exported"))
        yield _cost("export --to coco-rel", images, "export", str(run), *coco)
    if merged:
        annotated = folder / "annotated"
        make_run(annotated, images, detected=False)
        out = ("--out", str(folder / "merged"))
        yield _cost("merge", images, "merge", str(annotated), str(run), *out)
    yield _cost("compact", images, "compact", str(run))


def _table(costs: list[_Cost]) -> Table:
    """Return the costs, and how CPU seconds an image change with the size."""
    table = Table(
        "command",
        "images",
        "seconds",
        "CPU seconds",
        "CPU-ms an image",
        "of the smaller run's",
        "peak MB",
    )
    earlier: dict[str, float] = {}
    for cost in sorted(costs, key=lambda cost: (cost.command, cost.images)):
        an_image = 1000 * cost.cpu / cost.images
        growth = f"{an_image / earlier[cost.command]:.2f}" if cost.command in earlier else ""
        earlier[cost.command] = an_image
        table.add_row(
            cost.command,
            f"{cost.images:,}",
            f"{cost.seconds:.1f}",
            f"{cost.cpu:.1f}",
            f"{an_image:.3f}",
            growth,
            f"{cost.peak:,}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000, 1_500_000])
    parser.add_argument("--merged", type=int, default=100_000, help="largest runs to merge")
    parser.add_argument("--exported", type=int, default=1_000_000, help="largest run to export")
    args = parser.parse_args()
    costs: list[_Cost] = []
    for images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            merged, exported = images <= args.merged, images <= args.exported
            for cost in _costs(Path(folder), images, merged=merged, exported=exported):
                print(cost, file=sys.stderr)
                costs.append(cost)
    report(__doc__ or "", _table(costs))


if __name__ == "__main__":
    main()
