"""`sgpipe eval labels` on 5 million made-up relations in 100,000 images, compared with themselves: seconds and memory.

python -m benchmarks.bench_labels [--images N]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_stats import RELATIONS, make_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        make_run(run, options.images)
        print(f"{options.images:,} images, {options.images * RELATIONS:,} relations")
        print("| compared | seconds | CPU-seconds | peak MB |\n|---|---|---|---|")
        for source in ("relations", "candidates"):
            arguments = ["eval", "labels", "--pred", str(run), "--truth", str(run), "--source", source]
            _measure(source, [sys.executable, "-c", "from sgpipe.cli import main; main()", *arguments])


def _measure(name: str, command: list[str]) -> None:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds, peak = time.perf_counter() - start, after.ru_maxrss // 1024
    print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {peak:,} |")


if __name__ == "__main__":
    main()
