"""Utilization of the models in a whole run: `sgpipe generate` on synthetic images, from captions to
shards.

    python -m benchmarks.bench_pipeline [--images N]

The miniworld's recipe with its own captioner and tagger, ten captions for each image, on all cores.
A stage's seconds include reading and decoding its images. Utilization counts from the start of the
first unit, without the time for starting Ray and loading the models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

from benchmarks.measure import medians, report
from sgpipe.images import open_row_image
from sgpipe.records import Record
from sgpipe.storage.run_records import iter_records


def generate(images: int, out: Path) -> tuple[dict, str]:
    """The run's summary, and what it says about its actors. Raises CalledProcessError: it
    failed.
    """
    command = [
        sys.executable,
        "-c",
        "from sgpipe.cli.main import main; main()",
        "generate",
        "--json",
        "--out",
        str(out),
    ]
    command += ["--set", f"source.miniworld.images={images}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), utilization_line(done.stderr)


def utilization_line(notes: str) -> str:
    """The line in which `sgpipe generate` says how busy its actors were."""
    return next(line for line in notes.splitlines() if line.startswith("utilization: "))


def decoding_seconds(records: list[Record], roots: dict[str, Path]) -> float:
    """CPU seconds of opening and decoding the images once."""
    return medians({"decode": lambda: [open_row_image(roots, record) for record in records]}, 1)[
        "decode"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        began = time.perf_counter()
        summary, utilization = generate(options.images, out)
        elapsed = time.perf_counter() - began
        records = list(iter_records(out))
        images = next(out.rglob("*.jpg")).parent
        decoding = 2 * decoding_seconds(records, {records[0].split: images})
    total = sum(summary["seconds"].values())
    table = Table(
        "stage", "seconds of all actors", "share", title=f"{options.images:,} synthetic images"
    )
    for stage, seconds in summary["seconds"].items():
        table.add_row(stage, f"{seconds:.1f}", f"{seconds / total:.0%}")
    report(
        __doc__,
        table,
        f"{utilization.capitalize()}. The command took {elapsed:.0f} s, including image generation,"
        " startup and the summary.",
        f"Decoding each image twice, once for each model, takes {decoding:.1f} CPU seconds,"
        f" {decoding / total:.0%} of the stages' time: this would be the limit if the models cost"
        " nothing. All stages run in the same actors, one for each core, and the last unit of one"
        " ends a little before the other's.",
    )


if __name__ == "__main__":
    main()
