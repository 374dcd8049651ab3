"""`sgpipe view` on 6 million synthetic relations in 120,000 images: its first page, and 200
different searches.

python -m benchmarks.bench_view [--images N] [--run FOLDER]

A server is started as users start it, and asked for pages over HTTP. A page has 48 hits, the counts
of all facets and the histogram, and is rendered. Searches are drawn with a seed: relations,
alternatives, single names, exclusions, captions, ranges of confidence, facets, queues, all orders,
and second pages. No two are the same.
"""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from rich.table import Table

from benchmarks.bench_stats import CATEGORIES, PREDICATES, RELATIONS, run_of_options
from benchmarks.measure import report

SEARCHES = 200
CAPTIONS = 10
_TICKS = os.sysconf("SC_CLK_TCK")
_SGPIPE = [sys.executable, "-c", "from sgpipe.cli.main import main; main()"]
_NEXT = re.compile(r'href="([^"]*[?&;]after=[^"-][^"]*)"')
Params = list[tuple[str, str]]


def make_searches(count: int, seed: int = 0) -> Iterator[tuple[str, Params]]:
    """Kinds of searches with their parameters, in turn; all of them different."""
    rng = random.Random(seed)
    kinds = list(_KINDS)
    seen = set()
    while len(seen) < count:
        kind = kinds[len(seen) % len(kinds)]
        params = _KINDS[kind](rng)
        text = urlencode(params)
        if text not in seen:
            seen.add(text)
            yield kind, params


def _class(rng: random.Random) -> str:
    return rng.choice(CATEGORIES[:20])


def _predicate(rng: random.Random) -> str:
    return rng.choice(PREDICATES[:200])


def _words(rng: random.Random) -> str:
    return f'"thing {rng.randrange(1000)}"'


def _order(rng: random.Random) -> tuple[str, str]:
    return "order", rng.choice(["confidence", "-confidence", "rarity", "shuffle"])


def _range(rng: random.Random) -> Params:
    low = rng.randrange(5, 90)
    return [("low", f"{low / 100}"), ("high", f"{rng.randrange(low, 101) / 100}")]


_KINDS: dict[str, Callable[[random.Random], Params]] = {
    "class * *": lambda rng: [("q", f"{_class(rng)} * *"), _order(rng), ("seed", str(rng.randrange(1000)))],
    "* predicate *": lambda rng: [("q", f"* {_predicate(rng)} *"), _order(rng)],
    "class predicate *": lambda rng: [("q", f"{_class(rng)} {_predicate(rng)} *")],
    "class or class * class": lambda rng: [("q", f"{_class(rng)}|{_class(rng)} * {_class(rng)}"), _order(rng)],
    "class -predicate": lambda rng: [("q", f"{_class(rng)} -{_predicate(rng)}")],
    '"caption"': lambda rng: [("q", _words(rng))],
    '"caption" class predicate *': lambda rng: [("q", f"{_words(rng)} {_class(rng)} {_predicate(rng)} *")],
    "range of confidence": lambda rng: [*_range(rng), _order(rng), ("seed", str(rng.randrange(1000)))],
    "facets": lambda rng: [("subject", _class(rng)), ("predicate", _predicate(rng)), *_range(rng)],
    "queue": lambda rng: [("queue", rng.choice(["impossible_places", "far_apart", "confident_but_rare"])),
                          ("subject", _class(rng)), _order(rng)],
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of an answer: seconds that the client waited, and CPU seconds of the server."""

    seconds: float
    cpu: float


class Server:
    """A running `sgpipe view`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = process
        self._url = url

    def get(self, path: str) -> tuple[str, Cost]:
        """A page and its cost."""
        before = self.cpu
        start = time.perf_counter()
        with urllib.request.urlopen(self._url + path.lstrip("/")) as answer:
            page = answer.read().decode()
        return page, Cost(time.perf_counter() - start, self.cpu - before)

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def peak(self) -> int:
        """The most memory it had, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


@contextmanager
def serving(run: Path) -> Iterator[Server]:
    """Serve a run; the server is there once it has printed its address."""
    command = [*_SGPIPE, "view", str(run), "--no-browser", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Server(process, process.stdout.readline().strip())
        finally:
            process.terminate()


def measure_build(run: Path) -> tuple[str, ...]:
    """Seconds, CPU seconds, peak MB and MB on disk of building the index."""
    code = "import sys; from sgpipe.storage.index import Index; Index(sys.argv[1])"
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(path.stat().st_size for path in (run / ".sgpipe/cache").glob("index-*"))
    return f"{seconds:.1f}", f"{cpu:.1f}", f"{after.ru_maxrss // 1024:,}", f"{size >> 20}"


def measure_searches(server: Server, count: int) -> dict[str, list[Cost]]:
    """The costs of searches by their kind; every fourth one is followed to its second page."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in (*_KINDS, "second page")}
    asked = 0
    for kind, params in make_searches(count):
        if asked == count:
            break
        page, cost = server.get(f"/?{urlencode(params)}")
        costs[kind].append(cost)
        asked += 1
        if asked % 5 == 4 and (next_page := _NEXT.search(page)):
            costs["second page"].append(server.get(unescape(next_page[1]))[1])
            asked += 1
    return costs


def _row(costs: Sequence[Cost]) -> tuple[str, ...]:
    values = [
        f"{1000 * np.quantile([getattr(cost, name) for cost in costs], share):.0f}"
        for name in ("seconds", "cpu")
        for share in (0.5, 0.95)
    ]
    return str(len(costs)), *values


def measure(run: Path, images: int) -> list[Table | str]:
    """Build the index, start a server, and ask."""
    title = f"{images:,} images, {images * RELATIONS:,} relations, {images * CAPTIONS:,} captions"
    built = Table(
        "index, built once", "seconds", "CPU seconds", "peak MB", "MB on disk", title=title
    )
    built.add_row("build", *measure_build(run))
    start = time.perf_counter()
    with serving(run) as server:
        listening = time.perf_counter() - start
        cpu = server.cpu
        _, first = server.get("/")
        _, second = server.get("/")
        started = Table("start", "seconds", "CPU seconds")
        started.add_row("server listens", f"{listening:.2f}", f"{cpu:.2f}")
        started.add_row(
            "first page, from the start on",
            f"{listening + first.seconds:.2f}",
            f"{cpu + first.cpu:.2f}",
        )
        started.add_row("the same page again", f"{second.seconds:.2f}", f"{second.cpu:.2f}")
        costs = measure_searches(server, SEARCHES)
        peak = server.peak
    searched = Table("search", "asked", "median ms", "95% ms", "CPU: median ms", "CPU: 95% ms")
    for kind, values in costs.items():
        searched.add_row(f"`{kind}`", *_row(values))
    searched.add_row("**all**", *_row([cost for values in costs.values() for cost in values]))
    return [built, started, searched, f"Server: {peak:,} MB at most."]


def main() -> None:
    with run_of_options(__doc__, CAPTIONS) as (run, images):
        parts = measure(run, images)
    report(
        __doc__,
        *parts,
        "Seconds are what the client waited, also while other work had the cores (see the load)."
        " CPU seconds are those of the server, all threads together. In the way: counting facets"
        " reads every hit, and a text is looked for in every caption.",
    )


if __name__ == "__main__":
    main()
