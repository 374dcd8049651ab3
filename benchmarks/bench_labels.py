"""`sgpipe eval labels` on 5 million synthetic relations in 100,000 images, compared with
themselves: time and memory.

python -m benchmarks.bench_labels [--images N]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.table import Table

from benchmarks.bench_stats import RELATIONS, make_run
from benchmarks.measure import cost_of_sgpipe, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        make_run(run, options.images)
        title = f"{options.images:,} images, {options.images * RELATIONS:,} relations"
        table = Table("compared", "seconds", "CPU seconds", "peak MB", title=title)
        for source in ("relations", "candidates"):
            arguments = [
                "eval",
                "labels",
                "--pred",
                str(run),
                "--truth",
                str(run),
                "--source",
                source,
            ]
            table.add_row(source, *cost_of_sgpipe(*arguments))
    report(__doc__, table)


if __name__ == "__main__":
    main()
