"""How benchmarks measure (alternating, in CPU time, relative to the peak rate of the machine) and
how they report.
"""

from __future__ import annotations

import inspect
import io
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048
COPIED = 2**26


def report(method: str, *parts: Table | str) -> None:
    """Print a page in Markdown: title and method, from the script's docstring, the machine, tables
    and remarks.
    """
    title, *paragraphs = inspect.cleandoc(method).split("\n\n")
    # a command is code
    shown = [f"    {part}" if part.startswith("python -m ") else part for part in paragraphs]
    page = [f"# {title.rstrip('.')}", *shown, machine(), *(map(_markdown, parts))]
    print("\n\n".join(page))


def _markdown(part: Table | str) -> str:
    if isinstance(part, str):
        return part
    title = part.title
    part.title = None
    part.box = box.MARKDOWN
    text = io.StringIO()
    Console(file=text, width=1000).print(part)
    lines = [line.rstrip() for line in text.getvalue().strip().splitlines()]
    return "\n".join([f"**{title}**\n", *lines] if title else lines)


def machine() -> str:
    """The processor, what computes on it, the date, and how much else it has to do."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    wide = ", AVX-512" if any("avx512f" in line for line in lines) else ""
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    load = os.getloadavg()[0]
    cores = f"{os.cpu_count()} cores, threads of PyTorch: {threads}, torch {torch.__version__}"
    today = date.today().isoformat()
    return f"Machine: {name}{wide}, {cores}; measured on {today}, load {load:.1f}."


def medians(
    ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True
) -> dict[str, float]:
    """CPU seconds of all threads, alternating; a first round that warms up does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if number >= 0:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def cost_of_sgpipe(*arguments: str) -> tuple[str, str, str]:
    """Seconds, CPU seconds and peak MB of a command. Raises CalledProcessError: it failed."""
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", *arguments]
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{seconds:.1f}", f"{cpu:.1f}", f"{after.ru_maxrss // 1024:,}"


def best(way: Callable[[], object], rounds: int) -> float:
    """The fewest CPU seconds of all threads that it took."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        way()
        seconds.append(time.process_time() - start)
    return min(seconds)


def matrix_rate(rounds: int = 8) -> float:
    """Floating point operations per CPU second in products of large square matrices: no network is
    faster.
    """
    left = torch.randn(SIDE, SIDE)
    right = torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / best(lambda: left @ right, rounds)


def copy_rate(rounds: int = 4) -> float:
    """Bytes read and written per CPU second when memory is copied that no cache holds."""
    source = torch.ones(COPIED)
    target = torch.empty(COPIED)
    return 8 * COPIED / best(lambda: target.copy_(source), rounds)


def operations(way: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in it."""
    with FlopCounterMode(display=False) as counter:
        way()
    return int(counter.get_total_flops())
