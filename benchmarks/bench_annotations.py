"""Planning from annotations in COCO's form: seconds, CPU-seconds and memory of the driver until the
first image can be labelled.

    python -m benchmarks.bench_annotations [--before TREE] [--images N …] [--boxes 7] [--rounds R] [--order annotations]

A file has N images with 7 boxes each, which follow each other in another order than the images, and
no images beside it. --order: which list is first in the file. TREE is a checkout of another
version, measured in turn with this one, R times each; figures are medians. Memory is the peak of
the resident set: of the whole driver, and beyond what it takes when all modules are imported. The
law is a line through the largest two files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

TREE = Path(__file__).parents[1]
_MEGABYTE = 1e6
_STRIDE = 7_368_787  # a prime: the boxes of an image are far from each other
_ITEMS_AT_ONCE = 100_000
_EXTRAPOLATED = (10_000_000, 100_000_000)
_STEP = """
import json, resource, sys, time
from pathlib import Path
from sgpipe.recipe import SourceConfig
from sgpipe.sources.opening import open_source
import duckdb, pyarrow.parquet, pyarrow.compute

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path(sys.argv[1])
split = {"images": str(folder / "images"), "annotations": str(folder / "instances.json")}
source = SourceConfig.model_validate({"format": "coco", "splits": {"val": split}})
before, began, cpu = peak(), time.monotonic(), time.process_time()
index = open_source(source, "val", folder / "run/val.arrow")
step = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
parts = index.meta["parts"]
print(json.dumps(step | {"peak": peak(), "added": peak() - before, "parts": parts}))
"""


class Step(TypedDict):
    """What planning took, bytes of memory among it, and the hashes of its index."""

    seconds: float
    cpu: float
    peak: int
    added: int
    parts: list[str]


def write_annotations(path: Path, images: int, boxes: int, first: str) -> None:
    """Write a file of COCO's form; `first`: the list that it begins with."""

    def image(number: int) -> str:
        return f'{{"id":{number},"file_name":"{number:012d}.jpg","width":640,"height":480}}'

    def box(number: int) -> str:
        owner = number * _STRIDE % images
        x = number % 599 + number % 97 / 100
        y = number % 409 + number % 89 / 100
        sides = f"{9 + number % 31},{9 + number % 29}"
        return (
            f'{{"id":{number},"image_id":{owner},"category_id":{1 + number % 80},"iscrowd":0,'
            f'"area":81.0,"bbox":[{x:.2f},{y:.2f},{sides}]}}'
        )

    lists: dict[str, tuple[Callable[[int], str], int]] = {
        "images": (image, images),
        "annotations": (box, images * boxes),
    }
    names = sorted(lists, key=lambda name: name != first)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    with path.open("w") as file:
        file.write(f'{{"categories":{json.dumps(categories)}')
        for name in names:
            item, length = lists[name]
            file.write(f',"{name}":[')
            separator = ""
            for start in range(0, length, _ITEMS_AT_ONCE):
                lines = map(item, range(start, min(start + _ITEMS_AT_ONCE, length)))
                file.write(separator + ",\n".join(lines))
                separator = ",\n"
            file.write("]")
        file.write("}")


def plan(tree: Path, folder: Path) -> Step:
    """Return what planning with a version took."""
    environment = os.environ | {"PYTHONPATH": str(tree), "SGPIPE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", _STEP, str(folder)]
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True)
    step: Step = json.loads(done.stdout.splitlines()[-1])
    for path in (folder / "run").iterdir():
        path.unlink()
    return step


def medians(steps: list[Step]) -> dict[str, float]:
    """Return the median of each figure of several runs."""
    figures = ("seconds", "cpu", "peak", "added")
    return {figure: statistics.median(step[figure] for step in steps) for figure in figures}  # type: ignore[literal-required]


def measure(
    trees: dict[str, Path], images: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return the figures of each version for a file of so many images.

    Raises:
        SystemExit: versions make different rows.
    """
    steps: dict[str, list[Step]] = {version: [] for version in trees}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        (folder / "images").mkdir()
        (folder / "images/000000000000.jpg").touch()
        (folder / "run").mkdir()
        write_annotations(folder / "instances.json", images, options.boxes, options.order)
        for _ in range(options.rounds):
            for version, tree in trees.items():
                steps[version].append(plan(tree, folder))
    indexes = {tuple(step["parts"]) for runs in steps.values() for step in runs}
    if len(indexes) > 1:
        sys.exit(f"the rows of {images:,} images are not the same in all versions")
    return {version: medians(runs) for version, runs in steps.items()}


def law(figures: dict[int, dict[str, float]], version: str) -> str:
    """Return how memory and time of a version grow with the images, from its largest two files."""
    smaller, larger = sorted(figures)[-2:]
    first = figures[smaller]
    last = figures[larger]
    added = larger - smaller
    bytes_each = (last["peak"] - first["peak"]) / added
    microseconds = (last["cpu"] - first["cpu"]) / added * 1e6
    expected = []
    for images in _EXTRAPOLATED:
        memory = last["peak"] + bytes_each * (images - larger)
        hours = (last["cpu"] + microseconds / 1e6 * (images - larger)) / 3600
        expected.append(f"{images:,} images: {memory / 1e9:.1f} GB, {hours:.1f} CPU-hours")
    return (
        f"Law ({version}): {bytes_each:.0f} bytes and {microseconds:.0f} µs of CPU time for each"
        f" further image. Extrapolated: {'; '.join(expected)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--boxes", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--order", choices=["images", "annotations"], default="images")
    parser.add_argument("--folder", type=Path, help="for files; default: the system's")
    options = parser.parse_args()
    from rich.table import Table

    from benchmarks.measure import report

    table = Table("images", "version", "s", "CPU-s", "peak MB", "MB added", "bytes each")
    trees = {"now": TREE} if options.before is None else {"before": options.before, "now": TREE}
    figures: dict[str, dict[int, dict[str, float]]] = {version: {} for version in trees}
    for images in options.images:
        for version, step in measure(trees, images, options).items():
            figures[version][images] = step
            table.add_row(
                f"{images:,}",
                version,
                f"{step['seconds']:.2f}",
                f"{step['cpu']:.2f}",
                f"{step['peak'] / _MEGABYTE:.0f}",
                f"{step['added'] / _MEGABYTE:.0f}",
                f"{step['added'] / images:.0f}",
            )
    remarks = []
    for version in trees:
        if len(options.images) > 1:
            remarks.append(law(figures[version], version))
    if "before" in trees:
        ratios = []
        for images in options.images:
            ratio = figures["now"][images]["cpu"] / figures["before"][images]["cpu"]
            ratios.append(f"{ratio:.3f} ({images:,} images)")
        remarks.append(f"CPU time, now : before: {', '.join(ratios)}.")
    report(__doc__ or "", table, *remarks)


if __name__ == "__main__":
    main()
